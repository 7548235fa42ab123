# SPDX-License-Identifier: Apache-2.0
"""The increase of the kernel's TCP counters between two snapshots."""

from collections.abc import Mapping

from ktrace_agent.host.counters import Files, Missing, Snapshot
from ktrace_agent.host.tcp_counts import TcpCounts, rise


def files(active: int, passive: int, retransmitted: int, failed: int) -> Files:
    return {
        "snmp": (
            f"Tcp: ActiveOpens PassiveOpens RetransSegs\nTcp: {active} {passive} {retransmitted}\n"
        ).encode(),
        "netstat": f"TcpExt: TCPRetransFail\nTcpExt: {failed}\n".encode(),
    }


def snapshot(netns: Mapping[int, Files | Missing], begun: int, ended: int) -> Snapshot:
    return Snapshot({}, netns, 1, True, begun, ended)


def test_the_increase_counts_and_failed_retransmissions_do_not():
    before = snapshot({1: files(10, 20, 5, 1)}, 100, 110)
    after = snapshot({1: files(13, 27, 12, 3)}, 200, 210)
    found = rise(before, after)
    assert (found.since_ns, found.until_ns) == (100, 210)
    assert found.netns == {1: TcpCounts(passive_opens=7, active_opens=3, retransmitted=5)}


def test_only_namespaces_that_were_read_twice_count():
    complete = files(1, 1, 1, 1)
    before = snapshot({1: complete, 2: Missing.DENIED, 4: {**complete, "snmp": b""}}, 0, 0)
    after = snapshot({1: Missing.VANISHED, 2: complete, 3: complete, 4: complete}, 0, 0)
    assert rise(before, after).netns == {}
