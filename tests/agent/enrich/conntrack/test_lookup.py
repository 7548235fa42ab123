# SPDX-License-Identifier: Apache-2.0

import pytest

from ktrace_agent.enrich.conntrack.connection import (
    Endpoint,
    Entry,
    SocketAddress,
    Tuple,
    nat_of,
)
from ktrace_agent.enrich.conntrack.ctnetlink import ASSURED, SEEN_REPLY
from ktrace_agent.enrich.conntrack.entries import Table
from ktrace_agent.enrich.conntrack.lookup import Conntrack
from ktrace_agent.host.inet import MAPPED, TCP, UDP, Protocol
from tests.agent.enrich.conntrack.tuples import (
    ASKED,
    BACKEND,
    BOTH,
    CLIENT,
    DNAT,
    FAR,
    HOST,
    NODE,
    OTHER,
    PLAIN,
    POD,
    SNAT,
    STATE,
    VIP,
    S,
    address,
    key,
    only,
)


def table(*dumps: dict[bytes, str], capacity: int = 100, complete: bool = True) -> Table:
    """One dump for each argument, from second 10 to 12, 20 to 22, ...; keys with states."""
    made = Table()
    made.capacity = capacity
    for number, dumped in enumerate(dumps, 1):
        for one, state in dumped.items():
            made.add(one, STATE[state], SEEN_REPLY)
        made.finish_dump(number * 10 * S, (number * 10 + 2) * S, complete=complete)
    return made


def tracked(**tables: Table) -> Conntrack:
    names = {"host": HOST, "pod": POD, "other": OTHER, "far": FAR}
    return Conntrack(host=HOST, tables={names[name]: one for name, one in tables.items()})


def at_client(conntrack: Conntrack, netns: int = POD) -> Entry:
    """The entry of the client's socket."""
    found = conntrack.lookup(Endpoint(netns, "tcp", CLIENT, VIP))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("reply", "nat"), [(PLAIN, "none"), (DNAT, "dnat"), (SNAT, "snat"), (BOTH, "both")]
)
def test_nat_is_what_the_two_tuples_show(reply: Tuple, nat: str):
    assert nat_of(ASKED, reply) == nat


def test_a_changed_port_alone_is_translated_too():
    assert nat_of(ASKED, Tuple(VIP, SocketAddress(CLIENT.address, 1024))) == "snat"
    assert nat_of(ASKED, Tuple(SocketAddress(VIP.address, 8080), CLIENT)) == "dnat"


def test_addresses_and_tuples_are_formatted_as_in_rows():
    assert str(ASKED) == "10.1.0.5:4000 -> 10.96.0.1:80"
    assert str(address("[2001:db8::1]:53")) == "[2001:db8::1]:53"


def test_both_endpoints_of_a_translated_connection_find_it():
    conntrack = tracked(host=table({key(ASKED, BOTH): "ESTABLISHED"}))
    for netns, local, remote in ((POD, CLIENT, VIP), (OTHER, BACKEND, NODE)):
        found = conntrack.lookup(Endpoint(netns, "tcp", local, remote))
        assert found is not None
        assert (found.original, found.reply) == (ASKED, BOTH)
        assert (found.nat, found.state, found.replied) == ("both", "ESTABLISHED", True)
    assert conntrack.lookup(Endpoint(POD, "udp", CLIENT, VIP)) is None
    assert conntrack.lookup(Endpoint(POD, "tcp", VIP, CLIENT)) is None
    assert conntrack.lookup(Endpoint(POD, "tcp", CLIENT, BACKEND)) is None


def test_hairpin_is_one_entry_for_both_endpoints():
    back = Tuple(address("10.1.0.5:8080"), address("10.1.0.1:7000"))
    conntrack = tracked(host=table({key(ASKED, back): "ESTABLISHED"}))
    client = at_client(conntrack)
    server = conntrack.lookup(Endpoint(POD, "tcp", *back))
    assert client == server
    assert client.nat == "both"


def test_a_namespace_that_translates_is_preferred_to_the_own_one():
    plain, translated = table({key(ASKED, PLAIN): "ESTABLISHED"}), key(ASKED, DNAT)
    for where in ("host", "other"):
        conntrack = tracked(pod=plain, **{where: table({translated: "SYN_SENT"})})
        assert at_client(conntrack).nat == "dnat"
    own = tracked(pod=plain, host=table({key(ASKED, PLAIN): "SYN_RECV"}))
    assert at_client(own).netns == POD
    assert at_client(own, FAR).netns == HOST


def test_namespaces_that_contradict_each_other_give_nothing():
    here, there = table({key(ASKED, DNAT): "ESTABLISHED"}), table({key(ASKED, BOTH): "ESTABLISHED"})
    assert tracked(other=here, far=there).lookup(Endpoint(POD, "tcp", CLIENT, VIP)) is None
    assert at_client(tracked(other=here, host=there)).nat == "both"


def test_zones_that_agree_are_one_and_others_unknown():
    same = {key(ASKED, DNAT, zone=zone): "ESTABLISHED" for zone in (1, 2)}
    assert at_client(tracked(host=table(same))).reply == DNAT
    differ = {key(ASKED, DNAT, zone=1): "ESTABLISHED", key(ASKED, BOTH, zone=2): "ESTABLISHED"}
    conntrack = tracked(host=table(differ))
    assert conntrack.lookup(Endpoint(POD, "tcp", CLIENT, VIP)) is None
    assert len(conntrack.candidates(Endpoint(POD, "tcp", CLIENT, VIP))) == 2


