# SPDX-License-Identifier: Apache-2.0
"""From the frozen list of nodes to the end of the last one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ktrace_api.assignment import node_hash
from ktrace_api.names import NodeReason, Outcome
from ktrace_api.snapshot import Output, TraceSnapshot
from ktrace_api.status import NodeResult
from ktrace_operator.objects import AgentPod
from ktrace_operator.plan import conditions
from ktrace_operator.plan.agent_pod import assignment, manifest
from ktrace_operator.plan.agent_state import Ended, Going, observe
from ktrace_operator.plan.outputs import choose_output, status_path
from ktrace_operator.plan.results import count_verdicts, roll_up
from ktrace_operator.plan.targets import Refusal, skipped
from ktrace_operator.plan.world import (
    RESYNC,
    RETRY,
    Plan,
    World,
    abandon,
    case_of,
    own_pods,
    stopping,
)
from ktrace_operator.settings import Settings

CREATE_AT_ONCE = 100
"""Pods that are created between two looks at the world."""


@dataclass(frozen=True, slots=True)
class _Look:
    """One node: its entry as it was read, its agent's pod, what that pod says."""

    entry: NodeResult
    pod: AgentPod | None
    seen: Going | Ended | None
    """None where the entry is final or there is no pod."""

    @property
    def waits(self) -> bool:
        """Whether no agent was started on the node yet."""
        return self.pod is None and self.entry.outcome is Outcome.PENDING

    @property
    def takes_a_place(self) -> bool:
        """Whether its agent counts among those at once.

        One that was given up may still start: it counts until that is in the status, for only
        then its pod is deleted.
        """
        if self.pod is None or self.seen is None:
            return False
        over = self.pod.over or self.pod.phase_ended or self.pod.deleting is not None
        return isinstance(self.seen, Going) or not over


@dataclass(frozen=True, slots=True)
class _Line:
    """The nodes that wait for an agent, as a queue."""

    free: int
    """Agents that may be started now."""
    since: datetime
    """When the last place became free: patience with the nodes whose turn it is counts from then.

    With the start of the snapshot instead, later waves would have none. A node that was skipped
    freed no place: else 1,000 nodes that are all busy would take 1,000 times the limit. It is
    an agent's own clock that says when it ended, up to an hour off (results.py).
    """
    turn: frozenset[str]
    """Those that a place is free for."""


def advance(world: World, settings: Settings, now: datetime) -> Plan:
    """The next actions, and every entry as it is now."""
    snapshot, before = world.snapshot, world.snapshot.status
    looks = _looks(world, settings, now)
    entries = [_entry(world, look, now) for look in looks]
    line = _line(world, looks, entries, settings)
    entries = [
        _waiting(world, entry, line, settings, now) if look.waits else entry
        for look, entry in zip(looks, entries, strict=True)
    ]
    ended = [look.seen for look in looks if isinstance(look.seen, Ended)]
    going = [look.seen for look in looks if isinstance(look.seen, Going)]
    results = [one.result for one in ended if one.result is not None]
    create = _creations(world, looks, entries, line.free, settings)
    vanished = any(look.pod is None and look.entry.outcome is Outcome.RUNNING for look in looks)
    status = conditions.progress(
        before.model_copy(
            update={
                "findings": roll_up(before.findings, results),
                "verdicts": count_verdicts(before.verdicts, results),
            }
        ),
        entries,
        stop=stopping(snapshot),
        generation=snapshot.metadata.generation,
        now=now,
    )
    without_pod = [
        (look, entry)
        for look, entry in zip(looks, entries, strict=True)
        if look.pod is None and not look.entry.final
    ]
    waits = any(entry.outcome is Outcome.PENDING for _, entry in without_pod)
    given_up = any(entry is not look.entry for look, entry in without_pod) or any(
        isinstance(look.seen, Ended) and look.pod is not None and not look.pod.over
        for look in looks
    )
    leftovers = abandon([pod for pod in world.pods if pod.snapshot_uid != snapshot.metadata.uid])
    release, delete = _let_go(looks)
    return Plan(
        status=status,
        create=tuple(create),
        release=(*release, *leftovers.release),
        delete=(*delete, *leftovers.delete),
        wake=min([now + (RETRY if waits else RESYNC), *(one.wake for one in going)]),
        needs_fresh=(bool(create) or vanished or given_up) and not world.fresh,
    )


def _looks(world: World, settings: Settings, now: datetime) -> list[_Look]:
    pods = own_pods(world)
    looks = []
    for entry in world.snapshot.status.results:
        pod = pods.get(entry.node)
        seen = None
        if pod is not None and not entry.final:
            seen = observe(case_of(world, entry, pod, settings.limits, now))
        looks.append(_Look(entry, pod, seen))
    return looks


