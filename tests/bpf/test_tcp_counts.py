# SPDX-License-Identifier: Apache-2.0
"""Exact counts of TCP rows: families, both ends, filters."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pytest

from tests.bpf.captures import Capture, Row
from tests.bpf.conftest import Begin
from tests.bpf.namespaces import Pair
from tests.bpf.tcp_jobs import (
    CLIENT_STATES,
    KINDS,
    LISTENER_STATES,
    SERVER_STATES,
    Kind,
    serve,
    states,
    visit,
)

pytestmark = pytest.mark.world("bpf")

COUNT, DNS_COUNT = 23, 7
PORT, OTHER = 7001, 9999
REQUEST, REPLY = 101, 307
FILTERS = {
    "all": ((), {PORT, 53}),
    "matching": ((f"--ports=4,{PORT}",), {PORT}),
    "other": ((f"--ports={OTHER}",), set()),
    "dns": (("--dns-only",), {53}),
    "both": (("--dns-only", f"--ports={PORT}"), set()),
}


@dataclass
class Truth:
    """What client and server of one kind and port report about themselves."""

    kind: Kind
    port: int
    client: int
    server: int
    visits: list[tuple[int, int]]
    accepted: list[tuple[int, int]]


@dataclass
class Scene:
    capture: Capture
    pair: Pair
    truths: list[Truth]
    wanted: set[int]

    def rows(self, end: str, truth: Truth, kind: str) -> list[Row]:
        """Rows of one end's namespace that belong to a truth's port and process."""
        namespace = self.pair.client if end == "client" else self.pair.server
        return self.capture.of(kind, net=namespace.inode, tgid=getattr(truth, end))


def run(pair: Pair, kind: Kind, port: int, count: int) -> Truth:
    server = pair.server.start(serve(kind, port, count, REQUEST, REPLY))
    assert server.hear() == port
    client = pair.client.start(visit(kind, port, count, REQUEST, REPLY))
    visits, accepted = client.result(), server.result()
    pair.wait_quiet()
    return Truth(kind, port, client.tgid, server.tgid, visits, accepted)


@pytest.fixture(scope="module", params=FILTERS)
def scene(request: pytest.FixtureRequest, capture: Begin, pair: Pair) -> Scene:
    flags, wanted = FILTERS[request.param]
    opened = pair.client.snmp("Tcp.ActiveOpens"), pair.server.snmp("Tcp.PassiveOpens")
    with capture(*flags) as one:
        truths = [
            run(pair, kind, port, count)
            for kind in KINDS
            for port, count in ((PORT, COUNT), (53, DNS_COUNT))
        ]
    total = len(KINDS) * (COUNT + DNS_COUNT)
    assert pair.client.snmp("Tcp.ActiveOpens") - opened[0] == total
    assert pair.server.snmp("Tcp.PassiveOpens") - opened[1] == total
    return Scene(one, pair, truths, wanted)


def by_socket(rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row["sock"]].append(row)
    return found


def test_client_states(scene: Scene) -> None:
    for truth in scene.truths:
        sockets = by_socket(scene.rows("client", truth, "tcp_state"))
        expected = truth.visits if truth.port in scene.wanted else []
        assert set(sockets) == {f"{cookie:#x}" for _, cookie in expected}
        for port, cookie in expected:
            rows = sockets[f"{cookie:#x}"]
            assert states(rows) == CLIENT_STATES
            check_ends(rows, truth.kind, port, truth.port, "client")


def test_server_states(scene: Scene) -> None:
    for truth in scene.truths:
        rows = scene.rows("server", truth, "tcp_state")
        sockets = by_socket([row for row in rows if states([row])[0] not in LISTENER_STATES])
        expected = truth.accepted if truth.port in scene.wanted else []
        assert set(sockets) == {f"{cookie:#x}" for _, cookie in expected}
        for port, cookie in expected:
            rows = sockets[f"{cookie:#x}"]
            assert states(rows) == SERVER_STATES
            check_ends(rows, truth.kind, truth.port, port, "server")


def check_ends(rows: list[Row], kind: Kind, local: int, remote: int, role: str) -> None:
    ends = [kind.shown(kind.client, local), kind.shown(kind.server, remote)]
    if role == "server":
        ends = [kind.shown(kind.server, local), kind.shown(kind.client, remote)]
    for row in rows:
        assert row["tuple"] == " -> ".join(ends)
        assert row["family"] == kind.shown_family
        assert row["role"] == role
        assert row["peer_source"] == "socket"
        assert row["owner_source"] == ("accept" if role == "server" else "process")
    assert all(isinstance(row["state_us"], int) for row in rows[1:])


def test_listeners(scene: Scene) -> None:
    for truth in scene.truths:
        rows = scene.rows("server", truth, "tcp_state")
        rows = [row for row in rows if states([row])[0] in LISTENER_STATES]
        wanted = truth.port in scene.wanted
        assert states(rows) == (LISTENER_STATES if wanted else ())
        for row in rows:
            local = truth.kind.shown(truth.kind.any, truth.port)
            assert row["tuple"] == f"{local} -> -"
            assert (row["role"], row["peer_source"]) == ("server", "none")


def test_connects(scene: Scene) -> None:
    for truth in scene.truths:
        rows = scene.rows("client", truth, "connect")
        expected = truth.visits if truth.port in scene.wanted else []
        kind = truth.kind
        assert sorted((row["tuple"], row["sock"]) for row in rows) == sorted(
            (
                f"{kind.shown(kind.client, port)} -> {kind.shown(kind.server, truth.port)}",
                f"{cookie:#x}",
            )
            for port, cookie in expected
        )
        assert {(row["result"], row["errno"], row["error"]) for row in rows} <= {
            ("established", 0, "-")
        }
        assert all(isinstance(row["duration_us"], int) for row in rows)


def test_nothing_else(scene: Scene) -> None:
    ours = {scene.pair.client.inode, scene.pair.server.inode}
    rows = [row for row in scene.capture.rows if row["ns"]["net"] in ours]
    connections = sum(len(truth.visits) for truth in scene.truths if truth.port in scene.wanted)
    listeners = sum(truth.port in scene.wanted for truth in scene.truths)
    assert len(rows) == connections * (5 + 5 + 1) + listeners * 2


def test_talkers(scene: Scene) -> None:
    talkers = scene.capture.talkers()
    for truth in scene.truths:
        count = len(truth.visits)
        for tgid, sent, received in (
            (truth.client, REQUEST, REPLY),
            (truth.server, REPLY, REQUEST),
        ):
            talker: dict[str, Any] | None = talkers.get(tgid)
            if truth.port not in scene.wanted:
                assert talker is None
                continue
            assert talker is not None
            assert (talker["tx_bytes"], talker["rx_bytes"]) == (sent * count, received * count)
            assert (talker["opened"], talker["failed"]) == (count, 0)
            assert talker["flows"] == count
