# SPDX-License-Identifier: Apache-2.0
"""Facts about connections in flows, whatever rows are requested: role, opened, failed.

They are the denominators of findings, so a capture of retransmits alone must have them too.
"""

import errno
import os
import socket
from collections import Counter
from typing import Any

import pytest

from tests.bpf.captures import Row
from tests.bpf.conftest import Begin
from tests.bpf.namespaces import Pair
from tests.bpf.tcp_jobs import V4, listener, serve, tcp, visit
from tests.bpf.workers import Line, fork

pytestmark = pytest.mark.world("bpf")

PORT, CLOSED_PORT, LOSSY_PORT, OTHER_PORT = 7801, 7802, 7803, 7804
COUNT, REFUSED, UNROUTED = 17, 5, 3
NOWHERE = "203.0.113.9"
"""The namespaces have no route to it: connect() fails before there is a SYN."""
REQUEST, REPLY = 101, 307
ASKED: dict[str, dict[str, Any]] = {
    "retransmit": {"events": ["retransmit"]},
    "tcp": {"events": ["tcp"]},
    "tcp-retransmit": {"events": ["tcp", "retransmit"]},
    "sampled": {"events": ["tcp", "retransmit"], "sample": 7},
    "connect": {"events": ["connect"]},
}


def fail(line: Line) -> None:
    """Connections that are never accepted, and some without a route."""
    for host, port, count, expected in (
        (V4.server, CLOSED_PORT, REFUSED, errno.ECONNREFUSED),
        (NOWHERE, CLOSED_PORT, UNROUTED, errno.ENETUNREACH),
    ):
        for _ in range(count):
            with tcp() as sock:
                assert sock.connect_ex((host, port)) == expected


def lend(line: Line) -> int:
    """Connect, and let a child exchange the data, as a shell does."""
    with tcp() as sock:
        sock.connect((V4.server, PORT))
        child = fork(lambda: sock.sendall(b"q" * REQUEST))
        os.waitpid(child, 0)
        assert len(sock.recv(REPLY, socket.MSG_WAITALL)) == REPLY
    return child


def summed(flows: list[Row], name: str) -> int:
    return sum(flow[name] for flow in flows)


def roles(flows: list[Row]) -> Counter[str | None]:
    return Counter(flow["role"] for flow in flows)


@pytest.mark.parametrize("asked", ASKED)
def test_roles_and_connects(capture: Begin, pair: Pair, asked: str) -> None:
    with capture(config=ASKED[asked]) as one:
        server = pair.server.start(serve(V4, PORT, COUNT + 1, REQUEST, REPLY))
        server.hear()
        client = pair.client.start(visit(V4, PORT, COUNT, REQUEST, REPLY))
        client.result()
        lender = pair.client.start(lend)
        child = lender.result()
        server.result()
        unlucky = pair.client.start(fail)
        unlucky.result()
        pair.wait_quiet()
    flows = one.flows(client.tgid)
    assert roles(flows) == {"client": COUNT}
    assert (summed(flows, "opened"), summed(flows, "failed")) == (COUNT, 0)
    flows = one.flows(server.tgid)
    assert roles(flows) == {"server": COUNT + 1}
    assert (summed(flows, "opened"), summed(flows, "failed")) == (COUNT + 1, 0)
    flows = one.flows(unlucky.tgid)
    assert set(roles(flows)) == {"client"}
    assert (summed(flows, "opened"), summed(flows, "failed")) == (0, REFUSED + UNROUTED)
    assert [(flow["role"], flow["opened"]) for flow in one.flows(lender.tgid)] == [("client", 1)]
    assert [(flow["role"], flow["opened"], flow["tx_bytes"]) for flow in one.flows(child)] == [
        ("client", 0, REQUEST)
    ]
    if asked != "connect":
        assert not one.of("connect")
        assert one.summary["accounting"]["connect"] is None


def test_filters_hold_for_flows_too(capture: Begin, pair: Pair) -> None:
    with capture(config={"events": ["retransmit"], "ports": [OTHER_PORT]}) as one:
        server = pair.server.start(serve(V4, PORT, 1, REQUEST, REPLY))
        server.hear()
        client = pair.client.start(visit(V4, PORT, 1, REQUEST, REPLY))
        client.result()
        server.result()
        unlucky = pair.client.start(fail)
        unlucky.result()
        pair.wait_quiet()
    for worker in (server, client, unlucky):
        assert one.flows(worker.tgid) == []


def test_a_row_and_its_flow_agree(capture: Begin, pair: Pair) -> None:
    """The same role and peer in a retransmit and in the flow that it is measured against."""

    def take(line: Line) -> None:
        with listener(V4, LOSSY_PORT) as sock:
            line.say("ready")
            with sock.accept()[0] as connection:
                while connection.recv(100):
                    pass

    def talk(line: Line) -> None:
        with tcp() as sock:
            sock.connect((V4.server, LOSSY_PORT))
            line.say("connected")
            line.hear()
            sock.sendall(b"q" * REQUEST)
            line.say("sent")
            line.hear()

    before = pair.client.snmp("Tcp.RetransSegs")
    with capture(config={"events": ["retransmit"]}) as one:
        server = pair.server.start(take)
        server.hear()
        client = pair.client.start(talk)
        client.hear()
        with pair.server.muted(LOSSY_PORT):
            client.say("send")
            client.hear()
            pair.client.wait_resends(before, 2)
        client.say("close")
        client.result()
        server.result()
        pair.wait_quiet()
    rows = one.of("tcp_retransmit", tgid=client.tgid)
    assert {row["role"] for row in rows} == {"client"}
    (flow,) = one.flows(client.tgid)
    assert {row["tuple"] for row in rows} == {f"{flow['local']} -> {flow['remote']}"}
    assert (flow["role"], flow["opened"], flow["tx_bytes"]) == ("client", 1, REQUEST)
    assert flow["retrans_segs"] == sum(row["segs"] for row in rows)
