# SPDX-License-Identifier: Apache-2.0
"""Counters of this host and of its network namespaces, read before and after a capture.

A snapshot only reads (standard library, bounded in time and number); parsing and comparing
wait until the programs are detached (deltas.py). Another
namespace is read through /proc/PID/net of a process that lives in it, so no setns() is needed
and a namespace without a process cannot be read. What is missing has a typed reason, nothing
here raises.
"""

import errno
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ktrace_agent import procfs
from ktrace_agent.clock import boot_ns
from ktrace_agent.errors import AgentError

PROC = Path("/proc")
MAX_NETNS = 256
"""Namespaces that a snapshot reads at most."""
READ_SECONDS = 1.0
"""Time that a snapshot takes at most."""
_FILE_BYTES = 256 * 1024
_WITNESSES = 3
"""Processes that are tried for one namespace."""

SYSCTLS = (
    "net/core/netdev_max_backlog",
    "net/core/rmem_default",
    "net/core/rmem_max",
    "net/core/somaxconn",
    "net/core/wmem_default",
    "net/core/wmem_max",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_local_reserved_ports",
    "net/ipv4/tcp_abort_on_overflow",
    "net/ipv4/tcp_congestion_control",
    "net/ipv4/tcp_fin_timeout",
    "net/ipv4/tcp_max_syn_backlog",
    "net/ipv4/tcp_max_tw_buckets",
    "net/ipv4/tcp_mem",
    "net/ipv4/tcp_retries2",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_syn_retries",
    "net/ipv4/tcp_synack_retries",
    "net/ipv4/tcp_syncookies",
    "net/ipv4/tcp_tw_reuse",
    "net/ipv4/tcp_wmem",
    "net/ipv4/udp_mem",
    "net/netfilter/nf_conntrack_buckets",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_tcp_timeout_established",
    "net/netfilter/nf_conntrack_udp_timeout",
)
"""Read, never written; those of net/ are the agent's own namespace's."""


class Missing(StrEnum):
    """Why a counter file or a namespace has no figures."""

    VANISHED = "vanished"
    """It was there and is no longer: its last process ended."""
    APPEARED = "appeared"
    """It had no process when the capture began: its figures are since it was made."""
    ABSENT = "absent"
    """This kernel does not offer the file."""
    DENIED = "denied"
    """The kernel does not let this user read it."""
    TOO_LATE = "too_late"
    """The time for reading was over."""
    TOO_MANY = "too_many"
    """More namespaces than are read."""
    UNREADABLE = "unreadable"
    """Reading failed in another way."""


Raw = bytes | Missing
Files = Mapping[str, Raw]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Unparsed counter files at one moment."""

    host: Files
    netns: Mapping[int, Files | Missing]
    """By inode of the namespace."""
    own: int
    """Inode of the agent's namespace; 0 where /proc does not say."""
    whole: bool
    """All processes were looked at: a namespace that is not here had none."""
    begun_ns: int = 0
    """The kernel's boot clock before the first file was read."""
    ended_ns: int = 0
    """After the last one."""


def _why(problem: OSError) -> Missing:
    if problem.errno in (errno.EACCES, errno.EPERM):
        return Missing.DENIED
    if problem.errno in (errno.ENOENT, errno.ENOTDIR, errno.EOPNOTSUPP, errno.ENODEV):
        return Missing.ABSENT
    if problem.errno == errno.ESRCH:
        return Missing.VANISHED
    return Missing.UNREADABLE


def read_file(path: Path | str) -> Raw:
    """A small file of /proc as it is, at most 256 KiB of it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as problem:
        return _why(problem)
    try:
        parts: list[bytes] = []
        left = _FILE_BYTES
        while left > 0 and (part := os.read(fd, min(left, 1 << 16))):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    except OSError as problem:
        return _why(problem)
    finally:
        os.close(fd)


def _inode(link: str) -> int | None:
    """Inode of a namespace link such as /proc/1/ns/net: `net:[4026531833]`."""
    try:
        text = os.readlink(link)  # noqa: PTH115  # thousands of times, on strings
    except OSError:
        return None
    digits = text.removeprefix("net:[").removesuffix("]")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 16 else None


def find_netns(proc: Path, over: Callable[[], bool]) -> dict[int, list[str]]:
    """Inode -> some of the processes that live there, the oldest first."""
    found: dict[int, list[str]] = {}
    try:
        names = os.listdir(proc)  # noqa: PTH208  # strings are enough, a big host has thousands
    except OSError:
        return found
    for pid in names:
        if not pid.isdigit():
            continue
        if over():
            break
        inode = _inode(f"{proc}/{pid}/ns/net")
        if inode is None:
            continue
        witnesses = found.setdefault(inode, [])
        if len(witnesses) < _WITNESSES:
            witnesses.append(pid)
    return found


def _read_netns(proc: Path, inode: int, witnesses: Iterable[str]) -> Files | Missing:
    reason = Missing.VANISHED
    for pid in witnesses:
        files = {name: read_file(f"{proc}/{pid}/net/{name}") for name in procfs.PER_NETNS}
        # A pid that ended meanwhile may be another process in another namespace by now.
        if _inode(f"{proc}/{pid}/ns/net") != inode:
            continue
        if any(isinstance(raw, bytes) for raw in files.values()):
            return files
        reason = next((raw for raw in files.values() if isinstance(raw, Missing)), reason)
    return reason


def snapshot(
    only: Collection[int] | None = None,
    *,
    proc: Path = PROC,
    limit: int = MAX_NETNS,
    seconds: float = READ_SECONDS,
) -> Snapshot:
    """Read all counters now; of network namespaces only those in `only`, where it is given.

    The agent's own namespace comes first and is always read.
    """
    begun_ns = boot_ns()
    end = time.monotonic() + seconds

    def over() -> bool:
        return time.monotonic() > end

    host = {name: read_file(proc / path) for name, (path, _) in procfs.PER_HOST.items()}
    own = _inode(f"{proc}/self/ns/net") or 0
    found = find_netns(proc, over)
    whole = not over()
    if own:
        found = {own: ["self"]} | {inode: pids for inode, pids in found.items() if inode != own}
    wanted = [inode for inode in found if only is None or inode in only or inode == own]
    netns: dict[int, Files | Missing] = {}
    for inode in wanted[:limit]:
        netns[inode] = Missing.TOO_LATE if over() else _read_netns(proc, inode, found[inode])
    for inode in wanted[limit:]:
        netns[inode] = Missing.TOO_MANY
    ended_ns = boot_ns()
    return Snapshot(host, netns, own, whole, begun_ns, ended_ns)


def sysctls(proc: Path = PROC) -> dict[str, str]:
    """Name -> value of those SYSCTLS that can be read; blanks as one space."""
    values = {}
    for path in SYSCTLS:
        raw = read_file(proc / "sys" / path)
        if isinstance(raw, bytes):
            text = " ".join(raw[:128].decode("utf-8", "replace").split())
            values[path.replace("/", ".")] = text
    return values


@dataclass(frozen=True, slots=True)
class Boot:
    """Which boot of the machine this is; `-` and None where /proc does not say."""

    boot_id: str
    uptime_s: float | None


def boot(proc: Path = PROC) -> Boot:
    """The kernel's boot id and the seconds since then."""
    raw = read_file(proc / "sys/kernel/random/boot_id")
    text = raw[:64].decode("ascii", "replace").strip() if isinstance(raw, bytes) else ""
    try:
        uptime: float | None = boot_ns() / 1e9
    except (OSError, AgentError):
        uptime = None
    return Boot(text or "-", uptime)


def clock_offset_ns() -> int:
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
