# SPDX-License-Identifier: Apache-2.0
"""Derives one verdict from the findings.

Each finding points to a cause. Findings that follow from others do not vote: for example, a full
conntrack table leaves connection attempts unanswered. Of the rest, the worst decides. Among equals
the one that names its cause most directly decides.

A cause explains no more failures than the packets it lost. Every failed connection attempt, query
or segment lost at least one packet (an unanswered attempt usually two SYNs), and the counter of the
cause counts each packet once.
"""

import math
from collections.abc import Mapping, Sequence

from ktrace_agent.analyze import sentences
from ktrace_agent.analyze.titles import TITLES, fill
from ktrace_api.finding import (
    SENTENCE_CHARS,
    Cause,
    Confidence,
    Finding,
    FindingId,
    Severity,
    Verdict,
)
from ktrace_api.names import UNKNOWN

_ID = FindingId

EXPLAINS: dict[FindingId, frozenset[FindingId]] = {
    _ID.CONNTRACK_FULL: frozenset(
        {
            _ID.TCP_SYN_UNANSWERED,
            _ID.TCP_CONNECT_TIMEOUT,
            _ID.TCP_CONNECT_SLOW,
            _ID.DNS_NO_REPLY,
            _ID.DNS_SLOW,
            _ID.CONNTRACK_UNREPLIED,
            _ID.TCP_RETRANSMITS,
        }
    ),
    _ID.CONNTRACK_INSERT_FAILED: frozenset(
        {_ID.TCP_CONNECT_SLOW, _ID.TCP_SYN_UNANSWERED, _ID.DNS_NO_REPLY, _ID.CONNTRACK_UNREPLIED}
    ),
    _ID.LISTEN_OVERFLOW: frozenset(
        {
            _ID.TCP_SYN_UNANSWERED,
            _ID.TCP_CONNECT_TIMEOUT,
            _ID.TCP_CONNECT_SLOW,
            _ID.TCP_RETRANSMITS,
        }
    ),
    _ID.EPHEMERAL_PORTS_EXHAUSTED: frozenset(),
    _ID.TCP_RETRANSMITS: frozenset({_ID.TCP_CONNECT_SLOW}),
}
"""Finding -> findings that may follow from it. _may_follow() and _consequences() decide."""

_COSTS: Mapping[FindingId, str] = {
    _ID.CONNTRACK_FULL: "dropped",
    _ID.CONNTRACK_INSERT_FAILED: "insert_failed",
    _ID.LISTEN_OVERFLOW: "overflows",
}
"""Cause -> its count of lost packets. Retransmits do not count lost SYNs."""

_LOST: Mapping[FindingId, tuple[str, ...]] = {
    _ID.TCP_SYN_UNANSWERED: ("unanswered",),
    _ID.TCP_CONNECT_TIMEOUT: ("timeout",),
    _ID.TCP_CONNECT_SLOW: ("late",),
    _ID.TCP_RETRANSMITS: ("segments_again",),
    _ID.DNS_NO_REPLY: ("unanswered", "errors"),
    _ID.DNS_SLOW: ("answers",),
    _ID.CONNTRACK_UNREPLIED: ("datagrams",),
}
"""Consequence -> its counts; the largest is the number of failures."""

_COUNTED = frozenset({_ID.TCP_RETRANSMITS, _ID.CONNTRACK_UNREPLIED, _ID.DNS_NO_REPLY})
"""Findings that count everything, in sampled captures by flows. The others count rows: one event
in `sample`."""

_LEADS = 2
"""A cause that explains less than half of the failures never becomes the verdict."""

_DIRECTNESS = tuple(TITLES)
"""All ids, the one that names its cause most directly first."""

_SEVERITIES, _CONFIDENCES = tuple(Severity), tuple(Confidence)


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """Sort by severity, then directness, then confidence. The sort is stable."""
    return sorted(
        findings,
        key=lambda one: (
            _SEVERITIES.index(one.severity),
            _DIRECTNESS.index(one.id),
            _CONFIDENCES.index(one.confidence),
        ),
    )


NO_TRAFFIC = sentences.NO_TRAFFIC


