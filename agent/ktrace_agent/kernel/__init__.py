# SPDX-License-Identifier: Apache-2.0
"""The programs: probed, loaded, attached, drained; and the recording that they leave."""
