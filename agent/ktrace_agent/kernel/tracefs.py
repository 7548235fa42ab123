# SPDX-License-Identifier: Apache-2.0
"""Ids of classic tracepoints, read from tracefs.

If tracefs is not mounted, a private mount is used. It is attached to no namespace and ends with its
descriptor. It is made only if the kernel's lockdown is known not to be `confidentiality`: see
Tracefs.
"""

import ctypes
import errno
import os
from ctypes import c_char_p, c_long
from pathlib import Path

from ktrace_agent.host.libc import libc
from ktrace_agent.kernel import lockdown

MOUNT_POINTS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
MOUNTS = Path("/proc/self/mountinfo")

# Syscall numbers since v5.2, the same on every architecture (commit d8076bdb56af).
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_FSCONFIG_CMD_CREATE = 6


def _call(number: int, *args: object) -> int:
    result = int(libc().syscall(c_long(number), *args))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _detached_mount() -> int:
    """Return a descriptor of a tracefs that is mounted in no namespace."""
    context = _call(_FSOPEN, c_char_p(b"tracefs"), c_long(_FSOPEN_CLOEXEC))
    try:
        _call(_FSCONFIG, c_long(context), c_long(_FSCONFIG_CMD_CREATE), None, None, c_long(0))
        return _call(_FSMOUNT, c_long(context), c_long(_FSMOUNT_CLOEXEC), c_long(0))
    finally:
        os.close(context)


def mount_point(mounts: Path = MOUNTS) -> Path | None:
    """Return the mount point of tracefs, from /proc/PID/mountinfo (proc_pid_mountinfo(5)).

    The folders themselves are not touched: a lookup below /sys/kernel/debug/tracing makes the
    kernel mount tracefs there for good (trace_automount).
    """
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return None
    mounted = {
        Path(fields[4])
        for line in lines
        if line.partition(" - ")[2].startswith("tracefs ") and len(fields := line.split()) > 4
    }
    return next((point for point in MOUNT_POINTS if point in mounted), None)


class Tracefs:
    """tracefs for reading; `unavailable` gives the reason if it cannot be read, else it is empty.

    Never mounts it under lockdown `confidentiality`, or where the lockdown is unknown. There the
    kernel does not create the events directory (LOCKDOWN_TRACEFS in tracing_init_dentry), so
    nothing pins the superblock, and the end of the last mount frees an inode that is on no list
    (tracefs_destroy_inode): an oops on 6.12, 6.17, 6.19 and 7.3, not on 6.1.
    """

    def __init__(self, locked: Path = lockdown.LOCKDOWN, mounts: Path = MOUNTS) -> None:
        self.unavailable = ""
        self._fd = -1
        if point := mount_point(mounts):
            try:
                self._fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                self.unavailable = f"{point} cannot be opened: {error.strerror}"
            return
        self.unavailable = _mount_hazard(lockdown.find(locked))
        if self.unavailable:
            return
        try:
            self._fd = _detached_mount()
        except OSError as error:
            self.unavailable = f"tracefs is not mounted and cannot be mounted: {error.strerror}"

    def event_id(self, name: str) -> int | None:
        """Return the id of `group/event`; None if the kernel lacks this tracepoint."""
        if self._fd < 0:
            return None
        try:
            fd = os.open(f"events/{name}/id", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM):
                return None
            raise
        with os.fdopen(fd, encoding="ascii") as file:
            return int(file.read())

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _mount_hazard(found: lockdown.Lockdown) -> str:
    """Why tracefs must not be mounted; empty if it may be."""
    if found.confidential is None:
        return "tracefs is not mounted, and ktrace does not mount it: kernel lockdown is unknown"
    if found.confidential:
        return (
            "tracefs is not mounted, and ktrace does not mount it under kernel lockdown"
            " `confidentiality`"
        )
    return ""
