# SPDX-License-Identifier: Apache-2.0
"""Reads the kernel's boot clock, which stamps the events.

A time namespace (time_namespaces(7), Linux 5.6) shifts CLOCK_BOOTTIME for its processes, but not
bpf_ktime_get_boot_ns(). Code that compares a time with rows must use boot_ns().
"""

import time
from functools import cache
from pathlib import Path

from ktrace_agent.errors import AgentError
from ktrace_agent.host.netns import PROC, inode_of
from ktrace_agent.host.small_file import text_or_empty

_INITIAL_TIME_NAMESPACE = 0xEFFFFFFA  # PROC_TIME_INIT_INO, include/linux/proc_ns.h
_BOOTTIME = ("boottime", str(time.CLOCK_BOOTTIME))
"""First word of the line; Linux 5.6 wrote numbers (94d440d61812)."""
_NS = 10**9


class UnknownTimeNamespace(AgentError):
    """The offset of this process's time namespace is unknown, so rows would have wrong times."""

    why = (
        "this process is in a time namespace whose offset /proc does not show, so rows would have"
        " wrong times"
    )
    next_step = "run outside of it: `nsenter -t 1 -T ktrace`, or without `unshare -T`"

    def __init__(self) -> None:
        super().__init__(f"{self.why}; {self.next_step}")


def boot_ns() -> int:
    """Return nanoseconds since boot, as the kernel counts them.

    Raises UnknownTimeNamespace.
    """
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - _own_shift_ns()


def shift_ns(proc: Path = PROC) -> int:
    """Return CLOCK_BOOTTIME of this process minus the kernel's boot clock, in ns.

    timens_offsets describes the time namespace of future children. If that is not the own one,
    the own offset is unknown: raises UnknownTimeNamespace.
    """
    own, children = (
        inode_of(proc / "self/ns" / name, "time") for name in ("time", "time_for_children")
    )
    if own == _INITIAL_TIME_NAMESPACE or (own is None and inode_of(proc / "self/ns/net")):
        return 0  # the initial one, or a kernel without time namespaces
    shift = _boottime(proc / "self/timens_offsets") if own == children else None
    if shift is None:
        raise UnknownTimeNamespace
    return shift


@cache
def _own_shift_ns() -> int:
    """Cached: the offset is fixed, and the agent never changes its time namespace."""
    return shift_ns()


def _boottime(path: Path) -> int | None:
    """Parse the line `boottime SECONDS NANOSECONDS`; only the seconds can be negative."""
    for line in text_or_empty(path).splitlines():
        match line.split():
            case [clock, seconds, nanoseconds] if clock in _BOOTTIME:
                try:
                    return int(seconds) * _NS + int(nanoseconds)
                except ValueError:
                    return None
    return None


def wall_offset_ns() -> int:
    """Return CLOCK_REALTIME minus the kernel's boot clock in ns: the closest of five readings."""
    best: tuple[int, int] | None = None
    for _ in range(5):
        before = boot_ns()
        wall = time.time_ns()
        after = boot_ns()
        reading = (after - before, wall - (before + after) // 2)
        best = min(best, reading) if best else reading
    assert best is not None
    return best[1]
