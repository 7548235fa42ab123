# SPDX-License-Identifier: Apache-2.0
"""Writes an initramfs: a cpio archive in the format `newc`.

Source: driver-api/early-userspace/buffer-format in the kernel's documentation. Written here,
because a device node in it needs no root this way.
"""

import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

CONSOLE = (5, 1)
"""Major and minor number of /dev/console, which the kernel opens for init."""

# `commands` is on the kernel's command line: init gets what the kernel does not know as variables.
INIT = """\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tmpfs tmpfs /tmp
echo guest >/proc/sys/kernel/hostname
ip link set lo up
exec /bin/serve </dev/$commands >/dev/$commands
"""

SERVE = """\
#!/bin/sh
# Reads a command in base64 from each line, answers "status, size of its output, size of its
# errors" in a line and then these bytes.
stty raw -echo
echo READY
while read -r line; do
    echo "$line" | base64 -d >/tmp/.command
    sh /tmp/.command >/tmp/.output 2>/tmp/.errors </dev/null
    echo "$? $(wc -c </tmp/.output) $(wc -c </tmp/.errors)"
    cat /tmp/.output /tmp/.errors
done
"""

_FOLDERS = ("bin", "dev", "etc", "proc", "sys", "tmp", "run", "mnt", "out")


def write(target: Path, busybox: Path, files: Mapping[str, Path]) -> None:
    """An initramfs with busybox, the server of guest.py and `files` (path in it -> source)."""
    with target.open("wb") as file:
        archive = _Archive(file)
        for folder in _FOLDERS:
            archive.add(folder, stat.S_IFDIR | 0o755)
        archive.add("dev/console", stat.S_IFCHR | 0o600, device=CONSOLE)
        archive.add_file("bin/busybox", busybox)
        for applet in _APPLETS:
            archive.add(f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox")
        archive.add("init", stat.S_IFREG | 0o755, INIT.encode())
        archive.add("bin/serve", stat.S_IFREG | 0o755, SERVE.encode())
        for name, source in files.items():
            archive.add_file(name.lstrip("/"), source)
        archive.add("TRAILER!!!", 0)


_APPLETS = (
    "awk", "base64", "cat", "cp", "cut", "dmesg", "env", "false", "find", "grep", "head", "ip",
    "kill", "ls", "mkdir", "mount", "ps", "rm", "rmdir", "sed", "setsid", "sh", "sleep", "sort",
    "stty", "sync", "tail", "tar", "test", "touch", "tr", "true", "umount", "uname", "unshare",
    "wc", "poweroff", "readlink",
)  # fmt: skip


class _Archive:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inode = 0

    def add_file(self, name: str, source: Path) -> None:
        with source.open("rb") as content:
            self._head(name, stat.S_IFREG | 0o755, os.fstat(content.fileno()).st_size, (0, 0))
            shutil.copyfileobj(content, self._file)
        self._align()

    def add(
        self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._head(name, mode, len(content), device)
        self._file.write(content)
        self._align()

    def _head(self, name: str, mode: int, size: int, device: tuple[int, int]) -> None:
        self._inode += 1
        path = os.fsencode(name) + b"\0"
        # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor,
        # namesize, check
        fields = (self._inode, mode, 0, 0, 1, 0, size, 0, 0, *device, len(path), 0)
        self._file.write(b"070701" + b"".join(b"%08X" % field for field in fields) + path)
        self._align()

    def _align(self) -> None:
        self._file.write(b"\0" * (-self._file.tell() % 4))
