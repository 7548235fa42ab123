# SPDX-License-Identifier: Apache-2.0
"""Checks an agent's report, turns it into the node's status entry, and merges the findings."""

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from ktrace_api.assignment import node_folder
from ktrace_api.finding import Cause, FindingId, Severity
from ktrace_api.names import NodeReason, Outcome
from ktrace_api.result import MAX_COUNT, AgentResult, BadResult, read
from ktrace_api.status import MAX_FINDINGS, FindingRollup, NodeResult
from ktrace_operator.objects import text_of

_AGENTS_REASONS = frozenset(
    {
        NodeReason.COMPLETED,
        NodeReason.UPLOAD_FAILED,
        NodeReason.UNSUPPORTED_KERNEL,
        NodeReason.PERMISSION_DENIED,
        NodeReason.AGENT_ERROR,
        NodeReason.PROTOCOL_ERROR,
        NodeReason.NODE_BUSY,
        NodeReason.CANCELED,
    }
)
"""Reasons that an agent may report. All others are set by the operator only."""
_MAX_CLOCK_SKEW = timedelta(hours=1)
_SEVERITIES = (Severity.CRITICAL, Severity.WARNING, Severity.INFO)


def read_result(message: str, snapshot_uid: str, node: str) -> AgentResult:
    """Parses the agent's result in a termination message.

    Raises BadResult with one line if the message is not a result of this snapshot and node.
    """
    result = read(message)
    if result.snapshot_uid != snapshot_uid:
        raise BadResult(
            "the agent could not read its assignment: " + text_of(result.message)
            if not result.snapshot_uid
            else "snapshot_uid belongs to another snapshot"
        )
    if result.node != node:
        raise BadResult("node is not the node of this pod")
    if result.reason not in _AGENTS_REASONS:
        raise BadResult(f"an agent may not report the reason {result.reason}")
    if result.delivered is not None:
        _check_path(result.delivered.path, node)
    return result


def _check_path(path: str, node: str) -> None:
    """Raises BadResult unless the path names a file directly in the node's folder."""
    folder, _, file = path.partition("/")
    if folder != node_folder(node) or not file or "/" in file or file.startswith("."):
        raise BadResult("delivered.path is outside the node's folder")


def entry(result: AgentResult, since: datetime, until: datetime) -> NodeResult:
    """The node's final entry.

    Of times more than an hour before `since` or after `until`, the start becomes None and the end
    becomes `until`.
    """
    delivered = result.delivered
    recorded = result.started is not None
    return NodeResult(
        node=result.node,
        outcome=Outcome.SUCCEEDED if delivered else Outcome.FAILED,
        reason=result.reason,
        message=text_of(result.message, 256) or None,
        path=delivered.path if delivered else None,
        bytes=delivered.bytes if delivered else None,
        sha256=delivered.sha256 if delivered else None,
        events=result.events if recorded else None,
        lost=result.lost if recorded else None,
        complete=result.complete if recorded else None,
        gaps=result.gaps or None,
        hooks_missing=result.hooks_missing or None,
        started_at=_plausible(result.started, since, until),
        ended_at=_plausible(result.ended, since, until) or until,
    )


def _plausible(value: datetime | None, since: datetime, until: datetime) -> datetime | None:
    """A plausible time in whole seconds, the API server's resolution; else None."""
    if value is None or value.tzinfo is None:
        return None
    if not since - _MAX_CLOCK_SKEW <= value <= until + _MAX_CLOCK_SKEW:
        return None
    return value.astimezone(UTC).replace(microsecond=0)


def roll_up(
    before: tuple[FindingRollup, ...], results: Iterable[AgentResult]
) -> tuple[FindingRollup, ...]:
    """Merges findings of further nodes into those of all nodes. Returns the 20 worst, in order."""
    found = {one.id: one for one in before}
    for result in results:
        for one in _of_node(result):
            other = found.get(one.id)
            found[one.id] = one if other is None else _merge(other, one, other.nodes + 1)
    ranked = sorted(
        found.values(), key=lambda one: (_SEVERITIES.index(one.severity), -one.count, one.id)
    )
    return tuple(ranked[:MAX_FINDINGS])


def _of_node(result: AgentResult) -> Iterable[FindingRollup]:
    """One node's findings, merged by id."""
    found: dict[FindingId, FindingRollup] = {}
    for reported in result.findings:
        one = FindingRollup(
            id=reported.id,
            severity=reported.severity,
            title=text_of(reported.title, 160),
            count=reported.count,
            nodes=1,
            subject=text_of(reported.subject) or "-",
        )
        other = found.get(one.id)
        found[one.id] = one if other is None else _merge(other, one, nodes=1)
    return found.values()


def _merge(before: FindingRollup, new: FindingRollup, nodes: int) -> FindingRollup:
    worse = _SEVERITIES.index(new.severity) < _SEVERITIES.index(before.severity)
    count = min(before.count + new.count, MAX_COUNT)
    return (new if worse else before).model_copy(update={"count": count, "nodes": nodes})


def count_verdicts(before: dict[Cause, int], results: Iterable[AgentResult]) -> dict[Cause, int]:
    """Nodes by verdict. Only nodes with a delivered bundle count."""
    counts = Counter(before)
    counts.update(result.verdict for result in results if result.delivered)
    return dict(counts)
