# SPDX-License-Identifier: Apache-2.0
"""Changes of the host's counters between two snapshots, and the part that fits node.json.

Pure functions of the snapshots. Findings use all changes (compare). If they exceed the limit of
node.json, error counters come before traffic counters, and these before the rest (fit).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from ktrace_agent.host.counters import MAX_NETNS, Files, Missing, Raw, Snapshot
from ktrace_agent.host.procfs import PER_HOST, PER_NETNS, REFERENCES, Counters, Number

KEPT_NETNS = 64
"""Maximum number of namespaces that fit() keeps; compare() takes all that a snapshot reads."""
MAX_BYTES = 64 * 1024
"""Maximum JSON size of the changes that fit() keeps, even indented by two spaces."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ERRORS = _names(
    """
    TcpExt.ListenOverflows TcpExt.ListenDrops TcpExt.TCPBacklogDrop TcpExt.TCPReqQFullDrop
    TcpExt.TCPReqQFullDoCookies TcpExt.TCPTimeouts TcpExt.TCPSynRetrans TcpExt.TCPLostRetransmit
    TcpExt.TCPMemoryPressures TcpExt.TCPTimeWaitOverflow TcpExt.PruneCalled TcpExt.TCPRcvQDrop
    TcpExt.TCPZeroWindowDrop TcpExt.SyncookiesSent TcpExt.EmbryonicRsts TcpExt.TCPMD5NotFound
    TcpExt.IPReversePathFilter
    Tcp.RetransSegs Tcp.AttemptFails Tcp.EstabResets Tcp.InErrs Tcp.OutRsts Tcp.InCsumErrors
    Udp.NoPorts Udp.InErrors Udp.RcvbufErrors Udp.SndbufErrors Udp.MemErrors Udp.InCsumErrors
    Ip.InDiscards Ip.OutDiscards Ip.OutNoRoutes Ip.ReasmFails Ip.FragFails Ip.InHdrErrors
    Ip.InAddrErrors Icmp.InDestUnreachs Icmp.OutDestUnreachs Icmp.InTimeExcds
    Udp6NoPorts Udp6InErrors Udp6RcvbufErrors Udp6SndbufErrors Ip6InDiscards Ip6OutDiscards
    Ip6InNoRoutes Ip6OutNoRoutes Ip6ReasmFails Icmp6InDestUnreachs Icmp6OutDestUnreachs
    insert_failed drop early_drop invalid search_restart dropped time_squeeze
    """
).union(*REFERENCES.values())
"""Counters of errors, and the reference counters that findings subtract from them, such as resets
that the namespace sent itself."""
_TRAFFIC = _names(
    """
    Tcp.ActiveOpens Tcp.PassiveOpens Tcp.CurrEstab Tcp.InSegs Tcp.OutSegs
    Udp.OutDatagrams Udp6OutDatagrams
    Ip.InReceives Ip.OutRequests Ip.ForwDatagrams Ip6InReceives Ip6OutRequests
    TCP.inuse TCP.orphan TCP.tw TCP.alloc TCP.mem UDP.inuse UDP.mem TCP6.inuse UDP6.inuse
    sockets.used entries value processed
    """
)
_GAUGES = _TRAFFIC & _names(
    """
    Tcp.CurrEstab TCP.inuse TCP.orphan TCP.tw TCP.alloc TCP.mem UDP.inuse UDP.mem TCP6.inuse
    UDP6.inuse sockets.used entries value
    """
) | {"some.avg10", "full.avg10"}
"""Kept even if unchanged, unless they are zero."""

_ENTRY_BYTES = 120
"""Size of one indented JSON entry without its name and numbers; a test measures it."""
_FILE_BYTES = 48
_NETNS_BYTES = 160


class Change(NamedTuple):
    """A counter or gauge before and after."""

    before: Number
    after: Number
    delta: Number


FileChanges = dict[str, dict[str, Change]]
"""File -> name -> change, e.g. `netstat` -> `TcpExt.ListenOverflows` -> 0, 3, 3."""


@dataclass(frozen=True, slots=True)
class NetnsReport:
    """The changes in one namespace, or the reason why they are unknown.

    With Missing.APPEARED they are counted since the creation of the namespace.
    """

    netns: int
    counters: FileChanges
    missing: Missing | None


@dataclass(frozen=True, slots=True)
class Report:
    """The changes of all counters between two snapshots."""

    host: FileChanges
    netns: tuple[NetnsReport, ...]
    """The agent's own namespace first, then those with events."""
    netns_left_out: int
    """Number of namespaces with events above the limit."""
    counters_left_out: int
    """Number of changes that did not fit; 0 before fit()."""
    missing: Mapping[str, Missing]
    """Files of the host without values."""


