# SPDX-License-Identifier: Apache-2.0
"""Kubernetes Events: one for each step of a snapshot, not one for each node."""

import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ktrace_api.names import (
    API_GROUP,
    API_VERSION,
    KIND,
    MANAGER,
    ConditionType,
    NodeReason,
    Outcome,
    Phase,
)
from ktrace_api.snapshot import TraceSnapshot
from ktrace_api.status import SnapshotStatus
from ktrace_operator.objects import text_of
from ktrace_operator.plan.conditions import node_count, summary

_NOTE_CHARS = 1000
"""events.k8s.io/v1 accepts 1 kB."""


class Step(NamedTuple):
    """One step of a snapshot."""

    warning: bool
    reason: str
    note: str


def steps(before: SnapshotStatus, after: SnapshotStatus, *, gitops_ttl: bool) -> Iterator[Step]:
    """The steps between two statuses.

    gitops_ttl: `ttlAfterFinished` is set and a GitOps tool owns the snapshot.
    """
    if before.start_time is None and after.start_time is not None:
        text = f"nodes selected: {after.nodes.total}, skipped: {after.nodes.skipped}"
        yield Step(warning=False, reason="NodesSelected", note=text)
    if not before.nodes.running and after.nodes.running and not after.finished:
        yield Step(warning=False, reason="AgentsStarted", note="first agents running")
    if after.finished and not before.finished:
        yield from _end(after)
        if gitops_ttl:
            text = "ttlAfterFinished ignored: a GitOps tool would create the snapshot again"
            yield Step(warning=True, reason="TTLIgnoredGitOps", note=text)


def _end(status: SnapshotStatus) -> Iterator[Step]:
    if not status.results:
        accepted = status.condition(ConditionType.ACCEPTED)
        if accepted is not None:
            yield Step(True, accepted.reason.value, accepted.message)
        return
    failed = Counter(
        one.reason for one in status.results if one.outcome in (Outcome.FAILED, Outcome.SKIPPED)
    )
    for reason, name in (
        (NodeReason.UNSCHEDULABLE, "AgentsUnschedulable"),
        (NodeReason.NODE_LOST, "NodesLost"),
    ):
        if failed[reason]:
            yield Step(
                warning=True,
                reason=name,
                note=f"{reason}: {failed[reason]} of {node_count(status.nodes.total)}",
            )
    assert status.phase is not None
    good = status.phase in (Phase.COMPLETED, Phase.CANCELED)
    note = f"{summary(status.results)}; bundles in {status.path}"
    yield Step(warning=not good, reason=status.phase.value, note=note)


def event(snapshot: TraceSnapshot, step: Step) -> dict[str, Any]:
    """The events.k8s.io/v1 object."""
    metadata = snapshot.metadata
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {
            "name": f"{metadata.name[:200]}.{uuid.uuid4().hex[:16]}",
            "namespace": metadata.namespace,
        },
        "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "type": "Warning" if step.warning else "Normal",
        "reason": step.reason,
        "action": "Trace",
        "note": text_of(step.note, _NOTE_CHARS) or step.reason,
        "regarding": {
            "apiVersion": f"{API_GROUP}/{API_VERSION}",
            "kind": KIND,
            "namespace": metadata.namespace,
            "name": metadata.name,
            "uid": metadata.uid,
        },
        "reportingController": f"{API_GROUP}/operator",
        "reportingInstance": MANAGER,
    }
