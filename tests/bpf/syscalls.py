# SPDX-License-Identifier: Apache-2.0
"""System calls that Python's socket module does not provide exactly: one function each."""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

CLONE_NEWNET = 0x40000000
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_NO_NEW_PRIVS = 38
UDP_CORK = 1
UDP_SEGMENT = 103
MSG_FASTOPEN = 0x20000000
TCP_SYNCNT = 7
TCP_USER_TIMEOUT = 18
TCP_FASTOPEN_CONNECT = 30
IP_LOCAL_PORT_RANGE = 51
SO_COOKIE = 57

Address = tuple[str, int]

libc = ctypes.CDLL(None, use_errno=True)


def must(result: int, what: str) -> int:
    """The result of a libc call, or its errno as OSError."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def prctl(option: int, value: Any) -> None:
    must(libc.prctl(option, value, 0, 0, 0), "prctl")


def unshare(flags: int) -> None:
    must(libc.unshare(flags), "unshare")


def enter_netns(pid: int) -> None:
    """Move this thread into the network namespace of process `pid`."""
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        must(libc.setns(fd, CLONE_NEWNET), "setns")
    finally:
        os.close(fd)


def cookie(sock: socket.socket) -> int:
    """SO_COOKIE: the socket's number, as ktrace's `sock` shows it."""
    return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0])


def pack_address(address: Address) -> bytes:
    """struct sockaddr_in or sockaddr_in6 of a numeric address."""
    host, port = address
    if ":" in host:
        packed = socket.inet_pton(socket.AF_INET6, host)
        return struct.pack("=H2sI16sI", socket.AF_INET6, port.to_bytes(2, "big"), 0, packed, 0)
    packed = socket.inet_pton(socket.AF_INET, host)
    return struct.pack("=H2s4s8x", socket.AF_INET, port.to_bytes(2, "big"), packed)


def connect(sock: socket.socket, address: Address) -> int:
    """connect(2) once, without Python's answer to EINTR; errno, 0 for success."""
    return connect_raw(sock, pack_address(address))


def connect_raw(sock: socket.socket, name: bytes) -> int:
    if libc.connect(sock.fileno(), name, len(name)) == 0:
        return 0
    return ctypes.get_errno()


def disconnect(sock: socket.socket) -> int:
    """connect(2) with AF_UNSPEC; errno."""
    return connect_raw(sock, struct.pack("=H14x", socket.AF_UNSPEC))


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class _MsgHdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_IoVec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _MMsgHdr(ctypes.Structure):
    _fields_ = (("hdr", _MsgHdr), ("len", ctypes.c_uint32))


class _Message:
    """A msghdr with the memory that it points to."""

    def __init__(self, data: bytes | int, name: bytes | None) -> None:
        self.data = ctypes.create_string_buffer(data, data if isinstance(data, int) else len(data))
        self.name = None if name is None else ctypes.create_string_buffer(name, len(name))
        self.iov = _IoVec(ctypes.addressof(self.data), len(self.data))

    def fill(self, hdr: _MsgHdr) -> None:
        hdr.iov, hdr.iovlen = ctypes.pointer(self.iov), 1
        if self.name is not None:
            hdr.name, hdr.namelen = ctypes.addressof(self.name), len(self.name)


def sendmmsg(
    sock: socket.socket, messages: Sequence[tuple[bytes, Address | None]], flags: int = 0
) -> int:
    """sendmmsg(2): how many messages went out."""
    held = [_Message(data, to and pack_address(to)) for data, to in messages]
    vector = (_MMsgHdr * len(held))()
    for message, entry in zip(held, vector, strict=True):
        message.fill(entry.hdr)
    return must(libc.sendmmsg(sock.fileno(), vector, len(held), flags), "sendmmsg")


def recvmmsg(sock: socket.socket, count: int, *, named: bool, flags: int = 0) -> list[bytes]:
    """recvmmsg(2) of up to `count` messages; returns their payloads."""
    held = [_Message(65536, b"\0" * 28 if named else None) for _ in range(count)]
    vector = (_MMsgHdr * count)()
    for message, entry in zip(held, vector, strict=True):
        message.fill(entry.hdr)
    got = must(libc.recvmmsg(sock.fileno(), vector, count, flags, None), "recvmmsg")
    return [held[i].data.raw[: vector[i].len] for i in range(got)]


def recvmsg_unnamed(sock: socket.socket, size: int, flags: int = 0) -> bytes:
    """recvmsg(2) with msg_name NULL."""
    message, hdr = _Message(size, None), _MsgHdr()
    message.fill(hdr)
    got = must(libc.recvmsg(sock.fileno(), ctypes.byref(hdr), flags), "recvmsg")
    return message.data.raw[: min(got, size)]


_SECCOMP_RET_ALLOW, _SECCOMP_RET_ERRNO = 0x7FFF0000, 0x00050000
_CONNECT = {"x86_64": 42, "aarch64": 203}


def deny_connect(error: int = errno.EACCES) -> None:
    """From now on a seccomp filter answers every connect(2) of this process with `error`."""
    _filter(_CONNECT[os.uname().machine], error)


def filter_nothing() -> None:
    """A seccomp filter that lets everything pass."""
    _filter(0xFFFF, errno.EPERM)


def _filter(call: int, error: int) -> None:
    def line(code: int, yes: int, no: int, k: int) -> bytes:
        return struct.pack("=HBBI", code, yes, no, k)

    program = b"".join(
        (
            line(0x20, 0, 0, 0),  # the call's number
            line(0x15, 0, 1, call),
            line(0x06, 0, 0, _SECCOMP_RET_ERRNO | error),
            line(0x06, 0, 0, _SECCOMP_RET_ALLOW),
        )
    )
    filters = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(filters))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    must(libc.prctl(22, 2, fprog, 0, 0), "PR_SET_SECCOMP")
