# SPDX-License-Identifier: Apache-2.0
"""From findings to one answer.

Each finding says what it points to. Some are the consequence of others (a full table of
connection tracking leaves connects unanswered): those do not vote. Of the rest the worst decides;
among equals the one that names its cause most directly.
"""

from collections.abc import Sequence

from ktrace_api.finding import (
    SENTENCE_CHARS,
    Cause,
    Confidence,
    Finding,
    FindingId,
    Severity,
    Verdict,
)

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
"""Finding -> what follows from it. A full backlog explains only what ended at its port."""

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


def judge(findings: Sequence[Finding], rows: int) -> Verdict:
    """The verdict on findings of a capture with so many rows."""
    serious = [one for one in findings if one.severity != Severity.INFO]
    partial = [one for one in serious if one.id == _ID.CAPTURE_INCOMPLETE]
    voting = [one for one in serious if one.id != _ID.CAPTURE_INCOMPLETE]
    roots = worst_first([one for one in voting if not _explained(one, voting)])
    if roots:
        return _verdict(roots[0], roots, voting)
    if partial:
        return _say(Cause.UNKNOWN, partial, f"Nothing was found, but: {partial[0].title}")
    if not rows:
        return _say(Cause.UNKNOWN, [], "No traffic was seen, so nothing can be said.")
    return _say(Cause.HEALTHY, [], f"Nothing above info in {rows} rows.")


def _explained(one: Finding, others: Sequence[Finding]) -> bool:
    return any(_follows(one, cause) for cause in others if cause is not one)


def _follows(one: Finding, cause: Finding) -> bool:
    if one.id not in EXPLAINS.get(cause.id, frozenset()):
        return False
    if cause.id == _ID.TCP_RETRANSMITS:
        return one.subject.peer.rpartition(":")[0] in (cause.subject.peer, _address(cause))
    if cause.id != _ID.LISTEN_OVERFLOW:
        return True
    port = cause.subject.peer.rpartition(":")[2]
    return port in ("-", "") or one.subject.peer.rpartition(":")[2] in (port, "-")


def _address(one: Finding) -> str:
    return one.subject.peer.rpartition(":")[0]


def _verdict(first: Finding, roots: Sequence[Finding], voting: Sequence[Finding]) -> Verdict:
    """What the worst root says; everything that it explains or that agrees carries it too."""
    carrying = [one for one in roots if one.points_to == first.points_to]
    carrying += [one for one in voting if any(_follows(one, root) for root in carrying)]
    others = sorted({one.points_to for one in roots} - {first.points_to})
    why = first.title
    if others:
        why += f" (there is also trouble with: {', '.join(others)})"
    return _say(first.points_to, carrying, why)


def _say(cause: Cause, carrying: Sequence[Finding], why: str) -> Verdict:
    ids = tuple(dict.fromkeys(one.id for one in carrying))
    short = why if len(why) <= SENTENCE_CHARS else why[: SENTENCE_CHARS - 1] + "…"
    return Verdict(verdict=cause, findings=ids, why=short)
