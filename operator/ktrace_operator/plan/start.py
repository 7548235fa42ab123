# SPDX-License-Identifier: Apache-2.0
"""Plans the first step of a snapshot: fixes its node list, or refuses it."""

from datetime import datetime, timedelta

from ktrace_api.names import MAX_NAME, ConditionReason
from ktrace_api.snapshot import Output, TraceSnapshot
from ktrace_operator.plan import conditions
from ktrace_operator.plan.actions import RETRY, Plan, abandon
from ktrace_operator.plan.outputs import check_output, choose_output, status_path
from ktrace_operator.plan.targets import Refusal, choose, pod_namespace
from ktrace_operator.plan.world import World, stopping
from ktrace_operator.settings import Settings


def begin(world: World, settings: Settings, now: datetime) -> Plan:
    """The plan of a snapshot whose node list is not stored yet. No pod exists."""
    snapshot, before = world.snapshot, world.snapshot.status
    generation = snapshot.metadata.generation
    refusal = _refusal(snapshot, settings)
    output = choose_output(snapshot.spec, settings.output)
    chosen = choose(
        snapshot.spec.nodes,
        {name: node for name, node in world.nodes.items() if node is not None},
        world.target_pods,
        settings,
        now,
    )
    leftovers = abandon([pod for pod in world.pods if pod.snapshot_uid != snapshot.metadata.uid])
    for answer in (refusal, output, chosen):
        if isinstance(answer, Refusal):
            status = conditions.refused(before, answer, generation, now)
            return Plan(status, release=leftovers.release, delete=leftovers.delete)
    assert isinstance(output, Output)
    assert isinstance(chosen, tuple)
    missing = check_output(output, world.secret, world.claim, len(chosen))
    if missing is not None:
        limit = snapshot.metadata.creation_timestamp + timedelta(
            seconds=settings.limits.start_seconds
        )
        if now >= limit:
            refusal = Refusal(missing.reason, missing.message)
            return Plan(conditions.refused(before, refusal, generation, now))
        status = conditions.resolving(before, missing.message, generation, now)
        return Plan(status, wake=min(limit, now + RETRY))
    started = before.model_copy(
        update={"start_time": now, "path": status_path(output, snapshot.metadata)}
    )
    status = conditions.progress(started, chosen, stop=False, generation=generation, now=now)
    return Plan(status, release=leftovers.release, delete=leftovers.delete, wake=now)


def _refusal(snapshot: TraceSnapshot, settings: Settings) -> Refusal | None:
    """The refusal of a spec that needs no other object to be read."""
    if stopping(snapshot):
        return Refusal(ConditionReason.CANCELED, "stopped before any agent was started")
    if len(snapshot.metadata.name) > MAX_NAME:
        return Refusal(
            ConditionReason.INVALID_SPEC, f"metadata.name is longer than {MAX_NAME} characters"
        )
    namespace = pod_namespace(snapshot, settings.pod_targets)
    if isinstance(namespace, Refusal):
        return namespace
    longest = settings.limits.max_duration
    if snapshot.spec.duration > longest:
        return Refusal(
            ConditionReason.POLICY_DENIED,
            f"spec.duration exceeds the chart's limits.maxDuration ({longest.total_seconds():g}s)",
        )
    return None
