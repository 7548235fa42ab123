# SPDX-License-Identifier: Apache-2.0
"""Entries put into connection tracking by netlink, without any traffic.

Numbers: include/uapi/linux/netfilter/nfnetlink_conntrack.h.
"""

import socket
import struct
from collections.abc import Iterator
from itertools import islice

_NEW, _CREATE = (1 << 8) | 0, 0x1 | 0x400
_TCP, _UDP = 6, 17
_BATCH = 100
ESTABLISHED, TIME_WAIT = 3, 7


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _nest(kind: int, *parts: bytes) -> bytes:
    return _attribute(kind | 0x8000, b"".join(parts))


def _tuple(kind: int, proto: int, src: bytes, sport: int, dst: bytes, dport: int) -> bytes:
    first = 1 if len(src) == 4 else 3
    return _nest(
        kind,
        _nest(1, _attribute(first, src), _attribute(first + 1, dst)),
        _nest(
            2,
            _attribute(1, bytes([proto])),
            _attribute(2, struct.pack(">H", sport)),
            _attribute(3, struct.pack(">H", dport)),
        ),
    )


def message(
    proto: int,
    client: tuple[bytes, int],
    asked: tuple[bytes, int],
    answering: tuple[bytes, int],
    *,
    state: int = ESTABLISHED,
    zone: int = 0,
    timeout_s: int = 600,
) -> bytes:
    """A message that makes one entry: client asked one end, another end answers."""
    body = struct.pack("=BBH", socket.AF_INET if len(client[0]) == 4 else socket.AF_INET6, 0, 0)
    body += _tuple(1, proto, *client, *asked) + _tuple(2, proto, *answering, *client)
    body += _attribute(7, struct.pack(">I", timeout_s))
    if zone:
        body += _attribute(18, struct.pack(">H", zone))
    if proto == _TCP:
        body += _nest(4, _nest(1, _attribute(1, bytes([state]))))
    return struct.pack("=IHHII", 16 + len(body), _NEW, _CREATE, 0, 0) + body


def many(count: int) -> Iterator[bytes]:
    """Messages for `count` different entries: half TCP, every fourth IPv6, every third DNAT."""
    for number in range(count):
        proto = _TCP if number % 2 else _UDP
        host, port = divmod(number, 20_000)
        if number % 4 == 0:
            client = socket.inet_pton(socket.AF_INET6, f"fd00::{host + 1:x}")
            asked, backend = (socket.inet_pton(socket.AF_INET6, f"fd01::{n}") for n in (1, 2))
        else:
            client = bytes((10, 9, host // 250, host % 250 + 1))
            asked, backend = bytes((10, 96, 0, 10)), bytes((10, 8, 0, 2))
        answering = (backend, 8080) if number % 3 == 0 else (asked, 80)
        yield message(proto, (client, 20_000 + port), (asked, 80), answering)


def put(messages: Iterator[bytes]) -> int:
    """Put them into the table of the calling thread's network namespace; how many there were."""
    count = 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 12) as netlink:
        netlink.settimeout(10)
        while batch := list(islice(messages, _BATCH)):
            netlink.send(b"".join(batch))
            count += len(batch)
        netlink.setblocking(False)
        try:
            answer = netlink.recv(65536)
        except BlockingIOError:
            return count
    raise OSError(f"the kernel refused an entry: {answer.hex()}")
