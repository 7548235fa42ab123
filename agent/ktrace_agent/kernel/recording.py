# SPDX-License-Identifier: Apache-2.0
"""The undecoded result of a capture: raw records, counters and clocks.

Only the standard library is used: this module is loaded while the programs are attached. numpy and
DuckDB are imported once they are detached (tables/records.py).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta

from ktrace_agent.host.tcp_counts import TcpCountsRise
from ktrace_agent.kernel.observed import EVERYTHING, Observed
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
    """Convert a time of the boot clock to the time that rows show, by the offset at the start.

    A step of the wall clock during the capture thus moves no row out of its window.
    """
    return _EPOCH + timedelta(microseconds=(boot_ns + offset_ns) // 1000)


@dataclass(frozen=True, slots=True)
class HookCounters:
    """struct kt_counters, summed over CPUs. `seen` is the sum of the counts up to skipped."""

    seen: int = 0
    written: int = 0
    filtered: int = 0
    sampled: int = 0
    capped: int = 0
    lost_ring: int = 0
    lost_map: int = 0
    skipped: int = 0
    bytes: int = 0
    unseen: int = 0
    """Minimum number of events that ran no program, as later states of the same sockets show."""


@dataclass(frozen=True, slots=True)
class Overflow:
    """struct kt_overflow, summed over CPUs: facts missing in rows and flows."""

    socks: int = 0
    calls: int = 0
    cgroups: int = 0
    flows: int = 0
    flow_tx_bytes: int = 0
    flow_rx_bytes: int = 0
    flow_tx_calls: int = 0
    flow_rx_calls: int = 0
    skipped_tx_calls: int = 0
    skipped_rx_calls: int = 0

    def any(self) -> bool:
        """Return whether any fact is missing."""
        return any(getattr(self, field.name) for field in fields(self))


@dataclass(slots=True)
class Recording:
    """One capture: raw records as the kernel side wrote them, and counts of those missing."""

    spool_fd: int
    """File of whole kt_event records from offset 0, in the order of the ring buffer."""
    stock_start: bytes
    """Inventory at the start: a kt_event record of type KT_STOCK per socket, state in new_state."""
    stock_end: bytes
    flow_keys: bytes
    """Array of kt_flow_key, parallel to flow_values (array of kt_flow)."""
    flow_values: bytes
    counters: Mapping[RowType, HookCounters]
    overflow: Overflow
    cgroups: Mapping[int, str]
    """cgroup id -> known part of its path, `/parent/leaf`."""
    clock: Clock
    started: datetime
    """Time when all programs were attached, by wall_clock()."""
    ended: datetime
    """End of the wait. On the clock of the rows, so never before `started`."""
    ended_by: str
    """`duration`, `signal` or `error`."""
    spool_lost: Mapping[RowType, int]
    """Records that were read but did not fit on the disk; lost_ring includes them."""
    tcp_counts: TcpCountsRise | None = None
    """TCP counters of the kernel while the programs were attached."""
    observed: Observed = EVERYTHING
    """What the programs could record. Other zeros of this recording are unknown values."""

    def lost(self, *types: RowType) -> int:
        """Return how many events of these types were lost or skipped."""
        hooks = (self.counters[name] for name in types if name in self.counters)
        return sum(hook.lost_ring + hook.lost_map + hook.skipped for hook in hooks)

    def forget(self) -> None:
        """Release memory and disk space of all records; the tables hold them now."""
        os.ftruncate(self.spool_fd, 0)
        self.stock_start = self.stock_end = self.flow_keys = self.flow_values = b""
