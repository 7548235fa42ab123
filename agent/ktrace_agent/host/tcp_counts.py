# SPDX-License-Identifier: Apache-2.0
"""The kernel's own TCP counters, to compare with the recorded events.

Both snapshots are taken while every program is attached, so everything that the kernel counted
between them must be among the events. If the inode of a namespace is reused meanwhile, its counters
are younger than the first snapshot, but still younger than the attached programs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ktrace_agent.host.counters import Snapshot
from ktrace_agent.host.procfs import columns


@dataclass(frozen=True, slots=True)
class TcpCounts:
    """Counters of the kernel in one network namespace (the TCP part of the SNMP MIB)."""

    passive_opens: int
    active_opens: int
    retransmitted: int
    """Retransmitted segments: RetransSegs minus TCPRetransFail."""


@dataclass(frozen=True, slots=True)
class TcpCountsRise:
    """The kernel's own counts while all programs were attached, to compare with the rows."""

    since_ns: int
    """The kernel's boot clock before the first reading; all counted events are later."""
    until_ns: int
    """After the last reading."""
    netns: Mapping[int, TcpCounts]
    """By inode; only namespaces that could be read both times."""


def rise(before: Snapshot, after: Snapshot) -> TcpCountsRise:
    """Return the increase of the TCP counters in each namespace that was readable both times."""
    counts = {}
    for netns, files in after.netns.items():
        first, last = _read(before.netns.get(netns)), _read(files)
        if first and last:
            counts[netns] = TcpCounts(
                passive_opens=last.passive_opens - first.passive_opens,
                active_opens=last.active_opens - first.active_opens,
                retransmitted=last.retransmitted - first.retransmitted,
            )
    return TcpCountsRise(before.begun_ns, after.ended_ns, counts)


def _read(files: object) -> TcpCounts | None:
    if not isinstance(files, Mapping):
        return None
    snmp, netstat = files.get("snmp"), files.get("netstat")
    if not isinstance(snmp, bytes) or not isinstance(netstat, bytes):
        return None
    counters = columns(snmp) | columns(netstat)
    try:
        return TcpCounts(
            passive_opens=int(counters["Tcp.PassiveOpens"]),
            active_opens=int(counters["Tcp.ActiveOpens"]),
            # Since v4.15 failed retransmissions count as retransmitted and as failed.
            retransmitted=int(counters["Tcp.RetransSegs"] - counters["TcpExt.TCPRetransFail"]),
        )
    except KeyError:
        return None
