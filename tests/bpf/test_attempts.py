# SPDX-License-Identifier: Apache-2.0
"""Attempts on one socket: a row describes its own attempt, and an attempt that has not sent a SYN
has no outcome.
"""

import errno
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

from tests.bpf import syscalls
from tests.bpf.captures import Capture
from tests.bpf.conftest import Begin
from tests.bpf.namespaces import Namespace
from tests.bpf.tcp_jobs import discard, local_port, states, tcp
from tests.bpf.workers import Line

pytestmark = pytest.mark.world("bpf")

HOME = "127.0.0.1"
OPEN, SILENT, CLOSED = 7711, 7712, 7713
NOWHERE = ("192.0.2.1", 7714)
CLIENT_NO_COOKIE = 5
"""net.ipv4.tcp_fastopen: a client, which needs no cookie to wait for the first data."""


@pytest.fixture(scope="module")
def net(alone: Namespace) -> Namespace:
    alone.sysctl("net.ipv4.tcp_fastopen", str(CLIENT_NO_COOKIE))
    alone.mute(SILENT)
    alone.start(discard(OPEN)).hear()
    return alone


def refused_then(second: tuple[str, int], error: int) -> Callable[[Line], tuple[int, int]]:
    """Two attempts; the socket's cookie and the port of the first."""

    def job(line: Line) -> tuple[int, int]:
        with tcp() as sock:
            assert syscalls.connect(sock, (HOME, CLOSED)) == errno.ECONNREFUSED
            assert syscalls.connect(sock, second) == error
            return syscalls.cookie(sock), 0

    return job


def test_a_second_attempt_has_a_port_of_its_own(capture: Begin, net: Namespace) -> None:
    """The one before it leaves its port in the socket."""
    with capture() as one:
        cookie, _ = net.call(refused_then((HOME, CLOSED), errno.ECONNREFUSED))
        lost, _ = net.call(refused_then(NOWHERE, errno.ENETUNREACH))
    rows = [row for row in one.of_socket(cookie) if row["type"] == "tcp_state"]
    assert states(rows) == (("CLOSE", "SYN_SENT"), ("SYN_SENT", "CLOSE")) * 2
    first, ended, second, ended_again = map(local_port, rows)
    assert (first, second) == (ended, ended_again)
    assert len({0, ended, ended_again}) == 3
    connects = [row for row in one.of_socket(cookie) if row["type"] == "connect"]
    assert [local_port(row) for row in connects] == [ended, ended_again]
    refused, unreachable = (row for row in one.of_socket(lost) if row["type"] == "connect")
    assert local_port(refused)
    assert unreachable["error"] == "ENETUNREACH"
    assert local_port(unreachable) == 0


@dataclass
class Deferred:
    """A connect() that succeeds and sends nothing until there are data, and its result."""

    port: int
    sends: bool
    result: str | None
    closes: bool = False
    error: str = "-"

    def __call__(self, line: Line) -> int:
        with tcp() as sock:
            sock.setsockopt(socket.IPPROTO_TCP, syscalls.TCP_FASTOPEN_CONNECT, 1)
            sock.setblocking(False)
            assert syscalls.connect(sock, (HOME, self.port)) == 0
            if self.sends:
                with suppress(BlockingIOError):
                    sock.send(b"early")
                if self.port != SILENT:
                    sock.setblocking(True)
                    with suppress(OSError):
                        sock.sendall(b"later")
            cookie = syscalls.cookie(sock)
            if self.closes:
                return cookie
            line.say(cookie)
            line.hear()
            return cookie


DEFERRED = {
    "silent": Deferred(SILENT, sends=True, result="pending"),
    "given-up": Deferred(SILENT, sends=True, result="abandoned", closes=True),
    "open": Deferred(OPEN, sends=True, result="established"),
    "refused": Deferred(CLOSED, sends=True, result="failed", closes=True, error="ECONNREFUSED"),
    "unsent": Deferred(SILENT, sends=False, result=None),
    "unsent-closed": Deferred(SILENT, sends=False, result=None, closes=True),
}


@dataclass
class Scene:
    capture: Capture
    tgids: dict[str, int]


@pytest.fixture(scope="module")
def deferred(capture: Begin, net: Namespace) -> Scene:
    one, workers = capture(), dict[str, Any]()
    with one:
        for name, case in DEFERRED.items():
            workers[name] = net.start(case)
            _ = workers[name].result() if case.closes else workers[name].hear()
    for worker in workers.values():
        worker.kill()
    return Scene(one, {name: worker.tgid for name, worker in workers.items()})


@pytest.mark.parametrize("name", DEFERRED)
def test_a_syn_that_waits_for_data_is_no_outcome(deferred: Scene, name: str) -> None:
    case, tgid = DEFERRED[name], deferred.tgids[name]
    rows = deferred.capture.of("connect", tgid=tgid)
    assert [(row["result"], row["error"]) for row in rows] == (
        [(case.result, case.error)] if case.result else []
    )
    # The time from the call to the first data is the process's, not the network's.
    assert {row["duration_us"] for row in rows} <= {"-"}
    talker = deferred.capture.talkers().get(tgid, {"opened": 0, "failed": 0})
    assert talker["opened"] == (case.result == "established")
    assert talker["failed"] == (case.result in ("failed", "abandoned"))
