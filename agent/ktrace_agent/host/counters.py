# SPDX-License-Identifier: Apache-2.0
"""Counters of this host and of its network namespaces, read before and after a capture.

A snapshot only reads: standard library, limited time and number. Parsing and comparing wait until
the programs are detached (counter_changes.py). Another namespace is read through /proc/PID/net of
one of its processes. That needs no setns(), but a namespace without a process cannot be read.
Missing values have a typed reason; nothing here raises.
"""

import errno
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ktrace_agent.host import procfs, small_file
from ktrace_agent.host.clock import boot_ns
from ktrace_agent.host.netns import PROC, find_netns, inode_of

MAX_NETNS = 256
"""Maximum number of namespaces that a snapshot reads."""
READ_SECONDS = 1.0
"""Maximum duration of a snapshot."""
_FILE_BYTES = 256 * 1024


class Missing(StrEnum):
    """Why a counter file or a namespace has no values."""

    VANISHED = "vanished"
    """It existed before: its last process has ended."""
    APPEARED = "appeared"
    """It had no process when the capture began: its values are counted since its creation."""
    ABSENT = "absent"
    """This kernel does not offer the file."""
    DENIED = "denied"
    """The kernel does not let this user read it."""
    TOO_LATE = "too_late"
    """The time limit for reading was reached."""
    TOO_MANY = "too_many"
    """There are more namespaces than the limit."""
    UNREADABLE = "unreadable"
    """Reading failed with another error."""


Raw = bytes | Missing
Files = Mapping[str, Raw]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Unparsed counter files at one moment."""

    host: Files
    netns: Mapping[int, Files | Missing]
    """By inode of the namespace."""
    own: int
    """Inode of the agent's namespace; 0 if /proc does not report it."""
    whole: bool
    """All processes were checked: a namespace that is not here had no process."""
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
    """Read a small file of /proc unchanged, maximum 256 KiB."""
    try:
        return small_file.read_bytes(path, _FILE_BYTES)
    except OSError as problem:
        return _why(problem)


def _read_netns(proc: Path, inode: int, pids: Iterable[str]) -> Files | Missing:
    reason = Missing.VANISHED
    for pid in pids:
        files = {name: read_file(f"{proc}/{pid}/net/{name}") for name in procfs.PER_NETNS}
        # The pid may belong to another process in another namespace by now.
        if inode_of(f"{proc}/{pid}/ns/net") != inode:
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
    """Read all counters now; if `only` is given, only these network namespaces.

    The agent's own namespace is always read, and first.
    """
    begun_ns = boot_ns()
    end = time.monotonic() + seconds

    def over() -> bool:
        return time.monotonic() > end

    host = {name: read_file(proc / path) for name, (path, _) in procfs.PER_HOST.items()}
    own = inode_of(f"{proc}/self/ns/net") or 0
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
