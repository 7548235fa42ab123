# SPDX-License-Identifier: Apache-2.0
"""Connection latency behind a relay that delays every SYN by a known time, compared with the
client's own clock."""

import errno
import fcntl
import heapq
import os
import select
import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass

import pytest

from tests.bpf import syscalls
from tests.bpf.captures import Capture
from tests.bpf.conftest import Begin
from tests.bpf.namespaces import Namespace
from tests.bpf.tcp_jobs import V4, accept_all
from tests.bpf.workers import Crew, Job, Line, Worker

pytestmark = pytest.mark.world("bpf")

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
SYN, ACK = 0x02, 0x10
DELAYS_MS = {7401: 0, 7402: 5, 7403: 23, 7404: 61}
"""By the server's port. What arrives at CLOSED is held too, and refused."""
CLOSED = 7409
CLOSED_DELAY_MS = 23
COUNT = 53


def at_once() -> None:
    """Run when woken, whatever else the machine does: the clock is that of the network then."""
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def open_tun(pid: int, name: str) -> int:
    """A tun device in the namespace of `pid`; its packets are this descriptor's."""
    syscalls.enter_netns(pid)
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return fd


def held_ns(packet: bytes) -> int:
    """How long to hold a packet: SYNs of clients by their port, all others not at all."""
    tcp = (packet[0] & 15) * 4
    if packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP or len(packet) < tcp + 20:
        return 0
    if packet[tcp + 13] & (SYN | ACK) != SYN:
        return 0
    port = int.from_bytes(packet[tcp + 2 : tcp + 4], "big")
    return {**DELAYS_MS, CLOSED: CLOSED_DELAY_MS}.get(port, 0) * 1_000_000


def relay(client: int, server: int) -> Job:
    """Carries packets between two tun devices."""

    def job(line: Line) -> None:
        at_once()
        left, right = open_tun(client, "tun0"), open_tun(server, "tun0")
        line.say("open")
        waiting: list[tuple[int, int, int, bytes]] = []
        count = 0
        while True:
            now = time.monotonic_ns()
            while waiting and waiting[0][0] <= now:
                _, _, target, packet = heapq.heappop(waiting)
                os.write(target, packet)
            timeout = (waiting[0][0] - now) / 1e9 if waiting else None
            for source in select.select([left, right], [], [], timeout)[0]:
                packet = os.read(source, 65536)
                now = time.monotonic_ns()
                target = right if source == left else left
                count += 1
                heapq.heappush(waiting, (now + held_ns(packet), count, target, packet))

    return job


@dataclass
class Wire:
    client: Namespace
    server: Namespace


@pytest.fixture(scope="module")
def wire(crew: Crew) -> Wire:
    ends = Wire(Namespace(crew), Namespace(crew))
    for namespace in (ends.client, ends.server):
        # Nothing speaks before both ends are up: the relay could not write to the other.
        namespace.sysctl("net.ipv6.conf.default.disable_ipv6", "1")
    worker = crew.start(relay(ends.client.pid, ends.server.pid))
    assert worker.hear() == "open"
    for namespace, own, peer in (
        (ends.client, V4.client, V4.server),
        (ends.server, V4.server, V4.client),
    ):
        namespace.ip(f"addr add {own} peer {peer}/32 dev tun0", "link set tun0 up")
    return ends


Timed = dict[int, int]
"""Cookie -> microseconds by the client's clock."""


def time_connects(port: int, count: int, *, blocking: bool, expected: int = 0) -> Job:
    def job(line: Line) -> Timed:
        at_once()
        took: Timed = {}
        for _ in range(count):
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
                sock.setblocking(blocking)
                begun = time.monotonic_ns()
                error = syscalls.connect(sock, (V4.server, port))
                if error == errno.EINPROGRESS:
                    select.select([], [sock], [])
                    ended = time.monotonic_ns()
                    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                else:
                    ended = time.monotonic_ns()
                assert error == expected
                took[syscalls.cookie(sock)] = (ended - begun) // 1000
        return took

    return job


@pytest.fixture(scope="module")
def timed(capture: Begin, wire: Wire) -> tuple[Capture, dict[str, Timed]]:
    for port in DELAYS_MS:
        wire.server.start(accept_all(V4, port)).hear()
    with capture() as one:
        workers: dict[str, Worker] = {}
        for port, delay in DELAYS_MS.items():
            for blocking in (True, False):
                job = time_connects(port, COUNT, blocking=blocking)
                name = f"{delay}ms-{'blocking' if blocking else 'nonblocking'}"
                workers[name] = wire.client.start(job)
        job = time_connects(CLOSED, COUNT, blocking=True, expected=errno.ECONNREFUSED)
        workers["refused"] = wire.client.start(job)
        took = {name: worker.result() for name, worker in workers.items()}
    return one, took


Measured = list[tuple[str, int, int]]
"""Name of the workload, time in the row, time by the client's clock."""


def measure(one: Capture, took: dict[str, Timed], kind: str, field: str) -> Measured:
    """All rows of a kind with the duration of a connection attempt, each exactly once."""
    ours = {cookie: (name, us) for name, timed in took.items() for cookie, us in timed.items()}
    rows = [row for row in one.of(kind) if row["sock"] != "-" and int(row["sock"], 16) in ours]
    rows = [row for row in rows if row.get("old_state", "SYN_SENT") == "SYN_SENT"]
    assert len(rows) == len(ours)
    assert len({row["sock"] for row in rows}) == len(ours)
    for row in rows:
        refused = ours[int(row["sock"], 16)][0] == "refused"
        if kind == "connect":
            assert row["result"] == ("failed" if refused else "established")
        else:
            assert row["new_state"] == ("CLOSE" if refused else "ESTABLISHED")
    return [(*ours[int(row["sock"], 16)], row[field]) for row in rows]


@pytest.mark.parametrize(
    ("kind", "field"),
    [("connect", "duration_us"), ("tcp_state", "state_us")],
    ids=["call", "state"],
)
def test_latency(timed: tuple[Capture, dict[str, Timed]], kind: str, field: str) -> None:
    """Within 2 ms or 5 % of the client's clock for at least 99 %; never under the delay."""
    one, took = timed
    measured = measure(one, took, kind, field)
    far = [each for each in measured if abs(each[1] - each[2]) > max(2000, each[1] * 0.05)]
    assert len(far) <= len(measured) * 0.01, far
    for name, _, shown in measured:
        held = CLOSED_DELAY_MS if name == "refused" else int(name.partition("ms")[0])
        assert shown >= held * 1000


def test_summary(timed: tuple[Capture, dict[str, Timed]]) -> None:
    """Quantiles of a destination's latency are those of its clients' clocks."""
    one, took = timed
    destinations = {each["peer"]: each for each in one.summary["connects"]["top"]}
    for port, delay in DELAYS_MS.items():
        found = destinations[f"{V4.server}:{port}"]
        assert found["results"] == {"established": 2 * COUNT}
        latency = found["latency_us"]
        assert latency["count"] == 2 * COUNT
        values = sorted(
            value
            for end in ("blocking", "nonblocking")
            for value in took[f"{delay}ms-{end}"].values()
        )
        middle = values[len(values) // 2]
        assert abs(latency["p50"] - middle) <= max(2000, middle * 0.05)
    refused = destinations[f"{V4.server}:{CLOSED}"]
    assert refused["errors"] == {"ECONNREFUSED": COUNT}
    assert refused["latency_us"] is None
