# SPDX-License-Identifier: Apache-2.0
"""UDP workloads: every way to receive, and the rows that each must produce."""

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
from tests.bpf.udp_sends import Call, Ends, Send, poll_error, refused, x

IP_RECVERR, IPV6_RECVERR = 11, 25
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
        """The row of a call that received `data`, whose first bytes name the sender."""
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
    """The array is larger than the queue: the last attempt of the call is not an event."""
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
    """An empty queue is not an event: not with MSG_DONTWAIT, not at a timeout."""
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
    refused(ends, lambda: ends.sock.recv(100))
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
