# SPDX-License-Identifier: Apache-2.0
"""Netlink requests in the calling thread's network namespace.

Standard library only: this runs while BPF programs are attached, and pyroute2 would add 27 MiB
and 0.4 s to the agent. Numbers: include/uapi/linux/netlink.h, rtnetlink.h, if_addr.h.
"""

import errno
import os
import socket
import struct
import time
from collections.abc import Iterator
from enum import StrEnum

from ktrace_agent.host.inet import MAPPED

NETFILTER, ROUTE = 12, 0
"""Netlink protocols."""
ACK, DUMP = 0x4, 0x300

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_REQUEST, _ERROR, _DONE = 1, 2, 3
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_BODIES = {NETFILTER: b"\0" * 4, ROUTE: b"\0" * 8}
"""struct nfgenmsg and ifaddrmsg, for every address family."""
_RECEIVE_BYTES = 1 << 16
DEADLINE_PASSED = "the dump did not finish before its deadline"
KIND_MASK = 0x3FFF
"""Type of an attribute without its flags (NLA_TYPE_MASK)."""


class Lack(StrEnum):
    """Why entries or counters are missing."""

    ABSENT = "absent"
    """The kernel has no connection tracking, or its module is not loaded."""
    DENIED = "denied"
    """CAP_NET_ADMIN in the namespace, or CAP_SYS_ADMIN to enter it, is missing."""
    VANISHED = "vanished"
    """The namespace was removed."""
    TOO_LATE = "too_late"
    """The deadline of a dump passed."""
    TOO_MANY = "too_many"
    """The limit of entries or namespaces was reached."""
    UNREADABLE = "unreadable"
    """Any other read error."""


class NetlinkFailed(Exception):
    """A dump failed before its end; the messages before that are valid."""

    def __init__(self, lack: Lack, detail: str) -> None:
        super().__init__(detail)
        self.lack = lack


def explain(problem: OSError) -> Lack:
    """Classifies the errno of a netlink, /proc or setns call."""
    if problem.errno in (errno.EPERM, errno.EACCES):
        return Lack.DENIED
    if problem.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP,
                         errno.EINVAL, errno.ENOENT):  # fmt: skip
        return Lack.ABSENT
    if problem.errno == errno.ESRCH:
        return Lack.VANISHED
    return Lack.UNREADABLE


def _request(protocol: int, kind: int, flags: int, deadline: float) -> Iterator[bytes]:
    """Sends one request and yields the datagrams of the answer, each of whole messages."""
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
    ) as netlink:
        netlink.bind((0, 0))
        body = _BODIES[protocol]
        length = _HEADER.size + len(body)
        netlink.send(_HEADER.pack(length, kind, _REQUEST | flags, 1, 0) + body)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise NetlinkFailed(Lack.TOO_LATE, DEADLINE_PASSED)
            netlink.settimeout(left)
            yield netlink.recv(_RECEIVE_BYTES)


def messages(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields the type, the start of the payload and the end of each message.

    The last message of a dump has the type NLMSG_DONE. Raises OSError for an error message of
    the kernel.
    """
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
        end = offset + length
        if length < _HEADER.size or end > len(data):
            raise NetlinkFailed(Lack.UNREADABLE, "netlink message with an invalid length")
        start = offset + _HEADER.size
        if kind in (_ERROR, _DONE) and end - start >= 4:
            (code,) = struct.unpack_from("=i", data, start)
            if code < 0:
                raise OSError(-code, f"netlink: {os.strerror(-code)}")
        yield kind, start, end
        offset += (length + 3) & ~3


def answers(protocol: int, kind: int, flags: int, deadline: float) -> Iterator[
    tuple[int, bytes, int, int]
]:  # fmt: skip
    """Yields the type, the buffer, and the payload's start and end of each message of an answer.

    Raises NetlinkFailed.
    """
    try:
        for data in _request(protocol, kind, flags, deadline):
            for answer, start, end in messages(data):
                if answer in (_ERROR, _DONE):
                    return
                yield answer, data, start, end
    except TimeoutError:
        raise NetlinkFailed(Lack.TOO_LATE, DEADLINE_PASSED) from None
    except OSError as problem:
        raise NetlinkFailed(explain(problem), str(problem)) from problem


def attributes(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields the type without flags, and the value's start and end, of each attribute."""
    while at + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4 or at + length > end:
            return
        yield kind & KIND_MASK, at + 4, at + length
        at += (length + 3) & ~3


def addresses(deadline: float) -> set[bytes]:
    """Returns the addresses of this namespace, 16 bytes each. Raises NetlinkFailed."""
    found = set()
    for answer, data, start, end in answers(
        ROUTE, _RTM_GETADDR, DUMP, deadline
    ):  # fmt: skip
        if answer != _RTM_NEWADDR:
            continue
        values = {k: data[a:b] for k, a, b in attributes(data, start + 8, end) if k in (1, 2)}
        address = values.get(2) or values.get(1) or b""  # IFA_LOCAL, or IFA_ADDRESS alone
        if len(address) in (4, 16):
            found.add(address if len(address) == 16 else MAPPED + address)
    return found
