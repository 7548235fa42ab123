# SPDX-License-Identifier: Apache-2.0
"""Run something in another network namespace, in a thread that ends with it."""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ktrace_agent.libbpf import libc

CLONE_NEWNET = 0x40000000

T = TypeVar("T")


def run_in_netns(pid: int, inode: int, work: Callable[[], T]) -> T | None:
    """`work()` in the network namespace of process `pid`; None where it is gone or another by now.

    setns(2) moves one thread; a pool of one gives it work once and ends it.
    Raises OSError where the kernel refuses, and what `work` raises.
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
