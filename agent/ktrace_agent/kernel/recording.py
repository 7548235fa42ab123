# SPDX-License-Identifier: Apache-2.0
"""What a capture leaves behind, before anything is decoded.

Standard library only: this module is loaded while the programs are attached,
numpy and DuckDB come in (records.py) once they are detached.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta

from ktrace_agent.host.tcp_counts import Witness
from ktrace_api.names import RowType

_EPOCH = datetime.fromtimestamp(0, UTC)
ROW_TYPES = tuple(RowType)
"""In the order of enum kt_type (agent/bpf/events.h)."""


@dataclass(frozen=True, slots=True)
class Clock:
    """The wall clock minus the kernel's boot clock in ns, at the start and the end of a capture."""

    offset_start_ns: int
    offset_end_ns: int


def wall_clock(boot_ns: int, offset_ns: int) -> datetime:
    """A time of the boot clock as rows show it: by the offset at the start, whatever came after.

    So a step of the wall clock during a capture moves no row out of it.
    """
    return _EPOCH + timedelta(microseconds=(boot_ns + offset_ns) // 1000)


@dataclass(frozen=True, slots=True)
class HookCounters:
    """struct kt_counters summed over CPUs: seen is the sum of the counts up to lost_map."""

    seen: int = 0
    written: int = 0
    filtered: int = 0
    sampled: int = 0
    capped: int = 0
    lost_ring: int = 0
    lost_map: int = 0
    bytes: int = 0
    unseen: int = 0
    """Passed without a program, at least, as the next state of the same socket proves."""


@dataclass(frozen=True, slots=True)
class Overflow:
    """struct kt_overflow summed over CPUs: facts that a full map kept from us."""

    socks: int = 0
    calls: int = 0
    cgroups: int = 0
    flows: int = 0
    flow_tx_bytes: int = 0
    flow_rx_bytes: int = 0
    flow_tx_calls: int = 0
    flow_rx_calls: int = 0

    def any(self) -> bool:
        """Whether any fact is missing."""
        return any(getattr(self, field.name) for field in fields(self))


@dataclass(slots=True)
class Recording:
    """One capture: raw records as the kernel wrote them, and the accounts of what is not there."""

    spool_fd: int
    """File of whole kt_event records from offset 0, in the order of the ring."""
    stock_start: bytes
    """kt_event records of type KT_STOCK: one a socket, its state in new_state."""
    stock_end: bytes
    flow_keys: bytes
    """Array of kt_flow_key, parallel to flow_values (array of kt_flow)."""
    flow_values: bytes
    counters: Mapping[RowType, HookCounters]
    overflow: Overflow
    cgroups: Mapping[int, str]
    """cgroup id -> path as far as it is known, `/parent/leaf`."""
    clock: Clock
    started: datetime
    """All programs were attached; as wall_clock() has it."""
    ended: datetime
    """The wait was over. On the clock of the rows, so never before `started`."""
    ended_by: str
    """`duration`, `signal` or `error`."""
    spool_lost: Mapping[RowType, int]
    """Records that left the ring but found no room on disk; lost_ring counts them already."""
    witness: Witness | None = None

    def lost(self, *types: RowType) -> int:
        """Events of these types that are no record because something was full."""
        hooks = (self.counters[name] for name in types if name in self.counters)
        return sum(hook.lost_ring + hook.lost_map for hook in hooks)

    def forget(self) -> None:
        """Give back memory and disk of all records: the tables have them now."""
        os.ftruncate(self.spool_fd, 0)
        self.stock_start = self.stock_end = self.flow_keys = self.flow_values = b""
