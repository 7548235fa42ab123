# SPDX-License-Identifier: Apache-2.0
"""UDP workloads: every way to send and to receive, and the rows that must come of each."""

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

IP_RECVERR, IPV6_RECVERR = 11, 25


@dataclass(frozen=True)
class Call:
    """What one call's row must say: payload, peer and its source, flags, errno."""

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
    """A port that nobody listens at."""

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
    """UDP_CORK: the datagram goes by setsockopt(), which is no send."""
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
    ends.ports = [ends.closed]
    ends.sock.connect(ends.to())
    for _ in range(3):
        ends.sock.send(b"first")
        poll_error(ends.sock)
        with suppress(ConnectionRefusedError):
            ends.sock.send(b"second")
    return [ends.own(5), ends.own(0, error=errno.ECONNREFUSED)] * 3


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


COUNT = 11
SENDERS = 3


def datagrams(ports: list[int]) -> list[tuple[int, bytes]]:
    """What is sent to a receiver: which sender, and a text that begins with its port."""
    return [
        (i % SENDERS, ports[i % SENDERS].to_bytes(2, "big") + x(10 + 13 * i)) for i in range(COUNT)
    ]


@dataclass
class Inbox:
    """A bound socket, and the sender whose datagrams are expected if it is connected."""

    kind: Kind
    sock: socket.socket
    connected: bool = False

    def call(self, data: bytes, *flags: str, named: bool, size: int | None = None) -> Call:
        """The row of a call that got `data`, whose first bytes say who sent it."""
        peer = self.kind.shown(self.kind.client, int.from_bytes(data[:2], "big"))
        source = "call" if named else "socket" if self.connected else "none"
        length = len(data) if size is None else size
        return Call(length, peer if source != "none" else "-", source, frozenset(flags))


def recv(inbox: Inbox) -> list[Call]:
    return [inbox.call(inbox.sock.recv(2048), named=False) for _ in range(COUNT)]


def read(inbox: Inbox) -> list[Call]:
    return [inbox.call(os.read(inbox.sock.fileno(), 2048), named=False) for _ in range(COUNT)]


def recvfrom(inbox: Inbox) -> list[Call]:
    return [inbox.call(inbox.sock.recvfrom(2048)[0], named=True) for _ in range(COUNT)]


def recvmsg(inbox: Inbox) -> list[Call]:
    return [inbox.call(inbox.sock.recvmsg(2048)[0], named=True) for _ in range(COUNT)]


def recvmsg_unnamed(inbox: Inbox) -> list[Call]:
    got = [syscalls.recvmsg_unnamed(inbox.sock, 2048) for _ in range(COUNT)]
    return [inbox.call(data, named=False) for data in got]


def recvmmsg(inbox: Inbox) -> list[Call]:
    got = syscalls.recvmmsg(inbox.sock, 7, named=True)
    got += syscalls.recvmmsg(inbox.sock, COUNT - 7, named=True)
    return [inbox.call(data, named=True) for data in got]


def recvmmsg_unnamed(inbox: Inbox) -> list[Call]:
    got = syscalls.recvmmsg(inbox.sock, COUNT, named=False)
    return [inbox.call(data, named=False) for data in got]


def recvmmsg_fewer(inbox: Inbox) -> list[Call]:
    """More room than there are datagrams: the last try of the call is no event."""
    got: list[bytes] = []
    while len(got) < COUNT:
        poll = select.poll()
        poll.register(inbox.sock, select.POLLIN)
        poll.poll()
        got += syscalls.recvmmsg(inbox.sock, COUNT * 2, named=True, flags=socket.MSG_DONTWAIT)
    return [inbox.call(data, "DONTWAIT", named=True) for data in got]


def peek(inbox: Inbox) -> list[Call]:
    calls = []
    for _ in range(COUNT):
        data = inbox.sock.recv(2048, socket.MSG_PEEK)
        assert inbox.sock.recv(2048) == data
        calls += [inbox.call(data, "PEEK", named=False), inbox.call(data, named=False)]
    return calls


def peek_named(inbox: Inbox) -> list[Call]:
    calls = []
    for _ in range(COUNT):
        data, _ = inbox.sock.recvfrom(2048, socket.MSG_PEEK)
        assert inbox.sock.recvfrom(2048)[0] == data
        calls += [inbox.call(data, "PEEK", named=True), inbox.call(data, named=True)]
    return calls


def truncated(inbox: Inbox) -> list[Call]:
    """The caller gets 5 bytes, and asks for the true length every other time."""
    calls = []
    for i in range(COUNT):
        whole = inbox.sock.recv(2048, socket.MSG_PEEK)
        calls.append(inbox.call(whole, "PEEK", named=False))
        if i % 2:
            assert len(inbox.sock.recvfrom(5)[0]) == 5
            calls.append(inbox.call(whole, named=True, size=5))
        else:
            syscalls.recvmsg_unnamed(inbox.sock, 5, socket.MSG_TRUNC)
            calls.append(inbox.call(whole, "TRUNC", named=False))
    return calls


def nothing_there(inbox: Inbox) -> list[Call]:
    """An empty queue is no event: not with MSG_DONTWAIT, not at a timeout."""
    calls = [inbox.call(inbox.sock.recvfrom(2048)[0], named=True) for _ in range(COUNT)]
    inbox.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", 0, 10_000))
    for flags in (socket.MSG_DONTWAIT, 0):
        with suppress(BlockingIOError):
            inbox.sock.recvfrom(2048, flags)
        with suppress(BlockingIOError):
            inbox.sock.recv(2048, flags)
        with suppress(BlockingIOError):
            syscalls.recvmmsg(inbox.sock, 3, named=True, flags=flags)
    return calls


Receive = Callable[[Inbox], list[Call]]
RECEIVES: tuple[Receive, ...] = (
    recv,
    read,
    recvfrom,
    recvmsg,
    recvmsg_unnamed,
    recvmmsg,
    recvmmsg_unnamed,
    recvmmsg_fewer,
    peek,
    peek_named,
    truncated,
    nothing_there,
)


def recv_refused(ends: Ends) -> list[Call]:
    """A connected socket's recv() reports the ICMP error: an event with errno."""
    ends.ports = [ends.closed]
    ends.sock.connect(ends.to())
    for _ in range(3):
        ends.sock.send(b"first")
        poll_error(ends.sock)
        with suppress(ConnectionRefusedError):
            ends.sock.recv(100)
    return [ends.own(0, error=errno.ECONNREFUSED)] * 3


def error_queue(ends: Ends) -> list[Call]:
    """MSG_ERRQUEUE gives the failed datagram back; its name is where that one went."""
    v4 = ends.kind.family == socket.AF_INET
    if v4:
        ends.sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    else:
        ends.sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        if ends.kind.shown_family == "ipv4":
            ends.sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    ends.ports = [ends.closed]
    for _ in range(3):
        ends.sock.sendto(b"first", ends.to())
        poll_error(ends.sock)
        data, _, _, _ = ends.sock.recvmsg(100, 512, socket.MSG_ERRQUEUE)
        assert data == b"first"
        with suppress(ConnectionRefusedError):
            ends.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return [ends.named(5, 0, "ERRQUEUE")] * 3


FAILED_RECEIVES: tuple[Send, ...] = (recv_refused, error_queue)
