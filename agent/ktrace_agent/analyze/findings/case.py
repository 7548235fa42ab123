# SPDX-License-Identifier: Apache-2.0
"""One capture as the findings query it: SQL, counters, and how much may be missing."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import duckdb

from ktrace_agent.analyze import sentences
from ktrace_agent.analyze.findings.wording import Row, cut
from ktrace_agent.analyze.titles import fill
from ktrace_agent.tables.ask import records
from ktrace_api.finding import (
    MAX_COVERAGE,
    MAX_NUMBERS,
    MAX_ROWS,
    NAME_CHARS,
    SENTENCE_CHARS,
    TITLE_CHARS,
    UID_CHARS,
    Cause,
    Confidence,
    Evidence,
    Finding,
    FindingId,
    Number,
    Severity,
    Subject,
)
from ktrace_api.names import UNKNOWN, RowType
from ktrace_api.thresholds import Thresholds

HOOKS: Mapping[RowType, tuple[str, ...]] = {
    RowType.TCP_STATE: ("tcp_state",),
    RowType.CONNECT: ("tcp_state", "connect"),
    RowType.TCP_RETRANSMIT: ("tcp_retransmit",),
    RowType.UDP_SEND: ("socket_send", "udp_send_address"),
    RowType.UDP_RECV: ("socket_recv", "udp_recv_address"),
}
"""Hooks that rows of a type depend on, as named in kernel/hooks.py."""

_WEAKER = {Confidence.HIGH: Confidence.MEDIUM, Confidence.MEDIUM: Confidence.LOW}
_MANY_LOST = 0.1
"""With a tenth of the events lost, the rest may not be representative."""
_LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Counter:
    """A counter or gauge before and after the capture."""

    before: float
    after: float
    delta: float


@dataclass(frozen=True, slots=True)
class Coverage:
    """What the capture was configured to record, and what is missing."""

    rows: int
    end: datetime | None
    """The last moment that the rows cover, in UTC."""
    window_s: float
    sample: int
    filters: tuple[str, ...]
    seen: Mapping[str, int]
    """Events by row type."""
    lost: Mapping[str, int]
    """Events by row type that were lost or for which no program ran."""
    unseen: int
    """Events for which the kernel ran no program; `lost` includes them."""
    skipped: int
    """Events whose program was already running on that CPU; `lost` includes them."""
    skipped_calls: int
    """TCP calls whose bytes are in no flow, for the same reason."""
    capped: int
    overflow: int
    ended_early: bool
    """An error ended the capture."""
    hooks_missing: tuple[str, ...]
    unobserved: frozenset[str]
    """Row types that no program records: their absence means nothing."""

    def lost_share(self, types: Iterable[RowType]) -> float:
        """Share of the events of these types that was lost."""
        names = tuple(types)
        seen = sum(self.seen.get(name, 0) for name in names)
        return sum(self.lost.get(name, 0) for name in names) / seen if seen else 0.0


@dataclass(frozen=True, slots=True)
class Texts:
    """What people read in a finding."""

    title: str
    refuted_by: str
    """What would prove it wrong."""
    next: str
    """The command to run next."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What was counted, the numbers that were compared, and rows that show it."""

    counts: Mapping[str, int | None] = field(default_factory=dict)
    """Unknown counts (None) are left out."""
    numbers: Sequence[Number] = ()
    rows: Iterable[int | None] | None = ()


@dataclass(frozen=True, slots=True)
class Trust:
    """How sure a finding is if the capture is complete, and what makes it less sure."""

    confidence: Confidence = Confidence.HIGH
    rests_on: Sequence[RowType] = ()
    """Row types whose missing events lower the confidence."""
    unknown: Sequence[str] = ()
    """Sentences about facts that could not be compared; each lowers the confidence one step."""


