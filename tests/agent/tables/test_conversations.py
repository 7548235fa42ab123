# SPDX-License-Identifier: Apache-2.0
"""Both endpoints of a conversation get the same number, and an ambiguous one gets none."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ktrace_agent.enrich.conntrack.ctnetlink import SEEN_REPLY, pack_key, pack_tuple
from ktrace_agent.enrich.conntrack.entries import Table
from ktrace_agent.enrich.conntrack.lookup import Conntrack
from ktrace_agent.host.inet import TCP, UDP
from ktrace_agent.tables.load import Names, load
from tests.agent.conftest import BOOT_NS, Make, make_events, make_flows, v4

POD, BACKEND, HOST, OTHER = 11, 22, 33, 44
TCP_STATE, UDP_SEND, UDP_RECV = 0, 1, 2
ESTABLISHED = 3
DUMPED_NS = 5 * 10**9

Place = tuple[str, int]
CLIENT, VIP, SERVER, GATEWAY = ("10.1.0.5", 40000), ("10.96.0.1", 80), ("10.1.0.9", 8080), (
    "10.1.0.1", 50000)  # fmt: skip


def place(text: str) -> bytes:
    return bytes(map(int, text.split(".")))


def entry(
    asker: Place, asked: Place, answering: Place, answered: Place | None = None, proto: int = TCP
) -> bytes:
    """Key of an entry: asker -> asked, answered by answering -> answered."""
    answered = answered or asker
    original = pack_tuple(proto, place(asker[0]), asker[1], place(asked[0]), asked[1])
    reply = pack_tuple(proto, place(answering[0]), answering[1], place(answered[0]), answered[1])
    return pack_key(0, 0, original, reply)


def tracking(
    entries: Mapping[int, Iterable[bytes]], own: Mapping[int, Iterable[str]] | None = None
) -> Conntrack:
    tables = {}
    for netns, keys in entries.items():
        table = tables[netns] = Table()
        table.capacity = 100
        for key in keys:
            table.add(key, ESTABLISHED, SEEN_REPLY)
        table.finish_dump(0, BOOT_NS + DUMPED_NS, complete=True)
    addresses = {netns: frozenset(map(v4, every)) for netns, every in (own or {}).items()}
    return Conntrack(host=HOST, tables=tables, addresses=addresses)


class Sock(NamedTuple):
    net: int
    local: Place
    remote: Place
    sock: int
    kind: int = TCP_STATE

    @property
    def fields(self) -> dict[str, Any]:
        (local, local_port), (remote, remote_port) = self.local, self.remote
        return {
            "ns_net": self.net,
            "local_addr": v4(local),
            "local_port": local_port,
            "remote_addr": v4(remote),
            "remote_port": remote_port,
        }

    @property
    def event(self) -> dict[str, Any]:
        return {**self.fields, "sock": self.sock, "type": self.kind}


class Found(NamedTuple):
    flow: int | None
    backend: str | None


Ask = Callable[..., list[Found]]


@pytest.fixture
def ask(make_recording: Make) -> Ask:
    """Returns what the row of each socket reports."""

    def ask(
        *socks: Sock, conntrack: Conntrack | None = None, flows: Any = (b"", b"")
    ) -> list[Found]:
        events = make_events([sock.event for sock in socks])
        with closing(load(make_recording(events, flows), "n1", Names(conntrack=conntrack))) as made:
            found = made.con.execute("SELECT flow, backend FROM rows ORDER BY n").fetchall()
        return [Found(*line) for line in found]

    return ask


def test_both_ends_have_one_number_in_any_two_namespaces(ask: Ask):
    client, server, other = ask(
        Sock(POD, CLIENT, SERVER, 1),
        Sock(BACKEND, SERVER, CLIENT, 2),
        Sock(POD, CLIENT, VIP, 3),
    )
    assert client.flow == server.flow is not None
    assert other.flow not in (client.flow, None)


def test_a_number_is_the_same_in_every_capture(ask: Ask):
    (one,) = ask(Sock(POD, CLIENT, SERVER, 1))
    (two,) = ask(Sock(OTHER, SERVER, CLIENT, 9))
    assert one.flow == two.flow == 0x3E6678E08A210048


@pytest.mark.parametrize("where", [POD, HOST, BACKEND])
@pytest.mark.parametrize("masqueraded", [False, True])
def test_a_service_is_joined_to_its_backend(ask: Ask, where: int, masqueraded: bool):
    seen_as = GATEWAY if masqueraded else CLIENT
    conntrack = tracking({where: [entry(CLIENT, VIP, SERVER, seen_as)]})
    client, server = ask(
        Sock(POD, CLIENT, VIP, 1), Sock(BACKEND, SERVER, seen_as, 2), conntrack=conntrack
    )
    assert client.flow == server.flow is not None
    assert client.backend == "10.1.0.9:8080"
    assert server.backend is None


def test_hairpin_is_joined_within_one_namespace(ask: Ask):
    server = (CLIENT[0], 8080)
    conntrack = tracking({HOST: [entry(CLIENT, VIP, server, GATEWAY)]})
    asking, answering = ask(
        Sock(POD, CLIENT, VIP, 1), Sock(POD, server, GATEWAY, 2), conntrack=conntrack
    )
    assert asking == (answering.flow, "10.1.0.5:8080")
    assert answering.flow is not None


def test_masquerade_alone_has_no_backend(ask: Ask):
    conntrack = tracking({HOST: [entry(CLIENT, SERVER, SERVER, GATEWAY)]})
    client, server = ask(
        Sock(POD, CLIENT, SERVER, 1), Sock(BACKEND, SERVER, GATEWAY, 2), conntrack=conntrack
    )
    assert client.flow == server.flow is not None
    assert client.backend is None


def test_two_translations_one_after_the_other(ask: Ask):
    middle = ("10.99.0.1", 81)
    conntrack = tracking(
        {POD: [entry(CLIENT, VIP, middle)], HOST: [entry(CLIENT, middle, SERVER, GATEWAY)]}
    )
    client, server = ask(
        Sock(POD, CLIENT, VIP, 1), Sock(BACKEND, SERVER, GATEWAY, 2), conntrack=conntrack
    )
    assert client.flow == server.flow is not None
    assert client.backend == "10.1.0.9:8080"


def test_a_second_translation_that_is_not_certain_leaves_all_unknown(ask: Ask):
    middle, elsewhere = ("10.99.0.1", 81), ("10.1.0.8", 8080)
    conntrack = tracking(
        {
            POD: [entry(CLIENT, VIP, middle)],
            HOST: [entry(CLIENT, middle, SERVER)],
            OTHER: [entry(CLIENT, middle, elsewhere)],
        }
    )
    (client,) = ask(Sock(POD, CLIENT, VIP, 1), conntrack=conntrack)
    assert client == (None, None)


def test_a_tuple_in_two_namespaces_is_ambiguous(ask: Ask):
    socks = [
        Sock(POD, CLIENT, SERVER, 1),
        Sock(OTHER, CLIENT, SERVER, 2),
        Sock(BACKEND, SERVER, CLIENT, 3),
    ]
    assert {one.flow for one in ask(*socks)} == {None}
    assert len({one.flow for one in ask(*socks[1:])}) == 1


def test_translation_tells_two_namespaces_apart(ask: Ask):
    """Both clients have one tuple; each namespace sees its own translation of it."""
    other = ("10.1.0.8", 8080)
    conntrack = tracking({POD: [entry(CLIENT, VIP, SERVER)], OTHER: [entry(CLIENT, VIP, other)]})
    one, two, first, second = ask(
        Sock(POD, CLIENT, VIP, 1), Sock(OTHER, CLIENT, VIP, 2), Sock(BACKEND, SERVER, CLIENT, 3),
        Sock(BACKEND, other, CLIENT, 4), conntrack=conntrack,
    )  # fmt: skip
    assert one == Found(first.flow, "10.1.0.9:8080")
    assert two == Found(second.flow, "10.1.0.8:8080")
    assert first.flow != second.flow


@pytest.mark.parametrize("kind", [TCP_STATE, UDP_SEND])
def test_a_port_that_is_used_again_is_ambiguous(ask: Ask, kind: int):
    client, again, server = ask(
        Sock(POD, CLIENT, SERVER, 1, kind), Sock(POD, CLIENT, SERVER, 2, kind),
        Sock(BACKEND, SERVER, CLIENT, 3, kind),
    )  # fmt: skip
    assert {client.flow, again.flow, server.flow} == {None}


def test_the_kernels_count_tells_of_connections_that_no_row_shows(ask: Ask):
    sock = Sock(POD, CLIENT, SERVER, 1)
    flows = [make_flows([{**sock.fields, "opened": opened, "failed": 1}]) for opened in (0, 1)]
    once, twice = (ask(sock, flows=flow)[0].flow for flow in flows)
    assert once is not None
    assert twice is None


def test_loopback_is_another_place_in_each_namespace(ask: Ask):
    client, server = ("127.0.0.1", 40000), ("127.0.0.1", 80)
    here, far, there, away = ask(
        Sock(POD, client, server, 1), Sock(POD, server, client, 2),
        Sock(OTHER, client, server, 3), Sock(OTHER, server, client, 4),
    )  # fmt: skip
    assert here.flow == far.flow is not None
    assert there.flow == away.flow not in (here.flow, None)


def test_a_tuple_that_is_not_whole_has_none(ask: Ask):
    socks = [Sock(POD, (CLIENT[0], 0), SERVER, 1), Sock(POD, CLIENT, (SERVER[0], 0), 2),
            Sock(POD, ("0.0.0.0", 1), SERVER, 3)]  # fmt: skip
    assert {one.flow for one in ask(*socks)} == {None}


WILD_CLIENT, WILD_SERVER = ("0.0.0.0", CLIENT[1]), ("0.0.0.0", SERVER[1])
OWN = {POD: ["127.0.0.1", CLIENT[0], "10.1.0.6"], BACKEND: ["127.0.0.1", SERVER[0]]}


@pytest.mark.parametrize("local", [CLIENT, WILD_CLIENT])
@pytest.mark.parametrize("serving", [SERVER, WILD_SERVER])
def test_udp_sockets_bound_to_a_wildcard_are_joined_by_their_addresses(
    ask: Ask, local: Place, serving: Place
):
    client, server = ask(
        Sock(POD, local, SERVER, 1, UDP_SEND), Sock(BACKEND, serving, CLIENT, 2, UDP_RECV),
        conntrack=tracking({}, OWN),
    )  # fmt: skip
    assert client.flow == server.flow is not None


def test_udp_from_a_wildcard_through_a_service(ask: Ask):
    conntrack = tracking({HOST: [entry(CLIENT, VIP, SERVER, proto=UDP)]}, OWN)
    client, server = ask(
        Sock(POD, WILD_CLIENT, VIP, 1, UDP_SEND), Sock(BACKEND, WILD_SERVER, CLIENT, 2, UDP_RECV),
        conntrack=conntrack,
    )  # fmt: skip
    assert client == (server.flow, "10.1.0.9:8080")
    assert server.flow is not None


def test_a_wildcard_that_fits_two_peers_fits_none(ask: Ask):
    second = ("10.1.0.6", CLIENT[1])
    client, one, two = ask(
        Sock(POD, WILD_CLIENT, SERVER, 1, UDP_SEND), Sock(BACKEND, SERVER, CLIENT, 2, UDP_RECV),
        Sock(BACKEND, SERVER, second, 3, UDP_RECV), conntrack=tracking({}, OWN),
    )  # fmt: skip
    assert client.flow is None
    assert len({one.flow, two.flow, None}) == 3


def test_a_wildcard_without_a_peer_has_its_own(ask: Ask):
    here, there = ask(
        Sock(POD, WILD_CLIENT, SERVER, 1, UDP_SEND), Sock(OTHER, WILD_CLIENT, SERVER, 2, UDP_SEND),
        conntrack=tracking({}, OWN),
    )  # fmt: skip
    assert len({here.flow, there.flow, None}) == 3


def test_flows_carry_the_number_of_their_rows_and_the_side_of_udp(make_recording: Make):
    client = Sock(POD, WILD_CLIENT, VIP, 1, UDP_SEND)
    server = Sock(BACKEND, SERVER, CLIENT, 2, UDP_RECV)
    tcp = Sock(POD, ("10.1.0.5", 41000), SERVER, 3)
    lines = [{**sock.fields, "proto": proto, "first_ts": BOOT_NS, "last_ts": BOOT_NS + 1}
             for sock, proto in ((client, UDP), (server, UDP), (tcp, TCP))]  # fmt: skip
    conntrack = tracking({HOST: [entry(CLIENT, VIP, SERVER, proto=UDP)]}, OWN)
    recording = make_recording(make_events([client.event, tcp.event]), make_flows(lines))
    with closing(load(recording, "n1", Names(conntrack=conntrack))) as made:
        rows = made.con.execute("SELECT flow FROM rows ORDER BY n").fetchall()
        flows = made.con.execute("SELECT net, role, flow, backend FROM flows").fetchall()
    found = {(line[0], line[1] is None): line for line in flows}
    asking, answering, plain = found[POD, False], found[BACKEND, False], found[POD, True]
    assert asking == (POD, "client", rows[0][0], "10.1.0.9:8080")
    assert answering == (BACKEND, "server", rows[0][0], None)
    assert plain == (POD, None, rows[1][0], None)


def test_a_flow_of_several_sockets_has_none(make_recording: Make):
    socks = [Sock(POD, CLIENT, SERVER, sock, UDP_SEND) for sock in (1, 2)]
    flows = make_flows([{**socks[0].fields, "proto": UDP}])
    recording = make_recording(make_events([sock.event for sock in socks]), flows)
    with closing(load(recording, "n1")) as made:
        assert made.con.execute("SELECT flow FROM flows").fetchall() == [(None,)]


ADDRESSES = [f"10.1.0.{n}" for n in range(1, 5)]
EXCHANGES = st.lists(
    st.tuples(
        st.sampled_from(ADDRESSES), st.integers(1, 3), st.sampled_from(ADDRESSES),
        st.integers(1, 3), st.integers(0, 7), st.sampled_from([TCP_STATE, UDP_SEND]),
    ),
    max_size=12,
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(EXCHANGES)
def test_a_number_is_shared_by_the_two_ends_of_one_conversation_only(ask: Ask, exchanges: Any):
    """Each address is that of one namespace; two bits: which side is on this node."""
    socks: list[Sock] = []
    truth: list[int] = []
    for exchange, (source, sport, target, dport, present, kind) in enumerate(exchanges):
        near, far = (source, sport), (target, dport)
        for side, (local, remote) in enumerate(((near, far), (far, near))):
            if present & (1 << side) and near != far:
                net = 100 + ADDRESSES.index(local[0])
                socks.append(Sock(net, local, remote, len(socks) + 1, kind))
                truth.append(exchange)
    flows = [one.flow for one in ask(*socks)]
    users: dict[tuple[Any, ...], int] = {}
    for sock in socks:
        users[sock.local, sock.remote, sock.kind] = (
            users.get((sock.local, sock.remote, sock.kind), 0) + 1
        )
    for sock, flow in zip(socks, flows, strict=True):
        there = users.get((sock.remote, sock.local, sock.kind), 0)
        alone = users[sock.local, sock.remote, sock.kind] == 1 and there <= 1
        assert (flow is not None) == alone
    met: dict[int, list[Sock]] = {}
    for sock, flow in zip(socks, flows, strict=True):
        if flow is not None:
            met.setdefault(flow, []).append(sock)
    for pair in met.values():
        assert len(pair) <= 2
        assert {(one.local, one.remote) for one in pair} <= {
            (pair[0].local, pair[0].remote), (pair[0].remote, pair[0].local)}  # fmt: skip


def test_numbers_fit_63_bits(ask: Ask):
    flows = [
        one.flow for one in ask(*(Sock(POD, CLIENT, ("10.2.0.1", n), n) for n in range(1, 998)))
    ]
    assert len(set(flows)) == 997
    assert all(flow is not None and 0 < flow < 2**63 for flow in flows)
    assert np.mean([flow > 2**62 for flow in flows if flow]) > 0.4
