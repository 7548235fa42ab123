# SPDX-License-Identifier: Apache-2.0
"""Datagrams whose sender's address is written only when the call returns: recvmmsg() continues
until its array is full, and the capture may end before that.
"""

import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ktrace_agent.kernel.collector import Collector
from ktrace_agent.kernel.spool import Spool
from ktrace_agent.tables.records import EVENT
from ktrace_api.capture import CaptureConfig
from ktrace_api.names import RowType
from tests.bpf import syscalls
from tests.bpf.conftest import Begin
from tests.bpf.namespaces import Namespace
from tests.bpf.workers import Job, Line, Worker, wait_until

pytestmark = pytest.mark.world("bpf")

PORT = 7731
COUNT = 23
CAPACITY = 64
"""More than are sent: the call stays."""
BYTES = 31


def blocked(kind: str, connected: bool) -> Job:
    """A server whose one call takes COUNT datagrams and waits for more."""

    def job(line: Line) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", PORT))
            line.say(syscalls.cookie(sock))
            peer = line.hear()
            if connected:
                sock.connect(("127.0.0.1", peer))
            line.say("ready")
            syscalls.recvmmsg(sock, CAPACITY, named=kind == "named")

    return job


def sending(count: int) -> Job:
    def job(line: Line) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            line.say(sock.getsockname()[1])
            line.hear()
            for _ in range(count):
                sock.sendto(b"x" * BYTES, ("127.0.0.1", PORT))

    return job


def read_all(namespace: Namespace) -> bool:
    """Whether nothing waits in a UDP socket of the namespace."""
    lines = Path(f"/proc/{namespace.pid}/net/udp").read_text().splitlines()[1:]
    return all(line.split()[4].endswith(":00000000") for line in lines)


@pytest.mark.parametrize("connected", [False, True], ids=["open", "connected"])
@pytest.mark.parametrize("kind", ["named", "unnamed"])
def test_a_call_that_outlives_the_capture(
    capture: Begin, alone: Namespace, kind: str, connected: bool
) -> None:
    """The sender of its last datagram is not known yet where the socket has no peer."""
    with capture(f"--ports={PORT}") as one:
        server = alone.start(blocked(kind, connected))
        cookie = server.hear()
        source = alone.start(sending(COUNT))
        port = source.hear()
        server.say(port)
        assert server.hear() == "ready"
        source.say("go")
        source.result()
        wait_until(lambda: read_all(alone), "the server taking all")
    rows = one.of("udp_recv", tgid=server.tgid)
    server.kill()
    assert one.summary["complete"]
    assert one.kept("udp_recv") == len(rows) == COUNT
    assert {row["bytes"] for row in rows} == {BYTES}
    assert {row["sock"] for row in rows} == {f"{cookie:#x}"}
    assert {row["owner_source"] for row in rows} == {"process"}
    talker = one.talkers()[server.tgid]
    assert (talker["rx_bytes"], talker["rx_calls"]) == (COUNT * BYTES, COUNT)
    peers = [row["tuple"].split(" -> ")[1] for row in rows]
    known = connected or kind == "named"
    assert peers[:-1] == [f"127.0.0.1:{port}" if known else "-"] * (COUNT - 1)
    assert peers[-1] == (f"127.0.0.1:{port}" if connected else "-")


def again(line: Line) -> None:
    """Three calls of five datagrams."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", PORT))
        for _ in range(15):
            sock.sendto(b"x" * BYTES, ("127.0.0.1", PORT))
        for _ in range(3):
            assert len(syscalls.recvmmsg(sock, 5, named=True)) == 5


def test_a_call_whose_return_went_unseen(alone: Namespace, tmp_path: Path) -> None:
    """The next call of the thread, or the end, finds what it left."""
    collector = Collector(CaptureConfig(node="test", ports=(PORT,)), cgroup_v1=False)
    collector.choices = tuple(
        replace(choice, programs=tuple(n for n in choice.programs if n != "exit_recvmmsg"))
        for choice in collector.choices
    )
    try:
        spool = Spool(collector.ring_fd, tmp_path)
        collector.attach()
        worker: Worker = alone.start(again)
        worker.result()
        collector.detach()
        collector.iterate("list_held")
        spool.finish()
        rows = np.frombuffer(Path(f"/proc/self/fd/{spool.fd}").read_bytes(), EVENT)
        counted = collector.counters()[RowType.UDP_RECV]
        spool.close()
    finally:
        collector.close()
    received = rows[(rows["type"] == 2) & (rows["tgid"] == worker.tgid)]
    assert len(received) == 15
    assert counted.seen == counted.written + counted.filtered
    assert counted.written == 15
