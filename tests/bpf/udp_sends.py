# SPDX-License-Identifier: Apache-2.0
"""UDP workloads: every way to send, and the rows that each must produce."""

import errno
import os
import select
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from tests.bpf import syscalls
from tests.bpf.tcp_jobs import Kind


@dataclass(frozen=True)
class Call:
    """The expected row of one call: payload, peer and its source, flags, errno."""

    bytes: int
    peer: str
    source: str
    flags: frozenset[str] = frozenset()
    error: int = 0


@dataclass
class Ends:
    """A socket of a kind and the ports at the other end that it may speak to."""

    kind: Kind
    sock: socket.socket
    ports: list[int]
    closed: int = 0
    """A port without a listener."""

    def to(self, index: int = 0) -> tuple[str, int]:
        return self.kind.server, self.ports[index]

    def shown(self, index: int = 0) -> str:
        return self.kind.shown(self.kind.server, self.ports[index])

    def named(self, size: int, index: int = 0, *flags: str, error: int = 0) -> Call:
        return Call(size, self.shown(index), "call", frozenset(flags), error)

    def own(self, size: int, *flags: str, error: int = 0) -> Call:
        return Call(size, self.shown(), "socket", frozenset(flags), error)

    def corked(self, size: int, *flags: str) -> Call:
        return Call(size, self.shown(), "cork", frozenset(flags))


SIZES = (1, 2, 64, 211, 512, 997, 1400)
"""A prime number of datagrams, none like another."""


def x(size: int) -> bytes:
    return b"x" * size


def send_connected(ends: Ends) -> list[Call]:
    ends.sock.connect(ends.to())
    for size in SIZES:
        ends.sock.send(x(size))
    return [ends.own(size) for size in SIZES]


def send_empty(ends: Ends) -> list[Call]:
    ends.sock.connect(ends.to())
    for _ in range(3):
        ends.sock.send(b"")
    return [ends.own(0)] * 3


def write_connected(ends: Ends) -> list[Call]:
    ends.sock.connect(ends.to())
    for size in SIZES:
        os.write(ends.sock.fileno(), x(size))
    return [ends.own(size) for size in SIZES]


