# SPDX-License-Identifier: Apache-2.0
"""Retransmitted segments: the sum over the rows equals the kernel's own count."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.bpf.captures import Capture, Row
from tests.bpf.conftest import Begin
from tests.bpf.ftrace import Trace, Traced
from tests.bpf.namespaces import Namespace, Pair
from tests.bpf.tcp_jobs import KINDS, V4, V6, Kind, listener, take
from tests.bpf.workers import Job, Line

pytestmark = pytest.mark.world("bpf")

LOSS = """
table inet loss {
  chain input {
    type filter hook input priority 0;
    meta l4proto tcp numgen random mod 100 < 5 drop
  }
}
"""
PORT, SYNACK_PORT, SYN_PORT = 7501, 7502, 7503
CLIENTS, CONNECTIONS, SIZE = 6, 13, 300_000
SEGMENTS_MAX = 65535 // 1000
"""Of one packet, above any that fits a veth."""
RESENDS = ("tcp/tcp_retransmit_skb", "tcp/tcp_retransmit_synack")
ONE_WAY = f"""
table inet oneway {{
  chain input {{
    type filter hook input priority 0;
    tcp sport {SYNACK_PORT} tcp flags & (syn | ack) == (syn | ack) drop
  }}
}}
"""


def check_total(
    capture: Capture, trace: Trace, rows: list[Row], events: list[Traced], delta: int
) -> None:
    """Rows are the events of the kernel's tracer, and their segments its counter's, exactly.

    `events` of tasks that no BPF program runs upon are no rows; then the segments that are
    missing belong to them, and the capture counts them.
    """
    sent = [one for one in events if one.fields.get("err", "0") == "0"]
    hidden = [one for one in sent if one.hidden]
    assert len(rows) == len(sent) - len(hidden)
    missing = delta - total(rows)
    assert len(hidden) <= missing <= len(hidden) * SEGMENTS_MAX, (missing, hidden)
    unseen = capture.summary["accounting"]["tcp_retransmit"]["unseen"]
    assert missing <= unseen <= sum(one.hidden for one in trace.events) * SEGMENTS_MAX


def total(rows: list[Row]) -> int:
    return sum(row["segs"] for row in rows)


def serve_many(kind: Kind, port: int, count: int) -> Job:
    """Read SIZE bytes of each connection and send as many back."""

    def job(line: Line) -> None:
        with listener(kind, port) as server:
            line.say("ready")
            for _ in range(count):
                connection, _ = server.accept()
                with connection:
                    take(connection, SIZE)
                    connection.sendall(bytes(SIZE))
                    connection.recv(1)

    return job


def visit_many(kind: Kind, port: int) -> Job:
    def job(line: Line) -> None:
        for _ in range(CONNECTIONS):
            with socket.socket(kind.family, socket.SOCK_STREAM) as sock:
                sock.connect((kind.server, port))
                sock.sendall(bytes(SIZE))
                take(sock, SIZE)

    return job


@dataclass
class Lossy:
    capture: Capture
    trace: Trace
    deltas: dict[int, int]
    """Network namespace -> TcpRetransSegs of the run."""
    clients: list[int]
    servers: list[int]


def retransmitted(namespaces: list[Namespace]) -> dict[int, int]:
    return {one.inode: one.snmp("Tcp.RetransSegs") for one in namespaces}


@pytest.fixture(scope="module", params=["offload", "single"])
def lossy(request: pytest.FixtureRequest, capture: Begin, pair: Pair) -> Iterator[Lossy]:
    """5 % of segments dropped in both directions; packets of many segments, and of one."""
    both = [pair.client, pair.server]
    for namespace in both:
        segments = 1 if request.param == "single" else 65535
        namespace.ip(f"link set eth0 gso_max_segs {segments}")
        namespace.nft(LOSS)
    before = retransmitted(both)
    with Trace(*RESENDS) as trace, capture() as one:
        kinds = [KINDS[i % len(KINDS)] for i in range(CLIENTS)]
        servers = []
        for i, kind in enumerate(kinds):
            servers.append(pair.server.start(serve_many(kind, PORT + 10 + i, CONNECTIONS)))
            servers[-1].hear()
        clients = [
            pair.client.start(visit_many(kind, PORT + 10 + i)) for i, kind in enumerate(kinds)
        ]
        for worker in (*clients, *servers):
            worker.result()
        for namespace in both:
            namespace.nft("delete table inet loss\n")
        pair.wait_quiet()
    after = retransmitted(both)
    yield Lossy(
        one,
        trace,
        {inode: after[inode] - before[inode] for inode in before},
        [worker.tgid for worker in clients],
        [worker.tgid for worker in servers],
    )
    pair.client.ip("link set eth0 gso_max_segs 65535")
    pair.server.ip("link set eth0 gso_max_segs 65535")


def test_sum_of_segments(lossy: Lossy, pair: Pair) -> None:
    ports = {PORT + 10 + i for i in range(CLIENTS)}
    for end, namespace in (("dport", pair.client), ("sport", pair.server)):
        delta = lossy.deltas[namespace.inode]
        rows = lossy.capture.of("tcp_retransmit", net=namespace.inode)
        assert delta > 100
        check_total(lossy.capture, lossy.trace, rows, sent_to(lossy.trace, end, ports), delta)


def sent_to(trace: Trace, end: str, ports: set[int]) -> list[Traced]:
    """Segments sent again to (dport) or from (sport) a server, SYN-ACKs too."""
    return [one for one in trace.events if int(one.fields[end]) in ports]


def test_owners(lossy: Lossy) -> None:
    """Timers retransmit in softirq: the owner is the socket's, not who is interrupted."""
    owned = {*lossy.clients, *lossy.servers}
    for inode in lossy.deltas:
        rows = lossy.capture.of("tcp_retransmit", net=inode)
        assert {row["tgid"] for row in rows} <= owned
        assert {row["state"] for row in rows} >= {"ESTABLISHED"}
        assert all(row["segs"] >= 1 for row in rows)


