# SPDX-License-Identifier: Apache-2.0
"""Ids of classic tracepoints, read from tracefs.

If tracefs is not mounted, a private mount is used. It is attached to no namespace and ends with its
descriptor.
"""

import ctypes
import errno
import os
from ctypes import c_char_p, c_long
from pathlib import Path

from ktrace_agent.host.libc import libc

MOUNT_POINTS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))

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


class Tracefs:
    """tracefs for reading. `unavailable` is the reason if it cannot be used, else empty."""

    def __init__(self) -> None:
        self.unavailable = ""
        self._fd = -1
        for point in MOUNT_POINTS:
            if (point / "events").is_dir():
                self._fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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
