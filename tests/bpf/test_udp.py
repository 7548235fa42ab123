# SPDX-License-Identifier: Apache-2.0
"""UDP: exact counts, bytes and peers of every way to send and to receive."""

import socket
from collections import Counter
from dataclasses import dataclass

import pytest

from tests.bpf import syscalls
from tests.bpf.captures import Capture, Row
from tests.bpf.conftest import Begin
from tests.bpf.namespaces import Pair
from tests.bpf.tcp_jobs import KINDS, Kind
from tests.bpf.udp_receives import (
    COUNT,
    FAILED_RECEIVES,
    RECEIVES,
    SENDERS,
    Inbox,
    Receive,
    datagrams,
    error_queue,
    peek_named,
    truncated,
)
from tests.bpf.udp_sends import (
    SENDS,
    Call,
    Ends,
    Send,
    cork_more,
    segment_option,
    sendmmsg_partly,
    sendto,
)
from tests.bpf.workers import Job, Line

pytestmark = pytest.mark.world("bpf")

CLOSED = 7299


@dataclass
class Truth:
    """What the process of a case did."""

    tgid: int
    local: str
    cookie: int
    calls: list[Call]
    family: str


Result = tuple[int, str, int, list[Call]]


def udp(kind: Kind) -> socket.socket:
    return socket.socket(kind.family, socket.SOCK_DGRAM)


def describe(kind: Kind, sock: socket.socket, calls: list[Call]) -> Result:
    host, port = sock.getsockname()[:2]
    return port, kind.shown(host, port), syscalls.cookie(sock), calls


def bound(kind: Kind, count: int) -> Job:
    """Sockets that receive datagrams and read none; reports their ports."""

    def job(line: Line) -> None:
        socks = [udp(kind) for _ in range(count)]
        for sock in socks:
            sock.bind((kind.any, 0))
        line.say([sock.getsockname()[1] for sock in socks])
        line.hear()

    return job


def sending(kind: Kind, send: Send, ports: list[int]) -> Job:
    def job(line: Line) -> Result:
        with udp(kind) as sock:
            calls = send(Ends(kind, sock, list(ports), CLOSED))
            return describe(kind, sock, calls)

    return job


def receiving(kind: Kind, receive: Receive, senders: int) -> Job:
    """Reports its port, and receives the port of the sender to connect to (0 = none)."""

    def job(line: Line) -> Result:
        with udp(kind) as sock:
            sock.bind((kind.any, 0))
            line.say(sock.getsockname()[1])
            peer = line.hear()
            if peer:
                sock.connect((kind.client, peer))
            line.say("ready")
            calls = receive(Inbox(kind, sock, bool(peer)))
            return describe(kind, sock, calls)

    return job


def senders(kind: Kind, port: int) -> Job:
    """Report the ports of three sockets, then send from them in turn, or all from the first."""

    def job(line: Line) -> None:
        socks = [udp(kind) for _ in range(SENDERS)]
        for sock in socks:
            sock.bind((kind.any, 0))
        ports = [sock.getsockname()[1] for sock in socks]
        line.say(ports)
        only_first = line.hear()
        for index, text in datagrams([ports[0]] * SENDERS if only_first else ports):
            socks[0 if only_first else index].sendto(text, (kind.server, port))

    return job


def run_send(pair: Pair, kind: Kind, send: Send) -> Truth:
    sink = pair.server.start(bound(kind, 3))
    worker = pair.client.start(sending(kind, send, sink.hear()))
    _, local, cookie, calls = worker.result()
    sink.kill()
    return Truth(worker.tgid, local, cookie, calls, kind.shown_family)


def run_receive(pair: Pair, kind: Kind, receive: Receive, *, connected: bool) -> Truth:
    worker = pair.server.start(receiving(kind, receive, SENDERS))
    source = pair.client.start(senders(kind, worker.hear()))
    ports = source.hear()
    worker.say(ports[0] if connected else 0)
    assert worker.hear() == "ready"
    source.say(connected)
    source.result()
    _, local, cookie, calls = worker.result()
    return Truth(worker.tgid, local, cookie, calls, kind.shown_family)