def test_summary(lossy: Lossy) -> None:
    found = lossy.capture.summary["retransmits"]
    assert found["segs"] == total(lossy.capture.of("tcp_retransmit"))
    assert found["flow_segs"] == found["segs"]


@pytest.mark.parametrize("kind", [V4, V6], ids=["v4", "v6"])
def test_synack(capture: Begin, pair: Pair, kind: Kind) -> None:
    """The client hears no SYN-ACK: the listener sends it again, the client its SYN."""
    pair.client.nft(ONE_WAY)
    both = [pair.client, pair.server]

    def serve(line: Line) -> None:
        with listener(kind, SYNACK_PORT) as server:
            line.say("ready")
            server.accept()[0].close()

    def knock(line: Line) -> int:
        with socket.socket(kind.family, socket.SOCK_STREAM) as sock:
            sock.connect((kind.server, SYNACK_PORT))
            return int(sock.getsockname()[1])

    before = retransmitted(both)
    with Trace(*RESENDS) as trace, capture() as one:
        server = pair.server.start(serve)
        server.hear()
        client = pair.client.start(knock)
        pair.server.wait_resends(before[pair.server.inode], 3)
        pair.client.nft("delete table inet oneway\n")
        port = client.result()
        server.result()
        pair.wait_quiet()
    after = retransmitted(both)
    for end, inode in (("dport", pair.client.inode), ("sport", pair.server.inode)):
        sent = sent_to(trace, end, {SYNACK_PORT})
        found = one.of("tcp_retransmit", net=inode)
        check_total(one, trace, found, sent, after[inode] - before[inode])
    again = trace.of("tcp_retransmit_synack", {SYNACK_PORT})
    assert len(again) >= 3
    rows = [row for row in one.of("tcp_retransmit", net=pair.server.inode) if row["synack"]]
    assert len(rows) == len(again) - sum(one.hidden for one in again)
    for row in rows:
        ends = kind.shown(kind.server, SYNACK_PORT), kind.shown(kind.client, port)
        assert row["tuple"] == " -> ".join(ends)
        assert (row["tgid"], row["role"], row["state"]) == (server.tgid, "server", "NEW_SYN_RECV")
    syns = one.of("tcp_retransmit", net=pair.client.inode)
    assert {(row["tgid"], row["state"], row["synack"]) for row in syns} <= {
        (client.tgid, "SYN_SENT", False)
    }


def test_orphans(capture: Begin, pair: Pair) -> None:
    """A FIN without an answer is retransmitted after its process has ended."""

    def serve(line: Line) -> None:
        with listener(V4, SYN_PORT) as server:
            line.say("ready")
            with server.accept()[0] as connection:
                connection.recv(1)
                line.hear()

    def leave(line: Line) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.connect((V4.server, SYN_PORT))
            line.say("connected")
            line.hear()

    before = retransmitted([pair.client])[pair.client.inode]
    with Trace(*RESENDS) as trace, capture() as one:
        server = pair.server.start(serve)
        server.hear()
        client = pair.client.start(leave)
        client.hear()
        with pair.server.muted(SYN_PORT):
            client.say("close")
            client.result()
            pair.client.wait_resends(before, 2)
        server.say("close")
        server.result()
        pair.wait_quiet()
    rows = one.of("tcp_retransmit", net=pair.client.inode)
    delta = pair.client.snmp("Tcp.RetransSegs") - before
    check_total(one, trace, rows, sent_to(trace, "dport", {SYN_PORT}), delta)
    assert {(row["tgid"], row["state"]) for row in rows} <= {(client.tgid, "FIN_WAIT1")}


def test_off(capture: Begin, pair: Pair) -> None:
    with capture("--with-retransmits=false") as one:
        pass
    assert not one.of("tcp_retransmit")
    hooks = {hook["hook"]: hook["chosen"] for hook in one.node["hooks"]}
    assert hooks.get("tcp_retransmit", "-") == "-"
    assert pair.client.inode
