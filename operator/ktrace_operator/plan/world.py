# SPDX-License-Identifier: Apache-2.0
"""What a plan is made from, and what it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from ktrace_api.snapshot import TraceSnapshot
from ktrace_api.status import NodeResult, SnapshotStatus
from ktrace_operator.objects import AgentPod, Claim, Node, Secret
from ktrace_operator.plan.agent_pod import pod_name, run_limit
from ktrace_operator.plan.agent_state import Case
from ktrace_operator.settings import Limits

RESYNC = timedelta(seconds=30)
"""An unfinished snapshot is looked at this often, though nothing happens."""
RETRY = timedelta(seconds=5)
"""What a snapshot waits for is looked at this often: a Secret, a claim, a busy node, a quota."""


@dataclass(frozen=True, slots=True)
class Denial:
    """A pod that the API server would not take."""

    message: str
    passing: bool
    """Whether others may free what it lacks: a quota."""


@dataclass(frozen=True, slots=True)
class World:
    """What was read, and how."""

    snapshot: TraceSnapshot
    pods: Sequence[AgentPod] = ()
    """Agents' pods of this snapshot's name, also of an older one's."""
    fresh: bool = True
    """Whether `pods` is what etcd holds; else it is a cache's, which may be late."""
    nodes: Mapping[str, Node | None] = field(default_factory=dict)
    """Nodes that were looked up; None: there is none of that name."""
    target_pods: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """UIDs of the pods of spec.nodes.pods by node."""
    secret: Secret | None = None
    claim: Claim | None = None
    busy: Mapping[str, str] = field(default_factory=dict)
    """node_hash() -> `namespace/name` of another snapshot whose agent is there."""
    denied: Mapping[str, Denial] = field(default_factory=dict)
    """Node -> why its pod could not be created a moment ago."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do. Pods are created, released and deleted whether the status is written or not."""

    status: SnapshotStatus
    create: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """Node and Pod object."""
    release: tuple[AgentPod, ...] = ()
    delete: tuple[AgentPod, ...] = ()
    """With their grace period: SIGTERM first."""
    delete_snapshot: bool = False
    wake: datetime | None = None
    """When to look again though nothing happens; None: not at all."""
    needs_fresh: bool = False
    """The world came from a cache, and this is not to be done on its word."""


def abandon(pods: Sequence[AgentPod]) -> Plan:
    """For pods whose snapshot is gone: SIGTERM, and nobody waits for what they say.

    Without our finalizer a pod that is being deleted stays until the kubelet has ended it.
    """
    return Plan(
        status=SnapshotStatus(),
        delete=tuple(pod for pod in pods if pod.deleting is None),
        release=tuple(pod for pod in pods if pod.held),
    )


def stopping(snapshot: TraceSnapshot) -> bool:
    """Whether it is to end now: by `stop`, or because it is being deleted."""
    return snapshot.spec.stop or snapshot.metadata.deletion_timestamp is not None


def name_of(snapshot: TraceSnapshot, node: str) -> str:
    """Name of the pod of this node's agent."""
    return pod_name(snapshot.metadata.name, snapshot.metadata.uid, node)


def own_pods(world: World) -> dict[str, AgentPod]:
    """Node -> its agent's pod: of this snapshot by UID, and of the one name that it can have."""
    uid = world.snapshot.metadata.uid
    by_name = {pod.name: pod for pod in world.pods if pod.snapshot_uid == uid}
    names = {one.node: name_of(world.snapshot, one.node) for one in world.snapshot.status.results}
    return {node: by_name[name] for node, name in names.items() if name in by_name}


def case_of(world: World, entry: NodeResult, pod: AgentPod, limits: Limits, now: datetime) -> Case:
    """What is known of one agent."""
    return Case(
        pod=pod,
        node=entry.node,
        start_limit=timedelta(seconds=limits.start_seconds),
        run_limit=run_limit(world.snapshot.spec, limits),
        stop=stopping(world.snapshot),
        now=now,
        host=world.nodes.get(entry.node),
        asked=entry.node in world.nodes,
    )
