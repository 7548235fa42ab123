# SPDX-License-Identifier: Apache-2.0
"""What to do next for a snapshot: no memory, no I/O."""
