# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrace_agent.host import procfs

NETSTAT = b"""TcpExt: SyncookiesSent ListenOverflows TCPTimeouts
TcpExt: 0 3 17
IpExt: InNoRoutes InOctets
IpExt: 0 18446744073709551615
"""
SNMP = b"""Ip: Forwarding DefaultTTL
Ip: 2 64
Tcp: MaxConn RetransSegs
Tcp: -1 9
"""
SOCKSTAT = b"""sockets: used 12
TCP: inuse 1 orphan 0 tw 5 alloc 2 mem 222
FRAG: inuse 0 memory 0
"""
SOFTNET = b"""00000011 00000002 00000001 00000000 00000000 00000000 00000000 00000000 0000000a 00000000 00000000 00000000 00000000
000010cc 00000001 00000000 00000000 00000000 00000000 00000000 00000000 00000001 00000000 00000000 00000003 00000001
"""  # noqa: E501  # as the kernel writes it
PRESSURE = b"""some avg10=1.25 avg60=0.00 avg300=0.02 total=5351817
full avg10=0.00 avg60=0.00 avg300=0.00 total=7
"""
CONNTRACK = b"""entries  clashres found new insert_failed drop
0000002a  00000000 00000001 00000000 00000005 00000010
0000002a  00000000 00000002 00000000 00000001 00000000
"""


def test_netstat_and_snmp_pair_names_with_values():
    assert procfs.columns(NETSTAT) == {
        "TcpExt.SyncookiesSent": 0,
        "TcpExt.ListenOverflows": 3,
        "TcpExt.TCPTimeouts": 17,
        "IpExt.InNoRoutes": 0,
        "IpExt.InOctets": 2**64 - 1,
    }
    assert procfs.columns(SNMP)["Tcp.MaxConn"] == -1


def test_a_line_of_values_of_another_group_is_not_taken():
    assert procfs.columns(b"Tcp: A B\nUdp: 1 2\n") == {}


def test_snmp6_is_a_pair_a_line():
    data = b"Ip6InReceives                   \t1\nUdp6NoPorts \t12\n"
    assert procfs.pairs(data) == {"Ip6InReceives": 1, "Udp6NoPorts": 12}


def test_sockstat_pairs_words_of_a_line():
    found = procfs.sockstat(SOCKSTAT)
    assert found["sockets.used"] == 12
    assert found["TCP.tw"] == 5
    assert found["FRAG.memory"] == 0
    assert len(found) == 8


def test_softnet_is_summed_over_cpus():
    assert procfs.softnet(SOFTNET) == {
        "processed": 0x11 + 0x10CC,
        "dropped": 3,
        "time_squeeze": 1,
        "cpu_collision": 11,
        "received_rps": 0,
        "flow_limit_count": 0,
        "backlog_len": 3,
    }


def test_softnet_of_an_old_kernel_has_fewer_columns():
    assert procfs.softnet(b"00000001 00000002 00000003\n") == {
        "processed": 1,
        "dropped": 2,
        "time_squeeze": 3,
    }


def test_pressure_has_shares_and_totals():
    found = procfs.pressure(PRESSURE)
    assert found["some.avg10"] == 1.25
    assert found["some.total"] == 5351817
    assert found["full.total"] == 7
    assert len(found) == 8


def test_conntrack_sums_cpus_but_not_the_size_of_the_table():
    found = procfs.conntrack(CONNTRACK)
    assert found == {
        "entries": 42,
        "clashres": 0,
        "found": 3,
        "new": 0,
        "insert_failed": 6,
        "drop": 16,
    }


PARSERS = [*procfs.PER_NETNS.values(), *(parse for _, parse in procfs.PER_HOST.values())]
KNOWN = [NETSTAT, SNMP, SOCKSTAT, SOFTNET, PRESSURE, CONNTRACK]


@pytest.mark.parametrize("parse", PARSERS)
@given(data=st.binary(max_size=4096))
def test_arbitrary_bytes_never_raise(parse: Callable[[bytes], procfs.Counters], data: bytes):
    for name, value in parse(data).items():
        assert name.isascii()
        assert isinstance(value, int | float)


@pytest.mark.parametrize("parse", PARSERS)
@given(known=st.sampled_from(KNOWN), cut=st.integers(0, 400), junk=st.binary(max_size=40))
def test_damaged_files_never_raise(
    parse: Callable[[bytes], procfs.Counters], known: bytes, cut: int, junk: bytes
):
    parse(known[:cut] + junk + known[cut:])


@pytest.mark.parametrize("parse", PARSERS)
def test_a_huge_file_gives_a_bounded_result(parse: Callable[[bytes], procfs.Counters]):
    many = " ".join(f"N{i}" for i in range(5000))
    zeros = " ".join("1" for _ in range(5000))
    lines = "\n".join(f"N{i} 1" for i in range(5000))
    groups = "\n".join(f"G{i}: used 1" for i in range(5000))
    for text in (f"Tcp: {many}\nTcp: {zeros}\n", f"{many}\n{zeros}\n", lines, groups, "9" * 10_000):
        assert len(parse(text.encode())) <= procfs.MAX_NAMES


@given(
    names=st.lists(st.from_regex(r"[A-Z][A-Za-z0-9]{0,20}", fullmatch=True), unique=True),
    values=st.lists(st.integers(-(2**63), 2**64 - 1)),
)
def test_what_the_kernel_prints_is_read_back(names: list[str], values: list[int]):
    count = min(len(names), len(values))
    names, values = names[:count], values[:count]
    data = f"X: {' '.join(names)}\nX: {' '.join(map(str, values))}\n".encode()
    wanted = {f"X.{name}": value for name, value in zip(names, values, strict=True)}
    assert procfs.columns(data) == wanted
