# SPDX-License-Identifier: Apache-2.0
"""How much of a cgroup's path the BPF programs record (struct kt_cgroup, agent/bpf/events.h)."""

LEVELS = 4
"""Levels of the path, the innermost first (KT_CGROUP_LEVELS)."""
NAME_LEN = 96
"""Bytes of the name of one level, with the final NUL (KT_CGROUP_NAME_LEN)."""
