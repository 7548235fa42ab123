# SPDX-License-Identifier: Apache-2.0
"""Counts, phase and conditions of a snapshot, derived from the entries of its nodes.

The conditions follow kstatus: `Reconciling` is True until the end, `Stalled` is True after an end
without success. So `kubectl wait --for=condition=Finished`, Flux and Argo CD agree.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Literal, NamedTuple

from ktrace_api.names import ConditionReason, ConditionType, NodeReason, Outcome, Phase
from ktrace_api.status import Condition, NodeCounts, NodeResult, SnapshotStatus
from ktrace_operator.objects import text_of
from ktrace_operator.plan.targets import Refusal

Truth = Literal["True", "False", "Unknown"]
_NAMED_NODES = 3
"""Maximum nodes that a message names per reason."""


class View(NamedTuple):
    """The values from which all conditions are built."""

    accepted: Truth
    succeeded: Truth
    finished: bool
    reason: ConditionReason
    message: str


def resolving(
    before: SnapshotStatus, message: str, generation: int, now: datetime
) -> SnapshotStatus:
    """The status while an object that the spec names is missing."""
    view = View("Unknown", "Unknown", False, ConditionReason.RESOLVING, message)
    return _with_conditions(before, view, Phase.PENDING, generation, now)


def refused(
    before: SnapshotStatus, refusal: Refusal, generation: int, now: datetime
) -> SnapshotStatus:
    """The final status of a snapshot that is never started."""
    view = View("False", "False", True, refusal.reason, refusal.message)
    phase = Phase.CANCELED if refusal.reason is ConditionReason.CANCELED else Phase.FAILED
    ended = before.model_copy(update={"completion_time": before.completion_time or now})
    return _with_conditions(ended, view, phase, generation, now)


def progress(
    before: SnapshotStatus,
    results: Sequence[NodeResult],
    *,
    stop: bool,
    generation: int,
    now: datetime,
) -> SnapshotStatus:
    """The status with these entries: ended if all are final, else running."""
    counts = count(results)
    status = before.model_copy(update={"results": tuple(results), "nodes": counts})
    if not all(one.final for one in results):
        started = bool(counts.running or counts.succeeded or counts.failed)
        message = _ongoing(counts, started=started)
        view = View("True", "Unknown", False, ConditionReason.RUNNING, message)
        phase = Phase.RUNNING if started else Phase.PENDING
        return _with_conditions(status, view, phase, generation, now)
    phase, reason = _end(results, counts, stop=stop)
    succeeded: Truth = "True" if phase is Phase.COMPLETED else "False"
    message = summary(results)
    if reason is ConditionReason.UNSUPPORTED_PLATFORM:
        message += f"; {results[0].node}: {results[0].message}"
    view = View("True", succeeded, True, reason, message)
    status = status.model_copy(update={"completion_time": status.completion_time or now})
    return _with_conditions(status, view, phase, generation, now)


def count(results: Sequence[NodeResult]) -> NodeCounts:
    """Nodes by outcome."""
    by = Counter(one.outcome for one in results)
    return NodeCounts(
        total=len(results),
        pending=by[Outcome.PENDING],
        running=by[Outcome.RUNNING],
        succeeded=by[Outcome.SUCCEEDED],
        failed=by[Outcome.FAILED],
        skipped=by[Outcome.SKIPPED],
    )


def _end(
    results: Sequence[NodeResult], counts: NodeCounts, *, stop: bool
) -> tuple[Phase, ConditionReason]:
    if stop:
        return Phase.CANCELED, ConditionReason.CANCELED
    if counts.succeeded == counts.total:
        return Phase.COMPLETED, ConditionReason.COMPLETED
    if counts.succeeded:
        return Phase.PARTIALLY_COMPLETED, ConditionReason.PARTIALLY_COMPLETED
    if all(one.reason is NodeReason.UNSUPPORTED_PLATFORM for one in results):
        return Phase.FAILED, ConditionReason.UNSUPPORTED_PLATFORM
    return Phase.FAILED, ConditionReason.ALL_FAILED


def _ongoing(counts: NodeCounts, *, started: bool) -> str:
    """It changes only when an entry changes, so that it causes no status write of its own."""
    nodes = node_count(counts.total)
    return f"{counts.running} of {nodes} recording" if started else f"starting agents on {nodes}"


def node_count(count: int) -> str:
    """`1 node` or `N nodes`."""
    return f"{count} {'node' if count == 1 else 'nodes'}"


def summary(results: Sequence[NodeResult]) -> str:
    """`2 of 3 nodes delivered a bundle; NodeLost: node-c`."""
    delivered = sum(one.outcome is Outcome.SUCCEEDED for one in results)
    text = f"{delivered} of {node_count(len(results))} delivered a bundle"
    others: dict[NodeReason | None, list[str]] = {}
    for one in results:
        if one.outcome is not Outcome.SUCCEEDED:
            others.setdefault(one.reason, []).append(one.node)
    for reason, nodes in sorted(others.items(), key=lambda item: (-len(item[1]), str(item[0]))):
        named = ", ".join(nodes[:_NAMED_NODES])
        more = f" and {len(nodes) - _NAMED_NODES} more" if len(nodes) > _NAMED_NODES else ""
        text += f"; {reason}: {named}{more}"
    return text


def _with_conditions(
    status: SnapshotStatus, view: View, phase: Phase, generation: int, now: datetime
) -> SnapshotStatus:
    good = view.succeeded == "True"
    accepted = view.reason if view.accepted != "True" else ConditionReason.ACCEPTED
    truths: dict[ConditionType, Truth] = {
        ConditionType.ACCEPTED: view.accepted,
        ConditionType.SUCCEEDED: view.succeeded,
        ConditionType.FINISHED: _truth(view.finished),
        ConditionType.RECONCILING: _truth(not view.finished),
        ConditionType.STALLED: _truth(view.finished and not good),
        ConditionType.READY: _truth(view.finished and good),
    }
    message = text_of(view.message, 1024)
    conditions = tuple(
        _condition(
            status.condition(kind),
            Condition(
                type=kind,
                status=truth,
                reason=accepted if kind is ConditionType.ACCEPTED else view.reason,
                message=_accepted_message(view, message)
                if kind is ConditionType.ACCEPTED
                else message,
                observed_generation=generation,
                last_transition_time=now,
            ),
        )
        for kind, truth in truths.items()
    )
    return status.model_copy(
        update={"observed_generation": generation, "phase": phase, "conditions": conditions}
    )


def _truth(value: bool) -> Truth:
    return "True" if value else "False"


def _accepted_message(view: View, message: str) -> str:
    return "node list fixed in status.results" if view.accepted == "True" else message


def _condition(before: Condition | None, new: Condition) -> Condition:
    """The new condition. The transition time changes only with the condition's status."""
    if before is None or before.status != new.status:
        return new
    return new.model_copy(update={"last_transition_time": before.last_transition_time})


def observed(status: SnapshotStatus, generation: int) -> SnapshotStatus:
    """An ended status that also reflects this generation (`stop` was set after the end)."""
    if status.observed_generation == generation:
        return status
    conditions = tuple(
        one.model_copy(update={"observed_generation": generation}) for one in status.conditions
    )
    return status.model_copy(update={"observed_generation": generation, "conditions": conditions})
