# SPDX-License-Identifier: Apache-2.0
"""Builds the AgentResult of an assigned capture. Pure functions."""

import json
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ktrace_agent.kernel.observed import known_loss
from ktrace_api.finding import Finding, Subject
from ktrace_api.model import MAX_HOOKS
from ktrace_api.names import UNKNOWN, NodeReason
from ktrace_api.result import MAX_FINDINGS, AgentResult, Delivered, ReportedFinding

if TYPE_CHECKING:
    from ktrace_api.summary import Summary

MESSAGE_CHARS = 256
SUBJECT_CHARS = 200


def result(
    uid: str,
    node: str,
    reason: NodeReason,
    *,
    ended: datetime,
    message: str = "",
    summary: "Summary | None" = None,
    delivered: Delivered | None = None,
) -> AgentResult:
    """Build the result. Recorded events are reported even if the bundle was not delivered."""
    known: dict[str, Any] = {}
    if summary is not None:
        findings = reported(summary.findings)
        known = {
            "events": summary.rows,
            "lost": known_loss(summary.lost, summary.hooks_missing),
            "complete": summary.complete,
            "gaps": summary.gaps,
            "hooks_missing": summary.hooks_missing[:MAX_HOOKS],
            "ended_by": summary.ended_by,
            "started": summary.started,
            "verdict": summary.verdict.verdict,
            "findings": tuple(findings[:MAX_FINDINGS]),
            "findings_left_out": len(findings[MAX_FINDINGS:]) + summary.findings_left_out,
        }
    return AgentResult(
        snapshot_uid=uid[:64],
        node=node[:253],
        reason=reason,
        message=shortened(message),
        delivered=delivered,
        ended=ended,
        **known,
    )


def shortened(message: str) -> str:
    """One line of up to MESSAGE_CHARS characters; a longer one is cut in the middle."""
    line = " ".join(message.split())
    if len(line) <= MESSAGE_CHARS:
        return line
    head = MESSAGE_CHARS * 2 // 3
    return line[:head] + "..." + line[len(line) - (MESSAGE_CHARS - head - 3) :]


def reported(findings: Sequence[Finding]) -> list[ReportedFinding]:
    """One finding for each id, in the given order (worst first), with its number of subjects."""
    subjects: Counter[str] = Counter()
    for one in findings:
        subjects[one.id] += 1 + one.counts.get("subjects_left_out", 0)
    first = {one.id: one for one in reversed(findings)}
    return [
        ReportedFinding(
            id=id_,
            severity=first[id_].severity,
            title=first[id_].title,
            count=subjects[id_],
            subject=subject_line(first[id_].subject),
        )
        for id_ in dict.fromkeys(one.id for one in findings)
    ]


def subject_line(subject: Subject) -> str:
    """Subject and peer in one line: `shop/web-0 (curl 7) -> 10.0.0.2:443`; `-` if unknown."""
    who = f"{subject.comm} {subject.tgid}" if subject.tgid != UNKNOWN else subject.comm
    if subject.pod != UNKNOWN:
        who = f"{subject.namespace}/{subject.pod} ({who})"
    peer = f" -> {subject.peer}" if subject.peer != UNKNOWN else ""
    return f"{who}{peer}"[:SUBJECT_CHARS]


def addressee(text: str) -> tuple[str, str]:
    """Read UID and node from an assignment that may be invalid; empty texts if they are missing."""
    try:
        found = json.loads(text)
        uid, node = found["snapshot"]["uid"], found["capture"]["node"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "", ""
    return (uid, node) if isinstance(uid, str) and isinstance(node, str) else ("", "")
