# SPDX-License-Identifier: Apache-2.0

import pytest

from ktrace_agent.enrich.conntrack.ctnetlink import ASSURED, SEEN_REPLY, TCP, UDP
from ktrace_agent.enrich.conntrack.entries import End, Entry, Proto, Table, Tuple, nat_of
from ktrace_agent.enrich.conntrack.lookup import Conntrack
from ktrace_agent.enrich.conntrack.netlink import MAPPED
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
    end,
    key,
    only,
)


def table(*looks: dict[bytes, str], room: int = 100, whole: bool = True) -> Table:
    """One look for each argument, from second 10 to 12, 20 to 22, ...; keys with states."""
    made = Table()
    made.room = room
    for number, seen in enumerate(looks, 1):
        for one, state in seen.items():
            made.see(one, STATE[state], SEEN_REPLY)
        made.looked(number * 10 * S, (number * 10 + 2) * S, whole=whole)
    return made


def seen(**tables: Table) -> Conntrack:
    names = {"host": HOST, "pod": POD, "other": OTHER, "far": FAR}
    return Conntrack(host=HOST, tables={names[name]: one for name, one in tables.items()})


def at_client(all_seen: Conntrack, netns: int = POD) -> Entry:
    """What the client's socket finds."""
    found = all_seen.lookup(netns, "tcp", CLIENT, VIP)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("reply", "nat"), [(PLAIN, "none"), (DNAT, "dnat"), (SNAT, "snat"), (BOTH, "both")]
)
def test_nat_is_what_the_two_tuples_show(reply: Tuple, nat: str):
    assert nat_of(ASKED, reply) == nat


def test_a_changed_port_alone_is_translated_too():
    assert nat_of(ASKED, Tuple(VIP, End(CLIENT.address, 1024))) == "snat"
    assert nat_of(ASKED, Tuple(End(VIP.address, 8080), CLIENT)) == "dnat"


def test_ends_and_tuples_are_shown_as_in_rows():
    assert str(ASKED) == "10.1.0.5:4000 -> 10.96.0.1:80"
    assert str(end("[2001:db8::1]:53")) == "[2001:db8::1]:53"


def test_both_ends_of_a_translated_connection_find_it():
    all_seen = seen(host=table({key(ASKED, BOTH): "ESTABLISHED"}))
    for netns, local, remote in ((POD, CLIENT, VIP), (OTHER, BACKEND, NODE)):
        found = all_seen.lookup(netns, "tcp", local, remote)
        assert found is not None
        assert (found.original, found.reply) == (ASKED, BOTH)
        assert (found.nat, found.state, found.replied) == ("both", "ESTABLISHED", True)
    assert all_seen.lookup(POD, "udp", CLIENT, VIP) is None
    assert all_seen.lookup(POD, "tcp", VIP, CLIENT) is None
    assert all_seen.lookup(POD, "tcp", CLIENT, BACKEND) is None


def test_hairpin_is_one_entry_for_both_ends():
    back = Tuple(end("10.1.0.5:8080"), end("10.1.0.1:7000"))
    all_seen = seen(host=table({key(ASKED, back): "ESTABLISHED"}))
    client = at_client(all_seen)
    server = all_seen.lookup(POD, "tcp", *back)
    assert client == server
    assert client.nat == "both"


def test_a_namespace_that_translates_says_more_than_ones_own():
    plain, translated = table({key(ASKED, PLAIN): "ESTABLISHED"}), key(ASKED, DNAT)
    for where in ("host", "other"):
        all_seen = seen(pod=plain, **{where: table({translated: "SYN_SENT"})})
        assert at_client(all_seen).nat == "dnat"
    own = seen(pod=plain, host=table({key(ASKED, PLAIN): "SYN_RECV"}))
    assert at_client(own).netns == POD
    assert at_client(own, FAR).netns == HOST


def test_namespaces_that_contradict_each_other_give_nothing():
    here, there = table({key(ASKED, DNAT): "ESTABLISHED"}), table({key(ASKED, BOTH): "ESTABLISHED"})
    assert seen(other=here, far=there).lookup(POD, "tcp", CLIENT, VIP) is None
    assert at_client(seen(other=here, host=there)).nat == "both"


def test_zones_that_agree_are_one_and_others_unknown():
    same = {key(ASKED, DNAT, zone=zone): "ESTABLISHED" for zone in (1, 2)}
    assert at_client(seen(host=table(same))).reply == DNAT
    differ = {key(ASKED, DNAT, zone=1): "ESTABLISHED", key(ASKED, BOTH, zone=2): "ESTABLISHED"}
    all_seen = seen(host=table(differ))
    assert all_seen.lookup(POD, "tcp", CLIENT, VIP) is None
    assert len(all_seen.candidates(POD, "tcp", CLIENT, VIP)) == 2