def send_flags(ends: Ends) -> list[Call]:
    ends.sock.connect(ends.to())
    for size in SIZES:
        ends.sock.send(x(size), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    return [ends.own(size, "DONTWAIT", "NOSIGNAL") for size in SIZES]


def sendmsg_connected(ends: Ends) -> list[Call]:
    ends.sock.connect(ends.to())
    for size in SIZES:
        ends.sock.sendmsg([x(size - 1), b"x"])
    return [ends.own(size) for size in SIZES]


def sendmmsg_connected(ends: Ends) -> list[Call]:
    ends.sock.connect(ends.to())
    assert syscalls.sendmmsg(ends.sock, [(x(size), None) for size in SIZES]) == len(SIZES)
    return [ends.own(size) for size in SIZES]


def sendto(ends: Ends) -> list[Call]:
    for index, size in enumerate(SIZES):
        ends.sock.sendto(x(size), ends.to(index % 3))
    return [ends.named(size, index % 3) for index, size in enumerate(SIZES)]


def sendto_elsewhere(ends: Ends) -> list[Call]:
    """On a connected socket the call's address wins."""
    ends.sock.connect(ends.to(0))
    for size in SIZES:
        ends.sock.sendto(x(size), ends.to(1))
        ends.sock.send(x(size))
    return [call for size in SIZES for call in (ends.named(size, 1), ends.own(size))]


def sendmsg(ends: Ends) -> list[Call]:
    for index, size in enumerate(SIZES):
        ends.sock.sendmsg([x(size)], (), 0, ends.to(index % 3))
    return [ends.named(size, index % 3) for index, size in enumerate(SIZES)]


def sendmmsg(ends: Ends) -> list[Call]:
    messages = [(x(size), ends.to(index % 3)) for index, size in enumerate(SIZES)]
    assert syscalls.sendmmsg(ends.sock, messages) == len(SIZES)
    return [ends.named(size, index % 3) for index, size in enumerate(SIZES)]


def sendmmsg_partly(ends: Ends) -> list[Call]:
    """The third message is too long: two go, the third fails, the fourth is not tried."""
    sizes = (5, 7, 70_000, 11)
    messages = [(x(size), ends.to(index % 3)) for index, size in enumerate(sizes)]
    assert syscalls.sendmmsg(ends.sock, messages) == 2
    return [ends.named(5, 0), ends.named(7, 1), ends.named(0, 2, error=errno.EMSGSIZE)]


def cork_more(ends: Ends) -> list[Call]:
    """MSG_MORE: three calls a datagram; what later calls name is ignored."""
    calls = []
    for size in SIZES:
        ends.sock.sendto(x(size), socket.MSG_MORE, ends.to(0))
        ends.sock.sendto(x(size + 1), socket.MSG_MORE, ends.to(1))
        ends.sock.sendto(x(size + 2), ends.to(2))
        calls += [ends.corked(size, "MORE", "CORKED"), ends.corked(size + 1, "MORE", "CORKED")]
        calls.append(ends.corked(size + 2))
    return calls


def cork_connected(ends: Ends) -> list[Call]:
    ends.sock.connect(ends.to())
    calls = []
    for size in SIZES:
        ends.sock.send(x(size), socket.MSG_MORE)
        ends.sock.send(x(size))
        calls += [ends.corked(size, "MORE", "CORKED"), ends.corked(size)]
    return calls


def cork_mmsg(ends: Ends) -> list[Call]:
    """All messages of one sendmmsg(MSG_MORE) are parts of one datagram."""
    messages = [(x(size), ends.to(index % 3)) for index, size in enumerate((3, 5, 7))]
    assert syscalls.sendmmsg(ends.sock, messages, socket.MSG_MORE) == 3
    ends.sock.sendto(b"end", ends.to(2))
    return [*(ends.corked(size, "MORE", "CORKED") for size in (3, 5, 7)), ends.corked(3)]


def cork_option(ends: Ends) -> list[Call]:
    """UDP_CORK: setsockopt() sends the datagram, and is not a send call."""
    calls = []
    for size in SIZES:
        ends.sock.setsockopt(socket.IPPROTO_UDP, syscalls.UDP_CORK, 1)
        ends.sock.sendto(x(size), ends.to(0))
        ends.sock.sendto(x(size), ends.to(1))
        ends.sock.setsockopt(socket.IPPROTO_UDP, syscalls.UDP_CORK, 0)
        calls += [ends.corked(size, "CORKED")] * 2
    return calls


def segment_option(ends: Ends) -> list[Call]:
    """UDP_SEGMENT: one call, several datagrams, one row."""
    ends.sock.setsockopt(socket.IPPROTO_UDP, syscalls.UDP_SEGMENT, 500)
    for size in (499, 501, 1777):
        ends.sock.sendto(x(size), ends.to())
    return [ends.named(size) for size in (499, 501, 1777)]


def segment_cmsg(ends: Ends) -> list[Call]:
    control = [(socket.IPPROTO_UDP, syscalls.UDP_SEGMENT, struct.pack("=H", 300))]
    for size in (299, 301, 1777):
        ends.sock.sendmsg([x(size)], control, 0, ends.to())
    return [ends.named(size) for size in (299, 301, 1777)]


def too_long(ends: Ends) -> list[Call]:
    for _ in range(3):
        with suppress(OSError):
            ends.sock.sendto(x(70_000), ends.to())
    return [ends.named(0, error=errno.EMSGSIZE)] * 3


def nowhere(ends: Ends) -> list[Call]:
    """No address at all."""
    for _ in range(3):
        with suppress(OSError):
            ends.sock.send(b"x")
    return [Call(0, "-", "none", error=errno.EDESTADDRREQ)] * 3


def send_refused(ends: Ends) -> list[Call]:
    """The answer to the first datagram, an ICMP error, fails the second call."""
    refused(ends, lambda: ends.sock.send(b"second"))
    return [ends.own(5), ends.own(0, error=errno.ECONNREFUSED)] * 3


def refused(ends: Ends, call: Callable[[], object]) -> None:
    """Three times: a datagram to a closed port, and a call that its ICMP error fails."""
    ends.ports = [ends.closed]
    ends.sock.connect(ends.to())
    for _ in range(3):
        ends.sock.send(b"first")
        poll_error(ends.sock)
        with suppress(ConnectionRefusedError):
            call()


def poll_error(sock: socket.socket) -> None:
    poll = select.poll()
    poll.register(sock, 0)
    assert poll.poll(10_000)


Send = Callable[[Ends], list[Call]]
SENDS: tuple[Send, ...] = (
    send_connected,
    send_empty,
    write_connected,
    send_flags,
    sendmsg_connected,
    sendmmsg_connected,
    sendto,
    sendto_elsewhere,
    sendmsg,
    sendmmsg,
    sendmmsg_partly,
    cork_more,
    cork_connected,
    cork_mmsg,
    cork_option,
    segment_option,
    segment_cmsg,
    too_long,
    nowhere,
    send_refused,
)
