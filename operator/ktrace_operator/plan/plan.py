# SPDX-License-Identifier: Apache-2.0
"""Plans one snapshot: the next actions and the whole status, from objects of the API server alone.

No memory and no I/O: the same world at the same time gives the same plan, so the operator may be
killed after any write. Actions follow from the status as read, never from the status about to be
written. So no pod is created before the node list is stored (the write-ahead record), and no pod
is released before its result is stored.
"""

from collections.abc import Sequence
from datetime import datetime

from ktrace_api.kubeobject import ObjectMeta
from ktrace_api.names import ConditionReason, NodeReason, Outcome
from ktrace_api.snapshot import TraceSnapshot
from ktrace_api.status import SnapshotStatus
from ktrace_operator.objects import AgentPod
from ktrace_operator.plan import conditions
from ktrace_operator.plan.actions import RESYNC, Plan, abandon
from ktrace_operator.plan.advance import advance
from ktrace_operator.plan.agent_pod import MARGIN
from ktrace_operator.plan.agent_state import in_doubt
from ktrace_operator.plan.start import begin
from ktrace_operator.plan.targets import Refusal
from ktrace_operator.plan.world import World, case_of, name_of, own_pods, stopping
from ktrace_operator.settings import Settings

GITOPS_ANNOTATIONS = frozenset({"argocd.argoproj.io/tracking-id", "argocd.argoproj.io/instance"})
GITOPS_LABELS = frozenset(
    {
        "argocd.argoproj.io/instance",
        "app.kubernetes.io/instance",
        "kustomize.toolkit.fluxcd.io/name",
        "helm.toolkit.fluxcd.io/name",
    }
)


def plan(world: World, settings: Settings, now: datetime) -> Plan:
    """The next actions and the status. `now` must be in whole seconds."""
    status = world.snapshot.status
    if status.finished:
        return _clean_up(world, now)
    if status.start_time is None:
        return begin(world, settings, now)
    return advance(world, settings, now)


def doubtful_nodes(world: World, settings: Settings, now: datetime) -> set[str]:
    """Names of nodes that must be read, because the state of their agent depends on them."""
    found = set()
    pods = own_pods(world)
    for entry in world.snapshot.status.results:
        if entry.final:
            continue
        pod = pods.get(entry.node)
        if pod is None:
            if entry.outcome is Outcome.RUNNING:
                found.add(entry.node)
        elif in_doubt(case_of(world, entry, pod, settings.limits, now)):
            found.add(entry.node)
    return found


def wants_pods(snapshot: TraceSnapshot, pods: Sequence[AgentPod]) -> bool:
    """Whether the plan may create pods; if so, other agents and the target pods must be read."""
    if snapshot.status.start_time is None or snapshot.status.finished or stopping(snapshot):
        return False
    there = {pod.name for pod in pods}
    return any(
        entry.outcome is Outcome.PENDING and name_of(snapshot, entry.node) not in there
        for entry in snapshot.status.results
    )


def give_up(
    metadata: ObjectMeta,
    status: SnapshotStatus,
    pods: Sequence[AgentPod],
    message: str,
    now: datetime,
) -> Plan:
    """Ends a snapshot whose spec cannot be read, and stops its agents."""
    rest = abandon(pods)
    if status.finished:
        return Plan(status, release=rest.release, delete=rest.delete)
    lost = {"outcome": Outcome.FAILED, "reason": NodeReason.CANCELED, "ended_at": now}
    entries = tuple(
        one if one.final else one.model_copy(update=lost | {"message": message[:256]})
        for one in status.results
    )
    before = status.model_copy(update={"results": entries, "nodes": conditions.count(entries)})
    refusal = Refusal(ConditionReason.INVALID_SPEC, message)
    ended = conditions.refused(before, refusal, metadata.generation, now)
    return Plan(ended, release=rest.release, delete=rest.delete)


def _clean_up(world: World, now: datetime) -> Plan:
    """After the end: removes leftover pods, then the snapshot if its `ttlAfterFinished` is over."""
    snapshot, status = world.snapshot, world.snapshot.status
    rest = abandon(world.pods)
    observed = conditions.observed(status, snapshot.metadata.generation)
    ttl, ended = snapshot.spec.ttl_after_finished, status.completion_time
    if ttl is None or ended is None or snapshot.metadata.deletion_timestamp is not None:
        wake = now + RESYNC if world.pods else None
        return Plan(observed, release=rest.release, delete=rest.delete, wake=wake)
    due = now >= ended + ttl and not world.pods and not owned_by_gitops(snapshot)
    wake = None if owned_by_gitops(snapshot) else max(ended + ttl, now + MARGIN / 30)
    if world.pods:
        wake = now + RESYNC
    return Plan(observed, release=rest.release, delete=rest.delete, delete_snapshot=due, wake=wake)


def owned_by_gitops(snapshot: TraceSnapshot) -> bool:
    """Whether a GitOps tool would create the snapshot again, and so run it again."""
    metadata = snapshot.metadata
    return bool(
        GITOPS_ANNOTATIONS & metadata.annotations.keys() or GITOPS_LABELS & metadata.labels.keys()
    )
