# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: lists them with their processes, and runs code in one."""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ktrace_agent.host.libc import libc

PROC = Path("/proc")
CLONE_NEWNET = 0x40000000
_PROCESSES = 3
"""Number of processes kept for each namespace: one may end before it is used."""

T = TypeVar("T")


def run_in_netns(pid: int, inode: int, work: Callable[[], T]) -> T | None:
    """Run `work()` in the network namespace of `pid`; return None if that is not `inode` any more.

    setns(2) moves one thread, so a separate thread does the work and ends.
    Raises OSError if the kernel refuses, and everything that `work` raises.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="netns") as pool:
        return pool.submit(_enter, pid, inode, work).result()


def _enter(pid: int, inode: int, work: Callable[[], T]) -> T | None:
    try:
        namespace = os.open(Path(f"/proc/{pid}/ns/net"), os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return None
    try:
        if os.fstat(namespace).st_ino != inode:
            return None
        if libc().setns(namespace, CLONE_NEWNET):
            code = ctypes.get_errno()
            raise OSError(code, f"setns: {os.strerror(code)}")
        return work()
    finally:
        os.close(namespace)


def inode_of(link: str | Path, kind: str = "net") -> int | None:
    """Return the inode of a namespace link such as /proc/1/ns/net; None if it is unreadable.

    The link reads `net:[4026531833]` (namespaces(7)); `kind` is the part before the colon.
    """
    try:
        text = os.readlink(link)  # noqa: PTH115  # thousands of times, on strings
    except OSError:
        return None
    digits = text.removeprefix(f"{kind}:[").removesuffix("]")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 16 else None


def find_netns(proc: Path, over: Callable[[], bool]) -> dict[int, list[str]]:
    """Return inode -> some processes of that namespace, the oldest first."""
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
        inode = inode_of(f"{proc}/{pid}/ns/net")
        if inode is None:
            continue
        pids = found.setdefault(inode, [])
        if len(pids) < _PROCESSES:
            pids.append(pid)
    return found
