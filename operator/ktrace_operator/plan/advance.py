# SPDX-License-Identifier: Apache-2.0
"""Plans from the fixed node list to the end of the last node."""

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
from ktrace_operator.plan.actions import RESYNC, RETRY, Plan, abandon
from ktrace_operator.plan.agent_pod import assignment, manifest
from ktrace_operator.plan.agent_state import Ended, Going, observe
from ktrace_operator.plan.outputs import choose_output, status_path
from ktrace_operator.plan.results import count_verdicts, roll_up
from ktrace_operator.plan.targets import Refusal, skipped
from ktrace_operator.plan.world import World, case_of, own_pods, stopping
from ktrace_operator.settings import Settings

CREATE_AT_ONCE = 100
"""Maximum pods created per plan."""


@dataclass(frozen=True, slots=True)
class _NodeState:
    """One node: its entry as read, its agent pod, and the state of that agent."""

    entry: NodeResult
    pod: AgentPod | None
    agent: Going | Ended | None
    """None if the entry is final or there is no pod."""

    @property
    def waits(self) -> bool:
        """Whether no agent was started on the node yet."""
        return self.pod is None and self.entry.outcome is Outcome.PENDING

    @property
    def takes_a_slot(self) -> bool:
        """Whether its agent counts towards `parallelism`.

        An agent that was given up may still start, because its pod is deleted only after the
        status has been written. So it counts until then.
        """
        if self.pod is None or self.agent is None:
            return False
        over = self.pod.over or self.pod.phase_ended or self.pod.deleting is not None
        return isinstance(self.agent, Going) or not over


@dataclass(frozen=True, slots=True)
class _Queue:
    """The nodes that wait for an agent."""

    free: int
    """Agents that may be started now."""
    since: datetime
    """When the last slot became free. Waiting times count from here.

    Counted from the snapshot's start, later waves would time out at once. A skipped node frees no
    slot; otherwise 1,000 busy nodes would take 1,000 times the limit. The time is the end that an
    agent reported by its own clock, which may be wrong by up to an hour (results.py).
    """
    turn: frozenset[str]
    """Nodes that have a free slot."""


def advance(world: World, settings: Settings, now: datetime) -> Plan:
    """The next actions and the current entry of every node."""
    snapshot, before = world.snapshot, world.snapshot.status
    states = _states(world, settings, now)
    entries = [_entry(world, state, now) for state in states]
    queue = _queue(world, states, entries, settings)
    entries = [
        _waiting(world, entry, queue, settings, now) if state.waits else entry
        for state, entry in zip(states, entries, strict=True)
    ]
    ended = [state.agent for state in states if isinstance(state.agent, Ended)]
    going = [state.agent for state in states if isinstance(state.agent, Going)]
    results = [one.result for one in ended if one.result is not None]
    create = _creations(world, states, entries, queue.free, settings)
    vanished = any(one.pod is None and one.entry.outcome is Outcome.RUNNING for one in states)
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
        (state, entry)
        for state, entry in zip(states, entries, strict=True)
        if state.pod is None and not state.entry.final
    ]
    waits = any(entry.outcome is Outcome.PENDING for _, entry in without_pod)
    given_up = any(entry is not state.entry for state, entry in without_pod) or any(
        isinstance(state.agent, Ended) and state.pod is not None and not state.pod.over
        for state in states
    )
    leftovers = abandon([pod for pod in world.pods if pod.snapshot_uid != snapshot.metadata.uid])
    release, delete = _removals(states)
    return Plan(
        status=status,
        create=tuple(create),
        release=(*release, *leftovers.release),
        delete=(*delete, *leftovers.delete),
        wake=min([now + (RETRY if waits else RESYNC), *(one.wake for one in going)]),
        needs_fresh=(bool(create) or vanished or given_up) and not world.fresh,
    )


def _states(world: World, settings: Settings, now: datetime) -> list[_NodeState]:
    pods = own_pods(world)
    states = []
    for entry in world.snapshot.status.results:
        pod = pods.get(entry.node)
        agent = None
        if pod is not None and not entry.final:
            agent = observe(case_of(world, entry, pod, settings.limits, now))
        states.append(_NodeState(entry, pod, agent))
    return states


def _entry(world: World, state: _NodeState, now: datetime) -> NodeResult:
    """The entry with the agent's state. A final entry never changes."""
    entry = state.entry
    if entry.final:
        return entry
    if isinstance(state.agent, Ended):
        return state.agent.entry
    if isinstance(state.agent, Going):
        # A late cache must not set a running node back to Pending.
        if entry.outcome is Outcome.RUNNING:
            return entry
        update = {"outcome": state.agent.outcome, "started_at": state.agent.started}
        return entry.model_copy(update=update)
    if entry.outcome is Outcome.RUNNING:
        return _vanished(world, entry, now) if world.fresh else entry
    return entry