def judge(
    findings: Sequence[Finding], rows: int, sample: int = 1, no_rows: str = NO_TRAFFIC
) -> Verdict:
    """Return the verdict for the findings of a capture.

    `rows` is the number of rows, one for `sample` events. `no_rows` is the reason for no verdict
    if there are no rows.
    """
    serious = [one for one in findings if one.severity != Severity.INFO]
    partial = [one for one in serious if one.id == _ID.CAPTURE_INCOMPLETE]
    voting = [one for one in serious if one.id != _ID.CAPTURE_INCOMPLETE]
    follows = {id(cause): _consequences(cause, voting, sample) for cause in voting}
    explained = {id(one) for those in follows.values() for one in those}
    roots = _leading([one for one in voting if id(one) not in explained], sample)
    if roots:
        return _verdict(roots, follows)
    if partial:
        why = fill(sentences.DATA_MISSING, title=partial[0].title)
        return _of(Cause.UNKNOWN, partial, why)
    if not rows:
        return _of(Cause.UNKNOWN, [], no_rows)
    return _of(Cause.HEALTHY, [], fill(sentences.NO_PROBLEMS, rows=rows))


def _consequences(cause: Finding, others: Sequence[Finding], sample: int) -> list[Finding]:
    """Findings that follow from a cause, smallest first, until its lost packets are used up."""
    found = [one for one in others if _may_follow(one, cause)]
    found.sort(key=lambda one: _lost(one, sample))
    if cause.id not in _COSTS:
        return found
    left = float(_cost(cause))
    for place, one in enumerate(found):
        left -= _lost(one, sample)
        if left < 0:
            return found[:place]
    return found


def _may_follow(one: Finding, cause: Finding) -> bool:
    """True if `one` is a possible consequence of `cause`, by its id and its place.

    A node's conntrack table serves many namespaces, so any of them may be affected. But a warning
    explains a critical finding only in the same network namespace.
    """
    if one.id not in EXPLAINS.get(cause.id, frozenset()):
        return False
    (host, port), (cause_host, cause_port) = _peer_of(one), _peer_of(cause)
    if cause.id == _ID.TCP_RETRANSMITS:
        return host == cause_host != ""
    if cause.id == _ID.LISTEN_OVERFLOW:
        return port == cause_port != ""
    worse = _SEVERITIES.index(one.severity) < _SEVERITIES.index(cause.severity)
    return not worse or one.subject.netns == cause.subject.netns != UNKNOWN


def _peer_of(one: Finding) -> tuple[str, str]:
    """Address (without brackets) and port of the peer; "" if unknown or not unique."""
    peer = one.subject.peer
    host, _, port = peer.rpartition(":")
    if host and (":" not in host or host.endswith("]")):
        return host.strip("[]"), port
    return ("" if peer == UNKNOWN else peer), ""


def _cost(cause: Finding) -> int:
    return cause.counts.get(_COSTS[cause.id], 0)


def _lost(one: Finding, sample: int) -> float:
    """Minimum number of packets that it lost; infinite without a count."""
    known = [one.counts[name] for name in _LOST.get(one.id, ()) if name in one.counts]
    return max(known, default=math.inf) * (1 if one.id in _COUNTED else sample)


def _leading(roots: Sequence[Finding], sample: int) -> list[Finding]:
    """Sort worst first. A cause too small to explain one of its equals comes after them."""

    def outweighed(cause: Finding) -> bool:
        return cause.id in _COSTS and any(
            _lost(one, sample) > _LEADS * _cost(cause)
            for one in roots
            if one.id in EXPLAINS[cause.id] and one.severity == cause.severity
        )

    return sorted(
        worst_first(roots), key=lambda one: (_SEVERITIES.index(one.severity), outweighed(one))
    )


def _verdict(roots: Sequence[Finding], follows: Mapping[int, Sequence[Finding]]) -> Verdict:
    """The cause of the leading root, carried by all roots that agree and all they explain."""
    first = roots[0]
    carrying = [one for one in roots if one.points_to == first.points_to]
    carrying += [one for root in carrying for one in follows[id(root)]]
    others = sorted({one.points_to for one in roots} - {first.points_to})
    why = first.title
    if others:
        causes = ", ".join(sentences.CAUSES[other] for other in others)
        why = fill(sentences.ALSO_FOUND, title=why, causes=causes)
    return _of(first.points_to, carrying, why)


def _of(cause: Cause, carrying: Sequence[Finding], why: str) -> Verdict:
    ids = tuple(dict.fromkeys(one.id for one in carrying))
    short = why if len(why) <= SENTENCE_CHARS else why[: SENTENCE_CHARS - 1] + "…"
    return Verdict(verdict=cause, findings=ids, why=short)