@pytest.mark.parametrize("local", ["127.0.0.1:4000", "[::1]:4000", "[fe80::5]:4000"])
def test_loopback_and_link_local_mean_nothing_elsewhere(local: str):
    near, far = address(local), address(local.replace("4000", "53"))
    there = table({key(Tuple(near, far), Tuple(far, near), proto=UDP): "-"})
    conntrack = tracked(host=there)
    assert conntrack.lookup(Endpoint(POD, "udp", near, far)) is None
    assert conntrack.lookup(Endpoint(HOST, "udp", near, far)) is not None


def test_a_wildcard_stands_for_the_namespaces_own_addresses():
    theirs = address("10.1.0.6:4000")
    conntrack = tracked(
        host=table(
            {
                key(ASKED, DNAT, proto=UDP): "-",
                key(Tuple(theirs, VIP), Tuple(VIP, theirs), proto=UDP): "-",
            }
        )
    )
    wildcard = SocketAddress(MAPPED + b"\0" * 4, 4000)
    assert conntrack.lookup(Endpoint(POD, "udp", wildcard, VIP)) is None
    conntrack.addresses = {POD: frozenset({CLIENT.address, b"\0" * 15 + b"\1"})}
    found = conntrack.lookup(Endpoint(POD, "udp", wildcard, VIP))
    assert found is not None
    assert found.reply == DNAT


@pytest.mark.parametrize("proto", [TCP, UDP])
def test_a_tuple_that_is_used_again_finds_the_entry_of_its_time(proto: int):
    first, second = key(ASKED, DNAT, proto=proto), key(ASKED, BOTH, proto=proto)
    over = "TIME_WAIT" if proto == TCP else "-"
    dumps = [{}, {first: "ESTABLISHED"}, {first: over}, {first: over}, {second: "SYN_SENT"}, {}]
    conntrack = tracked(host=table(*dumps))
    name: Protocol = "tcp" if proto == TCP else "udp"

    def at(since: float, until: float) -> str | None:
        found = conntrack.lookup(Endpoint(POD, name, CLIENT, VIP, int(since * S), int(until * S)))
        return found and found.nat

    assert at(15, 25) == "dnat"
    assert at(53, 55) == "both"
    assert at(63, 70) is None
    assert at(1, 5) is None
    assert conntrack.lookup(Endpoint(POD, name, CLIENT, VIP)) is None
    if proto == TCP:
        assert at(25, 55) == "dnat"  # for TCP only the start counts
        assert at(35, 45) is None  # the first was over, the second did not exist yet
        assert at(43, 55) == "both"
    else:
        assert at(35, 38) == "dnat"
        assert at(43, 55) is None  # both can have existed


def test_the_same_tuples_again_are_another_entry():
    again = [key(ASKED, DNAT, number=number) for number in (7, 8)]
    conntrack = tracked(host=table({}, {again[0]: "CLOSE"}, {again[1]: "ESTABLISHED"}))
    assert len(conntrack) == 2
    earlier = conntrack.lookup(Endpoint(POD, "tcp", CLIENT, VIP, 15 * S))
    later = conntrack.lookup(Endpoint(POD, "tcp", CLIENT, VIP, 25 * S))
    assert earlier is not None
    assert later is not None
    assert (earlier.state, later.state) == ("CLOSE", "ESTABLISHED")


def life(made: Table) -> tuple[int | None, int | None]:
    (entry,) = Conntrack(host=HOST, tables={HOST: made}).entries()
    created, ended = entry.created_after_ns, entry.ended_before_ns
    return created and created // S, ended and ended // S


def test_a_lifetime_is_bounded_by_complete_dumps():
    one = key(ASKED, PLAIN)
    there = {one: "ESTABLISHED"}
    assert life(table(there)) == (None, None)
    assert life(table({}, there, there)) == (10, None)
    assert life(table({}, there, {}, {})) == (10, 32)
    assert life(table({}, there, {one: "CLOSE"}, {one: "CLOSE"})) == (10, 30)
    assert life(table({}, there, {}, complete=False)) == (None, None)
    assert life(table({}, there, {one: "CLOSE"}, there)) == (10, None)


def test_an_entry_that_is_finished_in_the_first_dump_is_not_kept():
    over, open_ = key(ASKED, PLAIN), key(ASKED, DNAT)
    made = table({over: "TIME_WAIT", open_: "SYN_SENT"}, {over: "TIME_WAIT"}, capacity=1)
    assert list(made.keys) == [open_]
    assert made.left_out == 1  # by the second dump
    assert table({over: "TIME_WAIT"}, {over: "TIME_WAIT"}).keys == {over: 0}


def test_a_full_table_keeps_what_it_has_and_counts_the_rest():
    keys = [key(Tuple(SocketAddress(CLIENT.address, port), VIP), PLAIN) for port in range(50)]
    made = table(dict.fromkeys(keys, "ESTABLISHED"), dict.fromkeys(keys[:30], "CLOSE"), capacity=20)
    assert list(made.keys) == keys[:20]
    assert made.left_out == 30
    assert not made.dumps[0].complete
    assert made.entry(HOST, keys[0]).state == "CLOSE"


@pytest.mark.parametrize(
    ("status", "state"),
    [(0, "UNREPLIED"), (SEEN_REPLY, "REPLIED"), (SEEN_REPLY | ASSURED, "ASSURED")],
)
def test_udp_has_no_state_but_what_came_back(status: int, state: str):
    entry = only(key(ASKED, PLAIN, proto=UDP), 0, status)
    assert (entry.proto, entry.state, entry.replied) == ("udp", state, bool(status))


def test_a_state_of_a_newer_kernel_is_unknown():
    assert only(key(ASKED, PLAIN), 200, 0).state == "-"
