# SPDX-License-Identifier: Apache-2.0
import socket
import struct
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrace_agent.enrich import netlink, nfct
from ktrace_agent.enrich.conntrack import Conntrack
from ktrace_agent.enrich.conntrack_table import End, Entry, Proto, Table, Tuple, nat_of
from ktrace_agent.enrich.conntrack_text import read_line
from ktrace_agent.enrich.netlink import MAPPED
from ktrace_agent.enrich.nfct import (
    ASSURED,
    DST_NAT,
    SEEN_REPLY,
    SRC_NAT,
    TCP,
    TCP_STATES,
    UDP,
    pack_key,
    pack_tuple,
)
from tests.nat.fill import message

HOST, POD, OTHER, FAR = 1, 2, 3, 4
S = 1_000_000_000
STATE = {name: number for number, name in enumerate(TCP_STATES)}


def end(text: str) -> End:
    host, _, port = text.rpartition(":")
    if host.startswith("["):
        return End(socket.inet_pton(socket.AF_INET6, host[1:-1]), int(port))
    return End(MAPPED + socket.inet_aton(host), int(port))


CLIENT, VIP, BACKEND, NODE = (
    end(text) for text in ("10.1.0.5:4000", "10.96.0.1:80", "10.1.0.9:8080", "192.0.2.1:6000")
)
ASKED, PLAIN = Tuple(CLIENT, VIP), Tuple(VIP, CLIENT)
DNAT, SNAT, BOTH = Tuple(BACKEND, CLIENT), Tuple(VIP, NODE), Tuple(BACKEND, NODE)


def packed(proto: int, flow: Tuple) -> bytes:
    addresses = [one.address.removeprefix(MAPPED) for one in flow]
    return pack_tuple(proto, addresses[0], flow.src.port, addresses[1], flow.dst.port)


def key(
    original: Tuple, reply: Tuple, *, proto: int = TCP, zone: int = 0, number: int = 0
) -> bytes:
    return pack_key(zone, number, packed(proto, original), packed(proto, reply))


def table(*looks: dict[bytes, str], room: int = 100, whole: bool = True) -> Table:
    """One look for each argument, from second 10 to 12, 20 to 22, ...; keys with states."""
    made = Table()
    made.room = room
    for number, seen in enumerate(looks, 1):
        for one, state in seen.items():
            made.see(one, STATE[state], SEEN_REPLY)
        made.looked(number * 10 * S, (number * 10 + 2) * S, whole=whole)
    return made


def only(one: bytes, state: int, status: int) -> Entry:
    """The entry that a look makes of what a reader gives."""
    made = Table()
    made.room = 1
    made.see(one, state, status)
    made.looked(10, 12, whole=True)
    return made.entry(HOST, one)


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


def settled(all_seen: Conntrack, *begins: float, proto: Proto = "tcp") -> list[str | None]:
    """NAT of the client's sockets that began at these seconds, all of them announced."""
    times = [int(begin * S) for begin in begins]
    all_seen.announce(POD, CLIENT, VIP, times)
    entries = [all_seen.lookup(POD, proto, CLIENT, VIP, begin, begin) for begin in times]
    return [entry and entry.nat for entry in entries]


def test_of_sockets_with_one_tuple_the_last_before_the_look_has_the_entry():
    all_seen = seen(host=table({}, {key(ASKED, DNAT): "ESTABLISHED"}, {}))
    assert settled(all_seen, 15) == ["dnat"]
    assert settled(all_seen, 13, 19, 15) == [None, "dnat", None]
    assert settled(all_seen, 15, 25) == ["dnat", None]


def test_a_socket_for_which_nothing_is_known_may_be_the_entrys_too():
    looks = [{}, {key(ASKED, DNAT): "CLOSE"}, {key(ASKED, BOTH, number=2): "ESTABLISHED"}]
    all_seen = seen(host=table(*looks))
    begin = 19.99  # so short before the look that both entries fit
    assert settled(all_seen, begin) == [None]
    assert settled(all_seen, 15, begin, 25) == [None, None, "both"]
    assert settled(all_seen, 15, 25) == ["dnat", "both"]


def test_a_socket_from_before_the_capture_has_the_entry_that_was_there():
    all_seen = seen(host=table({key(ASKED, DNAT): "ESTABLISHED"}, {}, {}))
    assert settled(all_seen, 14, 16) == ["dnat", None]


def test_what_cannot_be_wrong_is_left_to_all():
    plain = seen(host=table({}, {key(ASKED, PLAIN): "ESTABLISHED"}))
    assert settled(plain, 13, 15) == ["none", "none"]
    udp = seen(host=table({}, {key(ASKED, DNAT, proto=UDP): "-"}))
    assert settled(udp, 13, 15, proto="udp") == ["dnat", "dnat"]


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


