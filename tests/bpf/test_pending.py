# SPDX-License-Identifier: Apache-2.0
"""Connects without an answer at the end: each is told once, with the peer that it asked."""

import errno
import resource
import socket

import pytest

from tests.bpf import syscalls
from tests.bpf.conftest import Begin
from tests.bpf.namespaces import Namespace
from tests.bpf.tcp_jobs import tcp
from tests.bpf.workers import Job, Line

pytestmark = pytest.mark.world("bpf")

SILENT = ("127.0.0.9", 7701)
MANY = 1009
"""More than four times what the kernel's buffer of an iterator holds."""


@pytest.fixture(scope="module")
def mute(alone: Namespace) -> Namespace:
    """A namespace in which a port never answers."""
    alone.mute(SILENT[1])
    return alone


def ask(address: tuple[str, int], count: int) -> list[socket.socket]:
    socks = [tcp() for _ in range(count)]
    for sock in socks:
        sock.setblocking(False)
        assert syscalls.connect(sock, address) == errno.EINPROGRESS
    return socks


def waiting(count: int) -> Job:
    def job(line: Line) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
        held = ask(SILENT, count)
        line.say([sock.getsockname()[1] for sock in held])
        line.hear()

    return job


@pytest.mark.parametrize("flags", [(), ("--sample=7",)], ids=["all", "sample"])
def test_each_is_counted_once(capture: Begin, mute: Namespace, flags: tuple[str, ...]) -> None:
    """The kernel must not run the program again for what did not fit its buffer."""
    with capture("--with-retransmits=false", f"--ports={SILENT[1]}", *flags) as one:
        worker = mute.start(waiting(MANY))
        ports = worker.hear()
    worker.kill()
    rows = one.of("connect", tgid=worker.tgid)
    assert one.summary["accounting"]["connect"]["seen"] == MANY
    assert {row["result"] for row in rows} == {"pending"}
    local = {int(row["tuple"].split(" -> ")[0].rpartition(":")[2]) for row in rows}
    assert len(local) == len(rows)
    assert local <= set(ports)
    expected = MANY / 7 if flags else MANY
    assert abs(len(rows) - expected) < (2 if flags else 1)
