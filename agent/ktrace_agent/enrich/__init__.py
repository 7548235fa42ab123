# SPDX-License-Identifier: Apache-2.0
"""Facts that the records themselves do not state."""