@pytest.mark.parametrize("local", ["127.0.0.1:4000", "[::1]:4000", "[fe80::5]:4000"])
def test_loopback_and_link_local_mean_nothing_elsewhere(local: str):
    near, far = end(local), end(local.replace("4000", "53"))
    there = table({key(Tuple(near, far), Tuple(far, near), proto=UDP): "-"})
    all_seen = seen(host=there)
    assert all_seen.lookup(POD, "udp", near, far) is None
    assert all_seen.lookup(HOST, "udp", near, far) is not None


def test_a_wildcard_stands_for_the_namespaces_own_addresses():
    theirs = end("10.1.0.6:4000")
    all_seen = seen(
        host=table(
            {
                key(ASKED, DNAT, proto=UDP): "-",
                key(Tuple(theirs, VIP), Tuple(VIP, theirs), proto=UDP): "-",
            }
        )
    )
    wildcard = End(MAPPED + b"\0" * 4, 4000)
    assert all_seen.lookup(POD, "udp", wildcard, VIP) is None
    all_seen.addresses = {POD: frozenset({CLIENT.address, b"\0" * 15 + b"\1"})}
    found = all_seen.lookup(POD, "udp", wildcard, VIP)
    assert found is not None
    assert found.reply == DNAT


@pytest.mark.parametrize("proto", [TCP, UDP])
def test_a_tuple_that_is_used_again_finds_the_entry_of_its_time(proto: int):
    first, second = key(ASKED, DNAT, proto=proto), key(ASKED, BOTH, proto=proto)
    over = "TIME_WAIT" if proto == TCP else "-"
    looks = [{}, {first: "ESTABLISHED"}, {first: over}, {first: over}, {second: "SYN_SENT"}, {}]
    all_seen = seen(host=table(*looks))
    name: Proto = "tcp" if proto == TCP else "udp"

    def at(since: float, until: float) -> str | None:
        found = all_seen.lookup(POD, name, CLIENT, VIP, int(since * S), int(until * S))
        return found and found.nat

    assert at(15, 25) == "dnat"
    assert at(53, 55) == "both"
    assert at(63, 70) is None
    assert at(1, 5) is None
    assert all_seen.lookup(POD, name, CLIENT, VIP) is None
    if proto == TCP:
        assert at(25, 55) == "dnat"  # of TCP the begin counts
        assert at(35, 45) is None  # the first was over, the second not there yet
        assert at(43, 55) == "both"
    else:
        assert at(35, 38) == "dnat"
        assert at(43, 55) is None  # nobody knows which when


def test_the_same_tuples_again_are_another_entry():
    again = [key(ASKED, DNAT, number=number) for number in (7, 8)]
    all_seen = seen(host=table({}, {again[0]: "CLOSE"}, {again[1]: "ESTABLISHED"}))
    assert len(all_seen) == 2
    earlier = all_seen.lookup(POD, "tcp", CLIENT, VIP, 15 * S)
    later = all_seen.lookup(POD, "tcp", CLIENT, VIP, 25 * S)
    assert earlier is not None
    assert later is not None
    assert (earlier.state, later.state) == ("CLOSE", "ESTABLISHED")


def life(made: Table) -> tuple[int | None, int | None]:
    (entry,) = Conntrack(host=HOST, tables={HOST: made}).entries()
    born, gone = entry.born_after_ns, entry.gone_before_ns
    return born and born // S, gone and gone // S


def test_life_is_bounded_by_looks_that_saw_all():
    one = key(ASKED, PLAIN)
    there = {one: "ESTABLISHED"}
    assert life(table(there)) == (None, None)
    assert life(table({}, there, there)) == (10, None)
    assert life(table({}, there, {}, {})) == (10, 32)
    assert life(table({}, there, {one: "CLOSE"}, {one: "CLOSE"})) == (10, 30)
    assert life(table({}, there, {}, whole=False)) == (None, None)
    assert life(table({}, there, {one: "CLOSE"}, there)) == (10, None)


def test_what_was_over_before_the_first_look_takes_no_room():
    over, open_ = key(ASKED, PLAIN), key(ASKED, DNAT)
    made = table({over: "TIME_WAIT", open_: "SYN_SENT"}, {over: "TIME_WAIT"}, room=1)
    assert list(made.keys) == [open_]
    assert made.left_out == 1  # of the second look
    assert table({over: "TIME_WAIT"}, {over: "TIME_WAIT"}).keys == {over: 0}


def test_a_full_table_keeps_what_it_has_and_counts_the_rest():
    keys = [key(Tuple(End(CLIENT.address, port), VIP), PLAIN) for port in range(50)]
    made = table(dict.fromkeys(keys, "ESTABLISHED"), dict.fromkeys(keys[:30], "CLOSE"), room=20)
    assert list(made.keys) == keys[:20]
    assert made.left_out == 30
    assert not made.looks[0].whole
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
