# SPDX-License-Identifier: Apache-2.0
"""The collector: one bounded eBPF capture of this node, explained and sealed."""