@dataclass
class Scene:
    capture: Capture
    sends: dict[tuple[str, str], Truth]
    receives: dict[tuple[str, str, str], Truth]
    failed: dict[tuple[str, str], Truth]


@pytest.fixture(scope="module")
def scene(capture: Begin, pair: Pair) -> Scene:
    with capture("--max-events=1000000") as one:
        sends = {
            (send.__name__, kind.name): run_send(pair, kind, send)
            for send in SENDS
            for kind in KINDS
        }
        failed = {
            (send.__name__, kind.name): run_send(pair, kind, send)
            for send in FAILED_RECEIVES
            for kind in KINDS
        }
        receives = {
            (receive.__name__, kind.name, "connected" if connected else "open"): run_receive(
                pair, kind, receive, connected=connected
            )
            for receive in RECEIVES
            for kind in KINDS
            for connected in (False, True)
        }
    return Scene(one, sends, receives, failed)


def calls_of(rows: list[Row]) -> Counter[Call]:
    return Counter(
        Call(
            row["bytes"],
            row["tuple"].split(" -> ")[1],
            row["peer_source"],
            frozenset(row["flags"]),
            row["errno"],
        )
        for row in rows
    )


def ports_of(row: Row) -> set[int]:
    return {int(end.rpartition(":")[2]) for end in row["tuple"].split(" -> ") if end != "-"}


def check(rows: list[Row], truth: Truth) -> None:
    assert calls_of(rows) == Counter(truth.calls)
    for row in rows:
        local, _, peer = row["tuple"].partition(" -> ")
        # `::` speaks IPv4 where the peer does.
        mapped = truth.family == "ipv4" and peer != "-"
        assert local == (truth.local.replace("[::]", "0.0.0.0") if mapped else truth.local)
        assert row["sock"] == f"{truth.cookie:#x}"
        assert row["owner_source"] == "process"
        if peer != "-":
            assert row["family"] == truth.family
    assert all((row["error"] == "-") == (row["errno"] == 0) for row in rows)


@pytest.mark.parametrize("kind", [kind.name for kind in KINDS])
@pytest.mark.parametrize("send", [send.__name__ for send in SENDS])
def test_send(scene: Scene, send: str, kind: str) -> None:
    truth = scene.sends[send, kind]
    rows = scene.capture.of("udp_send", tgid=truth.tgid)
    check(rows, truth)
    times = [call.bytes for call in truth.calls]
    assert [row["bytes"] for row in rows] == times
    assert not scene.capture.of("udp_recv", tgid=truth.tgid)


@pytest.mark.parametrize("end", ["open", "connected"])
@pytest.mark.parametrize("kind", [kind.name for kind in KINDS])
@pytest.mark.parametrize("receive", [receive.__name__ for receive in RECEIVES])
def test_receive(scene: Scene, receive: str, kind: str, end: str) -> None:
    truth = scene.receives[receive, kind, end]
    rows = scene.capture.of("udp_recv", tgid=truth.tgid)
    check(rows, truth)
    assert len(rows) >= COUNT
    assert not scene.capture.of("udp_send", tgid=truth.tgid)


@pytest.mark.parametrize("kind", [kind.name for kind in KINDS])
@pytest.mark.parametrize("receive", [receive.__name__ for receive in FAILED_RECEIVES])
def test_failed_receive(scene: Scene, receive: str, kind: str) -> None:
    truth = scene.failed[receive, kind]
    check(scene.capture.of("udp_recv", tgid=truth.tgid), truth)


