# SPDX-License-Identifier: Apache-2.0
"""The kernel's boot clock as this process can read it: the one that events are stamped with.

A time namespace (time_namespaces(7), Linux 5.6) shifts CLOCK_BOOTTIME for the processes in it;
bpf_ktime_get_boot_ns() knows no namespaces. Whoever holds a time against rows asks boot_ns().
"""

import time
from functools import cache
from pathlib import Path

from ktrace_agent.errors import AgentError
from ktrace_agent.host.netns import PROC, inode_of
from ktrace_agent.host.small_file import text_or_empty

_INITIAL_TIME_NAMESPACE = 0xEFFFFFFA  # PROC_TIME_INIT_INO, include/linux/proc_ns.h
_BOOTTIME = ("boottime", str(time.CLOCK_BOOTTIME))
"""How the line begins; Linux 5.6 wrote numbers (94d440d61812)."""
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
    """Nanoseconds since the boot, as the kernel counts them.

    Raises UnknownTimeNamespace.
    """
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - _own_shift_ns()


def shift_ns(proc: Path = PROC) -> int:
    """What CLOCK_BOOTTIME is ahead of the kernel's boot clock in this process, in ns.

    timens_offsets speaks of the namespace that children come into. Where that is another one
    than the own, the own offset is not visible: raises UnknownTimeNamespace.
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
    """Offsets are fixed once a process is in the namespace, and the agent enters no other."""
    return shift_ns()


def _boottime(path: Path) -> int | None:
    """The line `boottime SECONDS NANOSECONDS`; only the seconds are ever negative."""
    for line in text_or_empty(path).splitlines():
        match line.split():
            case [clock, seconds, nanoseconds] if clock in _BOOTTIME:
                try:
                    return int(seconds) * _NS + int(nanoseconds)
                except ValueError:
                    return None
    return None


def wall_offset_ns() -> int:
    """CLOCK_REALTIME minus the kernel's boot clock in ns, from the closest of five readings."""
    best: tuple[int, int] | None = None
    for _ in range(5):
        before = boot_ns()
        wall = time.time_ns()
        after = boot_ns()
        reading = (after - before, wall - (before + after) // 2)
        best = min(best, reading) if best else reading
    assert best is not None
    return best[1]
