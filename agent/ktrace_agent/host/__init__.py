# SPDX-License-Identifier: Apache-2.0
"""What this node says of itself: clock, namespaces, counters."""
