# SPDX-License-Identifier: Apache-2.0
"""Fill the connection tracking table of a namespace through ctnetlink."""

import socket
import struct

from tests.bpf.workers import Job, Line

NETLINK_NETFILTER = 12
_SO_SNDBUFFORCE = 32
_NEW, _REQUEST, _CREATE = 0x0100, 0x0001, 0x0400
"""NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW, and NLM_F_ flags."""
_NESTED = 0x8000
_ORIGINAL, _REPLY, _STATUS, _TIMEOUT = 1, 2, 3, 7
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_SEEN_REPLY, _ASSURED, _CONFIRMED = 0x2, 0x4, 0x8
_BATCH = 512


def _attribute(kind: int, value: bytes) -> bytes:
    padding = b"\0" * (-len(value) % 4)
    return struct.pack("=HH", 4 + len(value), kind) + value + padding


def _tuple(kind: int, source: bytes, target: bytes, ports: tuple[int, int]) -> bytes:
    addresses = _attribute(1, source) + _attribute(2, target)
    protocol = _attribute(1, bytes([socket.IPPROTO_UDP])) + b"".join(
        _attribute(number, struct.pack(">H", port)) for number, port in enumerate(ports, 2)
    )
    return _attribute(
        kind | _NESTED,
        _attribute(_TUPLE_IP | _NESTED, addresses) + _attribute(_TUPLE_PROTO | _NESTED, protocol),
    )


def _entry(number: int) -> bytes:
    """A request to make one assured UDP entry that stays for ten minutes."""
    source = socket.inet_aton(f"198.18.{number >> 16}.1")
    target = socket.inet_aton("198.19.0.1")
    port = number & 0xFFFF
    body = (
        struct.pack(">BBH", socket.AF_INET, 0, 0)
        + _tuple(_ORIGINAL, source, target, (port, 9))
        + _tuple(_REPLY, target, source, (9, port))
        + _attribute(_STATUS, struct.pack(">I", _SEEN_REPLY | _ASSURED | _CONFIRMED))
        + _attribute(_TIMEOUT, struct.pack(">I", 600))
    )
    return struct.pack("=IHHII", 16 + len(body), _NEW, _REQUEST | _CREATE, number, 0) + body


def fill(count: int) -> Job:
    """Make `count` entries; what the kernel refuses is not reported, the caller counts."""

    def job(line: Line) -> None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
            sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 1 << 22)
            sock.bind((0, 0))
            for start in range(0, count, _BATCH):
                numbers = range(start, min(start + _BATCH, count))
                sock.sendto(b"".join(map(_entry, numbers)), (0, 0))

    return job