def _entry(world: World, look: _Look, now: datetime) -> NodeResult:
    """The entry as its agent left it. One that is final never changes."""
    entry = look.entry
    if entry.final:
        return entry
    if isinstance(look.seen, Ended):
        return look.seen.entry
    if isinstance(look.seen, Going):
        # What a late cache shows never takes a node back to Pending.
        if entry.outcome is Outcome.RUNNING:
            return entry
        update = {"outcome": look.seen.outcome, "started_at": look.seen.started}
        return entry.model_copy(update=update)
    if entry.outcome is Outcome.RUNNING:
        return _vanished(world, entry, now) if world.fresh else entry
    return entry


def _vanished(world: World, entry: NodeResult, now: datetime) -> NodeResult:
    """The agent ran, and its pod went away in spite of our finalizer."""
    gone = entry.node in world.nodes and world.nodes[entry.node] is None
    return entry.model_copy(
        update={
            "outcome": Outcome.FAILED,
            "reason": NodeReason.NODE_LOST if gone else NodeReason.POD_DELETED,
            "message": "the agent's pod is gone, and its result with it",
            "ended_at": now,
        }
    )


def _line(
    world: World, looks: Sequence[_Look], entries: Sequence[NodeResult], settings: Settings
) -> _Line:
    snapshot = world.snapshot
    assert snapshot.status.start_time is not None
    limits = (snapshot.spec.nodes.parallelism, settings.limits.parallelism)
    limit = min((one for one in limits if one), default=len(looks))
    free = max(0, limit - sum(look.takes_a_place for look in looks))
    ends = [
        one.ended_at
        for one in entries
        if one.ended_at is not None and one.outcome is not Outcome.SKIPPED
    ]
    waiting = [look.entry.node for look in looks if look.waits]
    return _Line(free, max([snapshot.status.start_time, *ends]), frozenset(waiting[:free]))


def _waiting(
    world: World, entry: NodeResult, line: _Line, settings: Settings, now: datetime
) -> NodeResult:
    """The entry of a node without an agent: it waits on, or it is skipped."""
    why = _never(world, entry.node, line, settings, now)
    return skipped(entry.node, *why, now) if why else entry


def _never(
    world: World, node: str, line: _Line, settings: Settings, now: datetime
) -> tuple[NodeReason, str] | None:
    """Why no agent will be started on a node that has none; None: one will."""
    snapshot = world.snapshot
    if stopping(snapshot):
        return NodeReason.CANCELED, "stopped before the agent started"
    if _output(snapshot, settings) is None:
        return NodeReason.CANCELED, "the administrator changed where bundles may go"
    by_pods = snapshot.spec.nodes.pods is not None
    if by_pods and world.fresh and not world.target_pods.get(node):
        return NodeReason.POD_DELETED, "no pod that spec.nodes.pods matches is left on this node"
    return _waited_too_long(world, node, line, settings, now)


def _waited_too_long(
    world: World, node: str, line: _Line, settings: Settings, now: datetime
) -> tuple[NodeReason, str] | None:
    limits, waited = settings.limits, now - line.since
    busy_limit = timedelta(seconds=limits.busy_seconds)
    other = world.busy.get(node_hash(node))
    if other is not None and node in line.turn and waited >= busy_limit:
        return NodeReason.NODE_BUSY, f"the agent of snapshot {other} is still on this node"
    denial = world.denied.get(node)
    if denial is not None:  # it was tried, so it was its turn
        limit = busy_limit if denial.passing else timedelta(seconds=limits.start_seconds)
        if waited >= limit:
            return NodeReason.UNSCHEDULABLE, denial.message
    return None


def _creations(
    world: World,
    looks: Sequence[_Look],
    entries: Sequence[NodeResult],
    free: int,
    settings: Settings,
) -> list[tuple[str, Mapping[str, Any]]]:
    """Pods to create now, `free` at most."""
    snapshot = world.snapshot
    output = _output(snapshot, settings)
    if output is None:
        return []
    waiting = [
        entry.node
        for look, entry in zip(looks, entries, strict=True)
        if look.pod is None
        and entry.outcome is Outcome.PENDING
        and node_hash(entry.node) not in world.busy
        and entry.node not in world.denied
    ]
    made: list[tuple[str, Mapping[str, Any]]] = []
    for node in waiting[: min(free, CREATE_AT_ONCE)]:
        uids = world.target_pods.get(node, ())
        work = assignment(snapshot, node, output, uids, settings)
        made.append((node, manifest(snapshot, node, output, work, settings)))
    return made


def _output(snapshot: TraceSnapshot, settings: Settings) -> Output | None:
    """The output, while it is the one that status.path promises."""
    output = choose_output(snapshot.spec, settings.output)
    if isinstance(output, Refusal):
        return None
    return output if status_path(output, snapshot.metadata) == snapshot.status.path else None


def _let_go(looks: Sequence[_Look]) -> tuple[list[AgentPod], list[AgentPod]]:
    """Pods to release and to delete: those whose result is stored, and those that are to end."""
    release, delete = [], []
    for look in looks:
        if look.pod is None:
            continue
        to_end = isinstance(look.seen, Going) and look.seen.end
        if look.entry.final and look.pod.held:
            release.append(look.pod)
        if (look.entry.final or to_end) and look.pod.deleting is None:
            delete.append(look.pod)
    return release, delete
