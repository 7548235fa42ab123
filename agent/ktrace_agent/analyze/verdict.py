# SPDX-License-Identifier: Apache-2.0
"""From findings to one answer.

Each finding says what it points to. Some are the consequence of others (a full table of
connection tracking leaves connects unanswered): those do not vote. Of the rest the worst decides;
among equals the one that names its cause most directly.

A cause explains no more than it can have cost: every connect, query or segment that failed lost
one packet at least (an unanswered connect mostly two, its SYNs), and the counter of the cause has
each packet once.
"""

import math
from collections.abc import Mapping, Sequence

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
"""Finding -> what may follow from it; _may_follow() and _consequences() say what does."""

_COSTS: Mapping[FindingId, str] = {
    _ID.CONNTRACK_FULL: "dropped",
    _ID.CONNTRACK_INSERT_FAILED: "insert_failed",
    _ID.LISTEN_OVERFLOW: "overflows",
}
"""Cause -> its count of packets that it cost. Loss of segments has none of SYNs."""

_LOST: Mapping[FindingId, tuple[str, ...]] = {
    _ID.TCP_SYN_UNANSWERED: ("unanswered",),
    _ID.TCP_CONNECT_TIMEOUT: ("timeout",),
    _ID.TCP_CONNECT_SLOW: ("late",),
    _ID.TCP_RETRANSMITS: ("segments_again",),
    _ID.DNS_NO_REPLY: ("unanswered", "errors"),
    _ID.DNS_SLOW: ("answers",),
    _ID.CONNTRACK_UNREPLIED: ("datagrams",),
}
"""What may follow -> its counts, the largest of which is what failed."""

_COUNTED = frozenset({_ID.TCP_RETRANSMITS, _ID.CONNTRACK_UNREPLIED, _ID.DNS_NO_REPLY})
"""Those whose counts speak of all that was sent, in sampled captures by flows; the others count
rows, one event in `sample`."""

_LEADS = 2
"""A cause that cost less than half of what failed is not what broke it, however direct."""

_DIRECTNESS = (
    _ID.CONNTRACK_FULL,
    _ID.LISTEN_OVERFLOW,
    _ID.EPHEMERAL_PORTS_EXHAUSTED,
    _ID.CONNECT_DENIED,
    _ID.CONNTRACK_INSERT_FAILED,
    _ID.TCP_CONNECT_UNREACHABLE,
    _ID.DNS_NO_REPLY,
    _ID.TCP_CONNECT_REFUSED,
    _ID.TCP_SYN_UNANSWERED,
    _ID.TCP_CONNECT_TIMEOUT,
    _ID.CLOSE_WAIT_GROWING,
    _ID.UDP_RCVBUF_DROPS,
    _ID.DNS_SLOW,
    _ID.TCP_RESETS,
    _ID.TCP_RETRANSMITS,
    _ID.CONNTRACK_UNREPLIED,
    _ID.TCP_CONNECT_SLOW,
    _ID.MEMORY_PRESSURE,
    _ID.SOFTNET_DROPS,
    _ID.CPU_PRESSURE,
    _ID.CAPTURE_INCOMPLETE,
)
"""How directly a finding names its cause, most directly first: all ids."""

_SEVERITIES, _CONFIDENCES = tuple(Severity), tuple(Confidence)


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """By severity, then directness, then confidence; else in the order given."""
    return sorted(
        findings,
        key=lambda one: (
            _SEVERITIES.index(one.severity),
            _DIRECTNESS.index(one.id),
            _CONFIDENCES.index(one.confidence),
        ),
    )


NO_TRAFFIC = "No traffic was seen, so nothing can be said."


def judge(
    findings: Sequence[Finding], rows: int, sample: int = 1, no_rows: str = NO_TRAFFIC
) -> Verdict:
    """The verdict on findings of a capture with so many rows, one for `sample` events.

    `no_rows` says why nothing is known where there are none.
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
        return _say(Cause.UNKNOWN, partial, f"Nothing was found, but: {partial[0].title}")
    if not rows:
        return _say(Cause.UNKNOWN, [], no_rows)
    return _say(Cause.HEALTHY, [], f"Nothing above info in {rows} rows.")


def _consequences(cause: Finding, others: Sequence[Finding], sample: int) -> list[Finding]:
    """What follows from a cause, the smallest first, as far as what it cost goes."""
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
    """Whether the one is of a kind that the other causes, and at a place where it can.

    The table of a node serves many namespaces, so any may be meant. But a mere warning explains
    something critical only where both are tied to the same place: a port or a namespace.
    """
    if one.id not in EXPLAINS.get(cause.id, frozenset()):
        return False
    (host, port), (cause_host, cause_port) = _ends(one), _ends(cause)
    if cause.id == _ID.TCP_RETRANSMITS:
        return host == cause_host != ""
    if cause.id == _ID.LISTEN_OVERFLOW:
        return port == cause_port != ""
    worse = _SEVERITIES.index(one.severity) < _SEVERITIES.index(cause.severity)
    return not worse or one.subject.netns == cause.subject.netns != UNKNOWN


def _ends(one: Finding) -> tuple[str, str]:
    """Address without brackets and port of the peer, "" where it is not known or not one."""
    peer = one.subject.peer
    host, _, port = peer.rpartition(":")
    if host and (":" not in host or host.endswith("]")):
        return host.strip("[]"), port
    return ("" if peer == UNKNOWN else peer), ""


def _cost(cause: Finding) -> int:
    return cause.counts.get(_COSTS[cause.id], 0)


def _lost(one: Finding, sample: int) -> float:
    """Packets that it lost at least; without a count nothing is large enough."""
    known = [one.counts[name] for name in _LOST.get(one.id, ()) if name in one.counts]
    return max(known, default=math.inf) * (1 if one.id in _COUNTED else sample)


def _leading(roots: Sequence[Finding], sample: int) -> list[Finding]:
    """Worst first; behind its equals what is too small to have caused one of them."""

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
    """What the leading root says; everything that it explains or that agrees carries it too."""
    first = roots[0]
    carrying = [one for one in roots if one.points_to == first.points_to]
    carrying += [one for root in carrying for one in follows[id(root)]]
    others = sorted({one.points_to for one in roots} - {first.points_to})
    why = first.title
    if others:
        why += f" (there is also trouble with: {', '.join(others)})"
    return _say(first.points_to, carrying, why)


def _say(cause: Cause, carrying: Sequence[Finding], why: str) -> Verdict:
    ids = tuple(dict.fromkeys(one.id for one in carrying))
    short = why if len(why) <= SENTENCE_CHARS else why[: SENTENCE_CHARS - 1] + "…"
    return Verdict(verdict=cause, findings=ids, why=short)
