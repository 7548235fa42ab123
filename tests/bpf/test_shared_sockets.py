# SPDX-License-Identifier: Apache-2.0
"""Sockets that several processes hold: the process that used it last is the owner."""

import os
import socket

import pytest

from tests.bpf import syscalls
from tests.bpf.conftest import Begin
from tests.bpf.namespaces import Pair
from tests.bpf.tcp_jobs import CLIENT_STATES, V4, owners, states, tcp
from tests.bpf.workers import Job, Line, Worker, fork

pytestmark = [pytest.mark.world("bpf"), pytest.mark.usefixtures("sink")]

PORT = 7311


def inherit(send: bool, close_first: bool) -> Job:
    """Connect, fork, perhaps send in the child; the last to close ends the connection."""

    def job(line: Line) -> tuple[int, int]:
        sock = tcp()
        sock.connect((V4.server, PORT))
        cookie = syscalls.cookie(sock)
        line.say("connected")
        line.hear()
        ours, theirs = socket.socketpair()

        def use() -> None:
            theirs.recv(1)
            if send:
                sock.send(b"x")
            sock.close()

        child = fork(use)
        if close_first:
            sock.close()
        ours.send(b"g")
        os.waitpid(child, 0)
        sock.close()
        return cookie, child

    return job


@pytest.mark.parametrize("close_first", [True, False], ids=["closed", "kept"])
@pytest.mark.parametrize("send", [True, False], ids=["sent", "idle"])
def test_inherited(capture: Begin, pair: Pair, send: bool, close_first: bool) -> None:
    with capture() as one:
        worker = pair.client.start(inherit(send, close_first))
        worker.hear()
        worker.say("fork")
        cookie, child = worker.result()
        pair.wait_quiet()
    rows = [row for row in one.of_socket(cookie) if row["type"] == "tcp_state"]
    assert states(rows) == CLIENT_STATES
    last = child if send else worker.tgid
    assert owners(rows) == [worker.tgid] * 2 + [last] * 3


def test_inherited_before(capture: Begin, pair: Pair) -> None:
    """Held by parent and child at the start: the parent's, the child's once it sends."""
    ran: dict[bool, tuple[Worker, int, int]] = {}

    def job(send: bool) -> Job:
        def both(line: Line) -> tuple[int, int]:
            sock = tcp()
            sock.connect((V4.server, PORT))
            ours, theirs = socket.socketpair()

            def use() -> None:
                theirs.recv(1)
                if send:
                    sock.send(b"x")

            child = fork(use)
            line.say("forked")
            line.hear()
            ours.send(b"g")
            os.waitpid(child, 0)
            cookie = syscalls.cookie(sock)
            sock.close()
            return cookie, child

        return both

    # The sink serves one connection at a time: the second waits in its backlog meanwhile.
    workers = {send: pair.client.start(job(send)) for send in (True, False)}
    for worker in workers.values():
        worker.hear()
    with capture() as one:
        for send, worker in workers.items():
            worker.say("go")
            ran[send] = (worker, *worker.result())
        pair.wait_quiet()
    for send, (worker, cookie, child) in ran.items():
        rows = one.of_socket(cookie)
        assert states(rows) == CLIENT_STATES[2:]
        assert owners(rows) == [child if send else worker.tgid] * 3


@pytest.mark.parametrize("use", [True, False], ids=["used", "only-held"])
def test_passed(capture: Begin, pair: Pair, use: bool) -> None:
    """Over a unix socket: the receiver owns the socket once it uses it."""
    path = f"\0ktrace-test-{os.getpid()}"

    def take_over(line: Line) -> int:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            server.bind(path)
            server.listen()
            line.say("ready")
            with server.accept()[0] as connection:
                _, fds, _, _ = socket.recv_fds(connection, 1, 1)
            with socket.socket(fileno=fds[0]) as sock:
                if use:
                    sock.send(b"x")
                line.say("taken")
                line.hear()
                return syscalls.cookie(sock)

    def give(line: Line) -> None:
        with tcp() as sock, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            sock.connect((V4.server, PORT))
            channel.connect(path)
            socket.send_fds(channel, [b"x"], [sock.fileno()])

    with capture() as one:
        taker = pair.client.start(take_over)
        taker.hear()
        giver = pair.client.start(give)
        giver.result()
        taker.hear()
        taker.say("close")
        cookie = taker.result()
        pair.wait_quiet()
    rows = [row for row in one.of_socket(cookie) if row["type"] == "tcp_state"]
    assert states(rows) == CLIENT_STATES
    assert owners(rows) == [giver.tgid] * 2 + [taker.tgid if use else giver.tgid] * 3