def test_no_other_row(scene: Scene, pair: Pair) -> None:
    sends = sum(len(truth.calls) for truth in scene.sends.values())
    relayed = len(scene.receives) * COUNT + len(scene.failed) * 3
    receives = sum(
        len(truth.calls) for some in (scene.receives, scene.failed) for truth in some.values()
    )
    ours = {pair.client.inode, pair.server.inode}
    counts = Counter(row["type"] for row in scene.capture.rows if row["ns"]["net"] in ours)
    assert counts == {"udp_send": sends + relayed, "udp_recv": receives}


def test_flow_bytes(capture: Begin, pair: Pair) -> None:
    """Peeks and the error queue carry no traffic; parts of corked datagrams do."""
    with capture() as one:
        sends = [
            run_send(pair, kind, send)
            for kind in KINDS
            for send in (sendto, sendmmsg_partly, cork_more, segment_option)
        ]
        receives = [
            run_receive(pair, kind, receive, connected=False)
            for kind in KINDS
            for receive in (peek_named, truncated)
        ]
        queues = [run_send(pair, kind, error_queue) for kind in KINDS]
    flows = FlowsOf(one)
    for truth in sends:
        good = [call for call in truth.calls if not call.error]
        assert flows.sent(truth.tgid) in ((sum(call.bytes for call in good), len(good)), None)
    for truth in receives:
        good = [call for call in truth.calls if "PEEK" not in call.flags]
        assert flows.received(truth.tgid) in ((sum(call.bytes for call in good), len(good)), None)
    for truth in queues:
        assert flows.received(truth.tgid) in ((0, 0), None)
    assert flows.compared >= 10


class FlowsOf:
    """Traffic by process, None where it had none."""

    def __init__(self, capture: Capture) -> None:
        self._talkers = capture.talkers()
        self.compared = 0

    def _of(self, tgid: int, way: str) -> tuple[int, int] | None:
        if (talker := self._talkers.get(tgid)) is None:
            return None
        self.compared += 1
        return talker[f"{way}_bytes"], talker[f"{way}_calls"]

    def sent(self, tgid: int) -> tuple[int, int] | None:
        return self._of(tgid, "tx")

    def received(self, tgid: int) -> tuple[int, int] | None:
        return self._of(tgid, "rx")


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ((), {7201, 53}),
        (("--ports=7201",), {7201}),
        (("--ports=9",), set()),
        (("--dns-only",), {53}),
    ],
    ids=["all", "matching", "other", "dns"],
)
def test_filters(capture: Begin, pair: Pair, flags: tuple[str, ...], wanted: set[int]) -> None:
    def serve(line: Line) -> None:
        socks = {port: udp(kind) for kind in KINDS[:1] for port in (7201, 53)}
        for port, sock in socks.items():
            sock.bind((KINDS[0].any, port))
        line.say("ready")
        for port, sock in socks.items():
            for _ in range(17 if port == 53 else 29):
                text, peer = sock.recvfrom(100)
                sock.sendto(text + text, peer)

    def ask(line: Line) -> None:
        with udp(KINDS[0]) as sock:
            for port, count in ((7201, 29), (53, 17)):
                for _ in range(count):
                    sock.sendto(b"question", (KINDS[0].server, port))
                    sock.recvfrom(100)

    with capture(*flags) as one:
        server = pair.server.start(serve)
        server.hear()
        client = pair.client.start(ask)
        client.result()
        server.result()
    for port, count in ((7201, 29), (53, 17)):
        for tgid in (client.tgid, server.tgid):
            for kind in ("udp_send", "udp_recv"):
                rows = [row for row in one.of(kind, tgid=tgid) if port in ports_of(row)]
                assert len(rows) == (count if port in wanted else 0)
                larger = (kind == "udp_send") == (tgid == server.tgid)
                assert {row["bytes"] for row in rows} <= {16 if larger else 8}
    total = sum({7201: 29, 53: 17}[port] for port in wanted) * 4
    assert len(one.of(tgid=client.tgid)) + len(one.of(tgid=server.tgid)) == total