@dataclass(slots=True)
class Case:
    """The tables of one capture (tables/contract.py) and the thresholds to compare with."""

    con: duckdb.DuckDBPyConnection
    limits: Thresholds
    coverage: Coverage = field(init=False)
    _counters: dict[tuple[int | None, str, str], Counter] = field(init=False)

    def __post_init__(self) -> None:
        self._counters = {
            (row["netns"], row["file"], row["name"]): Counter(*numbers)
            for row in self.query("SELECT * FROM counters WHERE file || name IS NOT NULL")
            if all(map(math.isfinite, numbers := tuple(row[n] or 0 for n in _COUNTER)))
        }
        self.coverage = _coverage(self)

    def query(self, sql: str) -> list[Row]:
        """The rows of a query result, by column."""
        return records(self.con, sql)

    def counter(self, netns: int | None, file: str, name: str) -> Counter | None:
        """A counter of a namespace, or of the host (`netns` None). None if it did not change."""
        return self._counters.get((netns, file, name))

    def unknown(self, netns: int | None, file: str, *names: str) -> tuple[str, ...]:
        """For `Trust.unknown`: a sentence if one of these reference counters is missing.

        Reference counters (host/procfs.py) are reported even if they did not change.
        """
        missing = [name for name in names if self.counter(netns, file, name) is None]
        if not missing:
            return ()
        more = ", ..." if len(missing) > 1 else ""
        return (fill(sentences.NOT_COMPARED, counters=f"{missing[0]}{more}"),)

    def delta(self, netns: int | None, file: str, *names: str) -> int:
        """Sum of the increases of these counters."""
        found = (self.counter(netns, file, name) for name in names)
        return _whole(sum(counter.delta for counter in found if counter and counter.delta > 0))

    def unreachables(self, netns: int | None, *, v6: bool) -> tuple[int, int]:
        """ICMP "destination unreachable" messages of one IP version: received, sent."""
        file, prefix = ("snmp6", "Icmp6") if v6 else ("snmp", "Icmp.")
        came, sent = (
            self.delta(netns, file, f"{prefix}{way}DestUnreachs") for way in ("In", "Out")
        )
        return came, sent

    def risen(self, file: str, *names: str) -> dict[int | None, int]:
        """Namespaces in which one of these counters increased, with the sum of the increases."""
        spaces = {netns for netns, where, name in self._counters if where == file and name in names}
        rises = {netns: self.delta(netns, file, *names) for netns in spaces}
        return {netns: rise for netns, rise in rises.items() if rise > 0}

    def find(
        self,
        finding: FindingId,
        severity: Severity,
        texts: Texts,
        *,
        subject: Row,
        points_to: Cause,
        measured: Measured,
        trust: Trust = Trust(),
    ) -> Finding:
        """Build a finding; missing events lower its confidence.

        `subject` may have the columns tgid, comm, pod, namespace, peer, net.
        """
        confidence, caveats = self._weigh(trust)
        rows = {n for n in measured.rows or () if n is not None and n >= 0}
        counts = [*measured.counts.items()][:MAX_NUMBERS]
        return Finding(
            id=finding,
            severity=severity,
            title=cut(texts.title, TITLE_CHARS),
            subject=_subject(subject),
            counts={name: _whole(count) for name, count in counts if count is not None},
            evidence=Evidence(
                rows=tuple(sorted(rows))[:MAX_ROWS],
                numbers=tuple(measured.numbers)[:MAX_NUMBERS],
            ),
            points_to=points_to,
            refuted_by=cut(texts.refuted_by, SENTENCE_CHARS),
            next=cut(texts.next, SENTENCE_CHARS),
            confidence=confidence,
            coverage=tuple(cut(caveat, SENTENCE_CHARS) for caveat in caveats[:MAX_COVERAGE]),
        )

    def _weigh(self, trust: Trust) -> tuple[Confidence, list[str]]:
        """The confidence that the coverage leaves, and a sentence for each thing missing."""
        coverage, rests_on = self.coverage, trust.rests_on
        caveats, steps = [*trust.unknown], len(trust.unknown)
        needed = {hook for name in rests_on for hook in HOOKS[name]}
        if absent := sorted(needed & set(coverage.hooks_missing)):
            caveats.append(fill(sentences.HOOKS_MISSING, hooks=", ".join(absent)))
            steps += 1
        if (share := coverage.lost_share(rests_on)) > self.limits.lost_share:
            caveats.append(fill(sentences.EVENTS_LOST, share=share))
            steps += 2 if share > _MANY_LOST else 1
        if coverage.sample > 1 and rests_on:
            caveats.append(fill(sentences.SAMPLED, sample=coverage.sample))
            steps += 1
        if coverage.filters and rests_on:
            caveats.append(fill(sentences.FILTERED, filters=", ".join(coverage.filters)))
        if coverage.capped and rests_on:
            caveats.append(fill(sentences.CAPPED, count=coverage.capped))
        confidence = trust.confidence
        for _ in range(steps):
            confidence = _WEAKER.get(confidence, Confidence.LOW)
        return confidence, caveats


