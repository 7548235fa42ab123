# SPDX-License-Identifier: Apache-2.0
"""A cgroup of one's own, whose BPF program denies connect()."""

import ctypes
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.bpf.syscalls import libc, must
from tests.lab.impossible import Impossible

_NAME = "ktrace-lab-"
_BPF = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD, _PROG_ATTACH = 5, 8
_CGROUP_SOCK_ADDR, _INET4_CONNECT = 18, 10
_RETURN_ZERO = struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0)


def mounted() -> Path:
    """Where the cgroup2 hierarchy is; raises Impossible where it is nowhere."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, path, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(path)
    raise Impossible("no cgroup2 is mounted")


def _bpf(command: int, attributes: bytes) -> int:
    memory = ctypes.create_string_buffer(attributes, 128)
    return must(libc.syscall(_BPF[platform.machine()], command, memory, 128), "bpf")


def _deny(cgroup: int) -> None:
    code = ctypes.create_string_buffer(_RETURN_ZERO, len(_RETURN_ZERO))
    licence = ctypes.create_string_buffer(b"GPL")
    load = struct.pack(
        "=IIQQIIQII16sII",
        _CGROUP_SOCK_ADDR,
        len(_RETURN_ZERO) // 8,
        ctypes.addressof(code),
        ctypes.addressof(licence),
        0,
        0,
        0,
        0,
        0,
        b"lab_deny",
        0,
        _INET4_CONNECT,
    )
    program = _bpf(_PROG_LOAD, load)
    try:
        _bpf(_PROG_ATTACH, struct.pack("=IIII", cgroup, program, _INET4_CONNECT, 0))
    finally:
        os.close(program)


@contextmanager
def denied_connects() -> Iterator[None]:
    """Inside, this process lives in a cgroup where connect() to IPv4 fails with EPERM."""
    root = mounted()
    before = root / _own(root)
    for left in root.glob(f"{_NAME}*"):  # a run that was killed could not remove its own
        with suppress(OSError):
            left.rmdir()
    folder = root / f"{_NAME}{os.getpid()}"
    folder.mkdir()
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _deny(fd)
        (folder / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        os.close(fd)
        with suppress(OSError):
            (before / "cgroup.procs").write_text(str(os.getpid()))
        folder.rmdir()


def _own(root: Path) -> str:
    """The cgroup2 of this process below its mount."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, _, path = line.split(":", 2)
        if number == "0":
            return path.lstrip("/")
    raise Impossible(f"this process has no cgroup below {root}")
