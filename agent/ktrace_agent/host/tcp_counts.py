# SPDX-License-Identifier: Apache-2.0
"""The kernel's own counts of what the programs should have seen.

Both snapshots are taken while every program is attached, so what the kernel counted between
them must be among the events. A namespace's inode may be used again meanwhile; its counters
then are younger than the first snapshot, and still nothing in them is older than the programs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ktrace_agent.host.counters import Snapshot
from ktrace_agent.host.procfs import columns


@dataclass(frozen=True, slots=True)
class TcpCounts:
    """What the kernel itself counted in one network namespace (SNMP's MIB of TCP)."""

    passive_opens: int
    active_opens: int
    retransmitted: int
    """Segments that were sent again: RetransSegs without TCPRetransFail."""


@dataclass(frozen=True, slots=True)
class Witness:
    """The kernel's own counts while all programs were attached, to hold the rows against."""

    since_ns: int
    """The kernel's boot clock before the first reading; what is counted happened since."""
    until_ns: int
    """After the last reading."""
    netns: Mapping[int, TcpCounts]
    """By inode; those that could be read both times."""


def witness(before: Snapshot, after: Snapshot) -> Witness:
    """What the counters of TCP rose by in every namespace that could be read both times."""
    counts = {}
    for netns, files in after.netns.items():
        first, last = _read(before.netns.get(netns)), _read(files)
        if first and last:
            counts[netns] = TcpCounts(
                passive_opens=last.passive_opens - first.passive_opens,
                active_opens=last.active_opens - first.active_opens,
                retransmitted=last.retransmitted - first.retransmitted,
            )
    return Witness(before.begun_ns, after.ended_ns, counts)


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
            # Failed attempts are counted as segments sent again, and as failed since v4.15.
            retransmitted=int(counters["Tcp.RetransSegs"] - counters["TcpExt.TCPRetransFail"]),
        )
    except KeyError:
        return None