# Netlink


def read(data: bytes) -> list[tuple[bytes, int, int]]:
    got: list[tuple[bytes, int, int]] = []
    nfct.read_entry(data, 20, len(data), lambda *one: got.append(one))
    return got


def ends(text: str) -> tuple[bytes, int]:
    address, port = end(text)
    return address.removeprefix(MAPPED), port


V4 = (ends("10.1.0.5:4000"), ends("10.96.0.1:80"), ends("10.1.0.9:8080"))
V6 = (ends("[fd00::5]:4000"), ends("[fd96::1]:80"), ends("[fd00::9]:8080"))


@pytest.mark.parametrize(("flow", "zone"), list(product((V4, V6), (0, 7))))
def test_a_message_is_read(flow: tuple[tuple[bytes, int], ...], zone: int):
    client, asked, answering = flow
    ((got, state, status),) = read(message(TCP, *flow, state=STATE["SYN_RECV"], zone=zone))
    original = pack_tuple(TCP, client[0], client[1], asked[0], asked[1])
    reply = pack_tuple(TCP, answering[0], answering[1], client[0], client[1])
    assert got == pack_key(zone, 0, original, reply)
    assert (state, status) == (STATE["SYN_RECV"], 0)


@pytest.mark.parametrize("flow", [V4, V6])
def test_attributes_in_another_order_give_the_same(flow: tuple[tuple[bytes, int], ...]):
    data = message(UDP, *flow)
    size = struct.unpack_from("=H", data, 20)[0] - 4
    whole, zone = nfct.read_tuple(data, 24, 24 + size) or (b"", -1)
    groups = [data[a - 4 : b + (-b % 4)] for _, a, b in netlink.attributes(data, 24, 24 + size)]
    with_zone = struct.pack("=HH", 6, 3) + b"\0\x09\0\0"
    turned = groups[1] + groups[0] + with_zone
    assert nfct.read_tuple(turned, 0, len(turned)) == (whole, 9)
    assert zone == 0


def test_other_protocols_are_left_out():
    assert read(message(1, *V4)) == []
    assert read(message(132, *V4)) == []


@given(data=st.binary(max_size=400))
def test_arbitrary_attributes_never_raise(data: bytes):
    for one, _, _ in read(b"\0" * 20 + data):
        assert len(one) in (32, 80)


@given(
    flow=st.sampled_from([V4, V6]), at=st.integers(16, 250), junk=st.binary(max_size=12),
    cut=st.integers(0, 12),
)  # fmt: skip
def test_damaged_messages_never_raise(
    flow: tuple[tuple[bytes, int], ...], at: int, junk: bytes, cut: int
):
    data = message(TCP, *flow, zone=3)
    damaged = data[:at] + junk + data[at + cut :]
    for one, state, status in read(damaged):
        assert len(one) in (32, 80)
        assert state < 256
        assert status < 1 << 32


@given(data=st.binary(max_size=300))
def test_arbitrary_datagrams_end_or_are_refused(data: bytes):
    try:
        for _, start, stop in netlink.messages(data):
            assert start <= stop <= len(data)
    except (OSError, netlink.NetlinkFailed):
        pass


# /proc

LINES = {
    "tcp": (
        (
            b"ipv4     2 tcp      6 431999 ESTABLISHED src=10.1.0.5 dst=10.96.0.1 sport=4000"
            b" dport=80 packets=3 bytes=180 src=10.1.0.9 dst=10.1.0.5 sport=8080 dport=4000"
            b" packets=1 bytes=60 [ASSURED] mark=0"
            b" secctx=system_u:object_r:unlabeled_t:s0 zone=0 use=2\n"
        ),
        (key(ASKED, DNAT), STATE["ESTABLISHED"], SEEN_REPLY | ASSURED | DST_NAT),
    ),
    "unreplied": (
        (
            b"ipv4     2 udp      17 29 src=10.1.0.5 dst=10.96.0.1 sport=4000 dport=80 [UNREPLIED]"
            b" src=10.1.0.9 dst=192.0.2.1 sport=8080 dport=6000 mark=4660 zone=5 use=2\n"
        ),
        (key(ASKED, BOTH, proto=UDP, zone=5), 0, SRC_NAT | DST_NAT),
    ),
    "ipv6": (
        (
            b"ipv6     10 tcp      6 110 TIME_WAIT src=fd00:0000:0000:0000:0000:0000:0000:0005"
            b" dst=fd96:0000:0000:0000:0000:0000:0000:0001 sport=4000 dport=80 zone-orig=3"
            b" src=fd96:0000:0000:0000:0000:0000:0000:0001"
            b" dst=fd00:0000:0000:0000:0000:0000:0000:0005 sport=80 dport=4000 [ASSURED] use=1\n"
        ),
        (
            key(
                Tuple(end("[fd00::5]:4000"), end("[fd96::1]:80")),
                Tuple(end("[fd96::1]:80"), end("[fd00::5]:4000")),
                zone=3,
            ),
            STATE["TIME_WAIT"],
            SEEN_REPLY | ASSURED,
        ),
    ),
    "offloaded": (
        (
            b"ipv4     2 tcp      6 src=10.1.0.5 dst=10.96.0.1 sport=4000 dport=80"
            b" src=10.96.0.1 dst=10.1.0.5 sport=80 dport=4000 [OFFLOAD] mark=0 use=3\n"
        ),
        (key(ASKED, PLAIN), 0, SEEN_REPLY | nfct.OFFLOAD),
    ),
    "ip_conntrack": (
        (
            b"tcp      6 117 SYN_SENT src=10.1.0.5 dst=10.96.0.1 sport=4000 dport=80 packets=1"
            b" bytes=60 [UNREPLIED] src=10.96.0.1 dst=192.0.2.1 sport=80 dport=6000 packets=0"
            b" bytes=0 mark=0 use=1\n"
        ),
        (key(ASKED, SNAT), STATE["SYN_SENT"], SRC_NAT),
    ),
}