class _Candidate(NamedTuple):
    rank: int
    place: int
    """-1 for the host, otherwise the position of the namespace in the report."""
    file: str
    name: str
    change: Change


def compare(before: Snapshot, after: Snapshot, events: Iterable[int]) -> Report:
    """Return all changes of the host, of the agent's own namespace and of those in `events`.

    `events` are inodes, the most important first. Unchanged counters are left out, except gauges
    and procfs.REFERENCES.
    """
    wanted = list(dict.fromkeys([*([after.own] if after.own else []), *events]))
    missing: dict[str, Missing] = {}
    changed: FileChanges = {}
    for file, (_, parse) in PER_HOST.items():
        old, new = before.host.get(file, Missing.ABSENT), after.host.get(file, Missing.ABSENT)
        if isinstance(new, Missing) or isinstance(old, Missing):
            missing[file] = new if isinstance(new, Missing) else Missing.UNREADABLE
        elif changes := _changes(file, parse(old), parse(new)):
            changed[file] = changes
    return Report(
        host=changed,
        netns=tuple(_report(before, after, inode) for inode in wanted[:MAX_NETNS]),
        netns_left_out=max(0, len(wanted) - MAX_NETNS),
        counters_left_out=0,
        missing=missing,
    )


def _report(before: Snapshot, after: Snapshot, inode: int) -> NetnsReport:
    old, new, reason = _pair(before, after, inode)
    counters: FileChanges = {}
    for file, parse in PER_NETNS.items():
        first: Raw | None = old.get(file)
        last: Raw | None = new.get(file)
        if not isinstance(first, bytes) or not isinstance(last, bytes):
            continue
        if changes := _changes(file, parse(first), parse(last)):
            counters[file] = changes
    return NetnsReport(inode, counters, reason)


def _pair(before: Snapshot, after: Snapshot, inode: int) -> tuple[Files, Files, Missing | None]:
    """Return the files of a namespace before and after; empty if they cannot be compared."""
    new = after.netns.get(inode, Missing.VANISHED)
    if isinstance(new, Missing):
        return {}, {}, new
    if inode not in before.netns:
        if not before.whole:
            return {}, {}, Missing.TOO_LATE
        return dict.fromkeys(new, b""), new, Missing.APPEARED
    old = before.netns[inode]
    return ({}, {}, old) if isinstance(old, Missing) else (old, new, None)


def _changes(file: str, old: Counters, new: Counters) -> dict[str, Change]:
    references = REFERENCES.get(file, frozenset())
    changes = {}
    for name, last in new.items():
        first = old.get(name, 0)  # IcmpMsg and the like appear with their first message
        delta = round(last - first, 6) if isinstance(last, float) else last - first
        if last != first or _kept_unchanged(name, last) or name in references:
            changes[name] = Change(first, last, delta)
    return changes


def _kept_unchanged(name: str, value: Number) -> bool:
    """Return whether a counter is reported although it did not change."""
    return name in _GAUGES and bool(value)


def fit(report: Report) -> Report:
    """Cut a report to what node.json may hold: KEPT_NETNS namespaces, MAX_BYTES of changes."""
    netns = report.netns[:KEPT_NETNS]
    left = MAX_BYTES - len(netns) * _NETNS_BYTES
    on_host: FileChanges = {}
    places: list[FileChanges] = [{} for _ in netns]
    left_out = 0
    found = [*_candidates(-1, report.host)]
    for place, one in enumerate(netns):
        found += _candidates(place, one.counters)
    for candidate in sorted(found, key=lambda one: (one.rank, one.place)):
        files = on_host if candidate.place < 0 else places[candidate.place]
        cost = _ENTRY_BYTES + len(candidate.name) + sum(len(str(n)) for n in candidate.change)
        cost += 0 if candidate.file in files else _FILE_BYTES
        if cost > left:
            left_out += 1
            continue
        left -= cost
        files.setdefault(candidate.file, {})[candidate.name] = candidate.change
    return replace(
        report,
        host=on_host,
        netns=tuple(replace(one, counters=files) for one, files in zip(netns, places, strict=True)),
        netns_left_out=report.netns_left_out + len(report.netns) - len(netns),
        counters_left_out=report.counters_left_out + left_out,
    )


def _candidates(place: int, files: FileChanges) -> Iterator[_Candidate]:
    for file, changes in files.items():
        for name, change in changes.items():
            if change.before == change.after and not _kept_unchanged(name, change.after):
                continue
            rank = 0 if name in _ERRORS else 1 if name in _TRAFFIC or place < 0 else 2
            yield _Candidate(rank, place, file, name, change)