def _vanished(world: World, entry: NodeResult, now: datetime) -> NodeResult:
    """The entry of a node whose agent ran and whose pod is gone in spite of the finalizer."""
    gone = entry.node in world.nodes and world.nodes[entry.node] is None
    return entry.model_copy(
        update={
            "outcome": Outcome.FAILED,
            "reason": NodeReason.NODE_LOST if gone else NodeReason.POD_DELETED,
            "message": "the agent's pod was removed before its result was read",
            "ended_at": now,
        }
    )


def _queue(
    world: World, states: Sequence[_NodeState], entries: Sequence[NodeResult], settings: Settings
) -> _Queue:
    snapshot = world.snapshot
    assert snapshot.status.start_time is not None
    limits = (snapshot.spec.nodes.parallelism, settings.limits.parallelism)
    limit = min((one for one in limits if one), default=len(states))
    free = max(0, limit - sum(state.takes_a_slot for state in states))
    ends = [
        one.ended_at
        for one in entries
        if one.ended_at is not None and one.outcome is not Outcome.SKIPPED
    ]
    waiting = [state.entry.node for state in states if state.waits]
    return _Queue(free, max([snapshot.status.start_time, *ends]), frozenset(waiting[:free]))


def _waiting(
    world: World, entry: NodeResult, queue: _Queue, settings: Settings, now: datetime
) -> NodeResult:
    """The entry of a node without an agent: unchanged while it waits, else Skipped."""
    why = _never(world, entry.node, queue, settings, now)
    return skipped(entry.node, *why, now) if why else entry


def _never(
    world: World, node: str, queue: _Queue, settings: Settings, now: datetime
) -> tuple[NodeReason, str] | None:
    """Why the operator stops waiting to start an agent on a node; None: it still waits."""
    snapshot = world.snapshot
    if stopping(snapshot):
        return NodeReason.CANCELED, "stopped before the agent started"
    if _output(snapshot, settings) is None:
        return NodeReason.CANCELED, "the chart's output settings changed after the start"
    by_pods = snapshot.spec.nodes.pods is not None
    if by_pods and world.fresh and not world.target_pods.get(node):
        return NodeReason.POD_DELETED, "no pod on this node matches spec.nodes.pods any more"
    return _waited_too_long(world, node, queue, settings, now)


def _waited_too_long(
    world: World, node: str, queue: _Queue, settings: Settings, now: datetime
) -> tuple[NodeReason, str] | None:
    limits, waited = settings.limits, now - queue.since
    busy_limit = timedelta(seconds=limits.busy_seconds)
    other = world.busy.get(node_hash(node))
    if other is not None and node in queue.turn and waited >= busy_limit:
        return NodeReason.NODE_BUSY, f"the agent of snapshot {other} still runs on this node"
    denial = world.denied.get(node)
    if denial is not None:  # a creation was tried, so the node had a slot
        limit = busy_limit if denial.passing else timedelta(seconds=limits.start_seconds)
        if waited >= limit:
            return NodeReason.UNSCHEDULABLE, denial.message
    return None


def _creations(
    world: World,
    states: Sequence[_NodeState],
    entries: Sequence[NodeResult],
    free: int,
    settings: Settings,
) -> list[tuple[str, Mapping[str, Any]]]:
    """Nodes and Pod objects to create now, up to `free`."""
    snapshot = world.snapshot
    output = _output(snapshot, settings)
    if output is None:
        return []
    waiting = [
        entry.node
        for state, entry in zip(states, entries, strict=True)
        if state.pod is None
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
    """The output; None if it no longer matches status.path."""
    output = choose_output(snapshot.spec, settings.output)
    if isinstance(output, Refusal):
        return None
    return output if status_path(output, snapshot.metadata) == snapshot.status.path else None


def _removals(states: Sequence[_NodeState]) -> tuple[list[AgentPod], list[AgentPod]]:
    """Pods to release (their result is stored) and pods to delete (stored, or to be ended)."""
    release, delete = [], []
    for state in states:
        if state.pod is None:
            continue
        to_end = isinstance(state.agent, Going) and state.agent.end
        if state.entry.final and state.pod.held:
            release.append(state.pod)
        if (state.entry.final or to_end) and state.pod.deleting is None:
            delete.append(state.pod)
    return release, delete
