# SPDX-License-Identifier: Apache-2.0
"""Conntrack entries as netlink and /proc report them."""

import socket
import struct
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrace_agent.enrich.conntrack import ctnetlink, netlink
from ktrace_agent.enrich.conntrack.connection import Tuple
from ktrace_agent.enrich.conntrack.ctnetlink import (
    ASSURED,
    DST_NAT,
    SEEN_REPLY,
    SRC_NAT,
    TCP_STATES,
    pack_key,
    pack_tuple,
)
from ktrace_agent.enrich.conntrack.proc_text import read_line
from ktrace_agent.host.inet import MAPPED, TCP, UDP
from tests.agent.enrich.conntrack.tuples import (
    ASKED,
    BOTH,
    DNAT,
    PLAIN,
    SNAT,
    STATE,
    address,
    key,
    only,
)
from tests.nat.fill import message

# Netlink


def read(data: bytes) -> list[tuple[bytes, int, int]]:
    got: list[tuple[bytes, int, int]] = []
    ctnetlink.read_entry(data, 20, len(data), lambda *one: got.append(one))
    return got


def unmapped(text: str) -> tuple[bytes, int]:
    octets, port = address(text)
    return octets.removeprefix(MAPPED), port


V4 = (unmapped("10.1.0.5:4000"), unmapped("10.96.0.1:80"), unmapped("10.1.0.9:8080"))
V6 = (unmapped("[fd00::5]:4000"), unmapped("[fd96::1]:80"), unmapped("[fd00::9]:8080"))


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
    whole, zone = ctnetlink.read_tuple(data, 24, 24 + size) or (b"", -1)
    groups = [data[a - 4 : b + (-b % 4)] for _, a, b in netlink.attributes(data, 24, 24 + size)]
    with_zone = struct.pack("=HH", 6, 3) + b"\0\x09\0\0"
    turned = groups[1] + groups[0] + with_zone
    assert ctnetlink.read_tuple(turned, 0, len(turned)) == (whole, 9)
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
                Tuple(address("[fd00::5]:4000"), address("[fd96::1]:80")),
                Tuple(address("[fd96::1]:80"), address("[fd00::5]:4000")),
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
        (key(ASKED, PLAIN), 0, SEEN_REPLY | ctnetlink.OFFLOAD),
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
