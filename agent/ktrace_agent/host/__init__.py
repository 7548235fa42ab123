# SPDX-License-Identifier: Apache-2.0
"""Facts that the node reports without BPF: clock, namespaces, counters, sysctls, links."""
