# SPDX-License-Identifier: Apache-2.0
"""The next command of a finding runs in the network namespace of its subject."""

import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.agent.analyze.capture_builder import NET, SERVER, Captured, ends

OF_A_NAMESPACE = re.compile(
    r"\b(ss|nc|dig|nft|ip (?:route|neigh)|conntrack -|nstat|ping|mtr|tcpdump|"
    r"sysctl net\.(?:ipv4|netfilter))\b"
)
"""What shows another thing in each network namespace."""
LONGEST = "fd00:1111:2222:3333:4444:5555:6666:7777"
INSIDE = re.compile(r"""nsenter -t (?:\d+|\$\([^)]*\)) -n (?:sh -c "[^"]*"|[^;"]+)""")


def connects(count: int, result: str, error: str = "-", **facts: Any) -> Captured:
    made = Captured()
    for number in range(count):
        made.connect(number * 0.1, result, error, local_port=40000 + number, **facts)
    return made


def refused_maybe_by_a_firewall() -> Captured:
    made = connects(12, "failed", "ECONNREFUSED").flow("udp", port=8125, tx_calls=40)
    return made.counter("snmp", "Icmp.InDestUnreachs", 40)


def refused_by_turns() -> Captured:
    """A loop around a tool: many processes, and all have exited."""
    made = Captured()
    for number in range(12):
        made.connect(number, "failed", "ECONNREFUSED", tgid=300 + number, cgroup_id=7,
                     to=LONGEST, local_port=40000 + number)  # fmt: skip
    return made


def full_table() -> Captured:
    made = Captured().connect(1).counter("conntrack/max", "value", 0, netns=None, before=1000)
    made.counter("stat/nf_conntrack", "entries", 0, before=1000)
    return made.counter("stat/nf_conntrack", "drop", 9)


def full_buffer(**facts: Any) -> Captured:
    made = Captured().connect(1)
    if facts:
        made.row(2, "udp_recv", errno=0, **ends("10.0.0.1", 9000, SERVER, 40000), **facts)
    return made.counter("snmp", "Udp.RcvbufErrors", 500)


CASES: dict[str, tuple[str, Callable[[], Captured]]] = {
    "refused": ("TCP_CONNECT_REFUSED", lambda: connects(12, "failed", "ECONNREFUSED")),
    "refused by whom": ("TCP_CONNECT_REFUSED", refused_maybe_by_a_firewall),
    "refused by turns": ("TCP_CONNECT_REFUSED", refused_by_turns),
    "unanswered": ("TCP_SYN_UNANSWERED", lambda: connects(12, "abandoned", us=1_600_000)),
    "timeout": ("TCP_CONNECT_TIMEOUT", lambda: connects(12, "failed", "ETIMEDOUT", us=9_000_000)),
    "unreachable": ("TCP_CONNECT_UNREACHABLE", lambda: connects(12, "failed", "EHOSTUNREACH")),
    "denied": ("CONNECT_DENIED", lambda: connects(12, "denied", "EPERM")),
    "full table": ("CONNTRACK_FULL", full_table),
    "clashes": (
        "CONNTRACK_INSERT_FAILED",
        lambda: Captured().connect(1).counter("stat/nf_conntrack", "insert_failed", 50),
    ),
    "a reader": ("UDP_RCVBUF_DROPS", lambda: full_buffer(tgid=700, comm="sink")),
    "no reader": ("UDP_RCVBUF_DROPS", full_buffer),
    "a listener": (
        "LISTEN_OVERFLOW",
        lambda: Captured().connect(1).counter("netstat", "TcpExt.ListenOverflows", 50),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_command_looks_into_the_namespace_of_the_subject(name: str):
    finding, make = CASES[name]
    command = make().finding(finding).next
    assert not command.endswith("…"), "it was cut"
    assert INSIDE.search(command), command
    outside = INSIDE.sub("", command)
    assert not OF_A_NAMESPACE.search(outside), outside
    subprocess.run(["sh", "-n", "-c", command], check=True)


def test_where_no_process_is_known_any_of_the_namespace_will_do():
    command = full_table().finding("CONNTRACK_FULL").next
    assert f"awk '/{NET}/" in command
    assert command.endswith("; dmesg | grep 'table full'")


def test_the_listener_is_looked_for_where_it_was_refused():
    command = connects(12, "failed", "ECONNREFUSED").finding("TCP_CONNECT_REFUSED").next
    assert command == f"nsenter -t 100 -n sh -c \"nc -vz {SERVER} 443; ss -ltn 'sport = :443'\""
