# SPDX-License-Identifier: Apache-2.0
"""The BPF programs: probed, loaded, attached and drained; and the recording they produce."""