_COUNTER = ("before", "after", "delta")


def _whole(value: float) -> int:
    """A count clamped to 0 and the largest 64-bit integer."""
    return min(max(int(value), 0), _LARGEST)


def _subject(row: Row) -> Subject:
    def text(name: str, limit: int = NAME_CHARS) -> str:
        value = row.get(name)
        return UNKNOWN if value is None else cut(str(value), limit)

    def inode(name: str) -> int | Literal["-"]:
        value = row.get(name)
        return "-" if value is None or value < 0 else int(value)

    return Subject(
        tgid=inode("tgid"),
        comm=text("comm"),
        pod=text("pod", UID_CHARS),
        namespace=text("namespace", UID_CHARS),
        peer=text("peer"),
        netns=inode("net"),
    )


def _coverage(case: Case) -> Coverage:
    """Never raises: with empty tables, everything is unknown."""
    found = case.query("SELECT * FROM capture LIMIT 1")
    capture = found[0] if found else {}
    (seen,) = case.query("SELECT count(*) AS rows, min(ts) AS first, max(ts) AS last FROM rows")
    accounts = case.query(
        """SELECT type, seen + unseen AS seen, lost + unseen AS lost, unseen, skipped
           FROM (SELECT type, greatest(coalesce(max(seen), 0), 0)::HUGEINT AS seen,
                   greatest(coalesce(max(lost_ring), 0), 0)::HUGEINT
                     + greatest(coalesce(max(lost_map), 0), 0)
                     + greatest(coalesce(max(skipped), 0), 0) AS lost,
                   greatest(coalesce(max(skipped), 0), 0)::HUGEINT AS skipped,
                   greatest(coalesce(max(unseen), 0), 0)::HUGEINT AS unseen
                 FROM accounting WHERE type IS NOT NULL GROUP BY type)"""
    )
    capped = max(capture.get("capped") or 0, 0)
    end = capture.get("ended") or seen["last"]
    if seen["last"] is not None and (capped or end is None):
        end = seen["last"] if end is None else min(end, seen["last"])
    window = capture.get("window_s")
    if window is None or not math.isfinite(window) or window < 0:
        window = (seen["last"] - seen["first"]).total_seconds() if seen["last"] else 0.0
    ports = capture.get("ports") or []
    filters = [f"port {', '.join(map(str, ports[:8]))}"] if ports else []
    if capture.get("dns_only"):
        filters.append("DNS")
    if pods := capture.get("pods"):
        filters.append("one pod" if len(pods) == 1 else f"{len(pods)} pods")
    missing = case.query("SELECT hook FROM hooks WHERE chosen IS NULL AND len(refused) > 0")
    unobserved = case.query("SELECT type FROM accounting WHERE type IS NOT NULL AND seen IS NULL")
    return Coverage(
        rows=seen["rows"],
        end=end,
        window_s=window,
        sample=max(capture.get("sample") or 1, 1),
        filters=tuple(filters),
        seen={row["type"]: int(row["seen"]) for row in accounts},
        lost={row["type"]: int(row["lost"]) for row in accounts},
        unseen=sum(int(row["unseen"]) for row in accounts),
        skipped=sum(int(row["skipped"]) for row in accounts),
        skipped_calls=max(capture.get("skipped_calls") or 0, 0),
        capped=capped,
        overflow=max(capture.get("overflow") or 0, 0),
        ended_early=capture.get("ended_by") == "error",
        hooks_missing=tuple(row["hook"] or UNKNOWN for row in missing),
        unobserved=frozenset(row["type"] for row in unobserved),
    )