def of_line(line: bytes) -> list[tuple[bytes, int, int]]:
    got: list[tuple[bytes, int, int]] = []
    assert read_line(line, lambda *one: got.append(one)) == bool(got)
    return got


@pytest.mark.parametrize("name", LINES)
def test_a_line_is_read(name: str):
    line, wanted = LINES[name]
    assert of_line(line) == [wanted]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        (
            b"ipv4     2 icmp     1 29 src=10.0.0.1 dst=10.0.0.2 type=8 code=0 id=7"
            b" src=10.0.0.2 dst=10.0.0.1 type=0 code=0 id=7 mark=0 use=1\n"
        ),
        (
            b"ipv4     2 unknown  2 583 src=10.78.2.1 dst=224.0.0.22 [UNREPLIED] src=224.0.0.22"
            b" dst=10.78.2.1 mark=0 use=1\n"
        ),
        LINES["tcp"][0].replace(b"sport=4000", b"sport=70000"),
        LINES["tcp"][0].replace(b"dst=10.96.0.1", b"dst=10.96.0.256"),
        LINES["tcp"][0].replace(b"dst=10.96.0.1", b"dst=fd00::1"),
        LINES["tcp"][0][:110],
    ],
)
def test_other_lines_are_left_out(line: bytes):
    assert of_line(line) == []


@given(line=st.binary(max_size=2000))
def test_arbitrary_lines_never_raise(line: bytes):
    of_line(line)


@given(
    name=st.sampled_from(list(LINES)), at=st.integers(0, 330), junk=st.binary(max_size=30),
    cut=st.integers(0, 40),
)  # fmt: skip
def test_damaged_lines_never_raise(name: str, at: int, junk: bytes, cut: int):
    line = LINES[name][0]
    for one, state, status in of_line(line[:at] + junk + line[at + cut :]):
        assert len(one) in (32, 80)
        assert state < len(TCP_STATES)
        assert status < 1 << 16


PORTS = st.integers(0, 65535)
V4S = st.ip_addresses(v=4).map(lambda one: one.packed)
V6S = st.ip_addresses(v=6).map(lambda one: one.packed)


@given(
    addresses=st.one_of(st.tuples(V4S, V4S, V4S), st.tuples(V6S, V6S, V6S)),
    ports=st.tuples(PORTS, PORTS, PORTS),
    proto=st.sampled_from([TCP, UDP]),
    zone=PORTS,
)
def test_both_readers_give_the_same_key(
    addresses: tuple[bytes, bytes, bytes], ports: tuple[int, int, int], proto: int, zone: int
):
    flow = list(zip(addresses, ports, strict=True))
    ((by_netlink, _, _),) = read(message(proto, *flow, zone=zone))
    family = socket.AF_INET if len(addresses[0]) == 4 else socket.AF_INET6
    texts = [socket.inet_ntop(family, one) for one in addresses]
    (client, cport), (vip, vport), (backend, bport) = zip(texts, ports, strict=True)
    line = (
        f"ipv4 2 {'tcp' if proto == TCP else 'udp'} {proto} 9 src={client} dst={vip}"
        f" sport={cport} dport={vport} src={backend} dst={client} sport={bport} dport={cport}"
        f" mark=0 zone={zone} use=1"
    )
    ((by_text, _, status),) = of_line(line.encode())
    assert by_text == by_netlink
    entry = only(by_text, 0, status)
    assert (entry.original.src.port, entry.reply.src.port, entry.zone) == (cport, bport, zone)
    assert (status & DST_NAT != 0) == (entry.nat in ("dnat", "both"))
    assert not status & SRC_NAT
