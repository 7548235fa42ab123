# SPDX-License-Identifier: Apache-2.0
"""Connection attempts without an answer at the end: each has one row, with its peer."""

import errno
import os
import resource
import socket
from pathlib import Path

import numpy as np
import pytest

from ktrace_agent.host.inet import address_text
from ktrace_agent.kernel.collector import Collector
from ktrace_agent.kernel.spool import Spool
from ktrace_agent.tables.records import EVENT
from ktrace_api.capture import CaptureConfig
from tests.bpf import syscalls
from tests.bpf.conftest import Begin
from tests.bpf.namespaces import Namespace
from tests.bpf.tcp_jobs import local_port, tcp
from tests.bpf.workers import Job, Line

pytestmark = pytest.mark.world("bpf")

SILENT, OTHER = ("127.0.0.9", 7701), ("127.0.0.2", 7702)
MANY = 1009
"""More than four times what the kernel's buffer of an iterator holds."""
FEW = 211


@pytest.fixture(scope="module")
def mute(alone: Namespace) -> Namespace:
    """A namespace in which these ports never answer."""
    alone.mute(SILENT[1], OTHER[1])
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
    local = {local_port(row) for row in rows}
    assert len(local) == len(rows)
    assert local <= set(ports)
    expected = MANY / 7 if flags else MANY
    assert abs(len(rows) - expected) < (2 if flags else 1)


def swapping(line: Line) -> None:
    """Connect; on request close all sockets and connect elsewhere, in the same memory."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    held = ask(SILENT, FEW)
    line.say([sock.getsockname()[1] for sock in held])
    if closed := line.hear():
        for sock in held:
            sock.close()
        held = ask(OTHER, FEW * 2)
    line.say(closed)
    line.hear()


@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
def test_a_socket_that_is_gone_has_its_own_peer(
    mute: Namespace, tmp_path: Path, closed: bool
) -> None:
    """Its memory may be the next socket's by the time it is listed."""
    collector = Collector(CaptureConfig(node="test", ports=(SILENT[1],)), cgroup_v1=False)
    try:
        spool = Spool(collector.ring_fd, tmp_path)
        collector.attach()
        collector.iterate("prime_owners")
        worker = mute.start(swapping)
        ports = worker.hear()
        collector.detach()
        worker.say(closed)
        assert worker.hear() == closed
        spool.finish()
        before = spool.records
        collector.iterate("list_pending")
        spool.drain()
        rows = np.frombuffer(Path(f"/proc/self/fd/{spool.fd}").read_bytes(), EVENT)[before:]
        rows = rows[rows["tgid"] == worker.tgid]
        spool.close()
    finally:
        collector.close()
    worker.kill()
    hosts = [address_text(bytes(address)) for address in rows["remote_addr"]]
    peers = set(zip(hosts, rows["remote_port"].tolist(), strict=True))
    assert peers == {SILENT}
    assert len(rows) == FEW
    assert set(rows["ns_net"]) == {mute.inode}
    local = set(rows["local_port"].tolist())
    assert local == set(ports) if not closed else local <= {0, *ports}
