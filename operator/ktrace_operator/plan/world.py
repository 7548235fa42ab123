# SPDX-License-Identifier: Apache-2.0
"""The input of a plan: a snapshot, its pods, and the other objects that were read for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ktrace_api.snapshot import TraceSnapshot
from ktrace_api.status import NodeResult
from ktrace_operator.objects import AgentPod, Claim, Node, Secret
from ktrace_operator.plan.agent_pod import pod_name, run_limit
from ktrace_operator.plan.agent_state import Case
from ktrace_operator.settings import Limits


@dataclass(frozen=True, slots=True)
class Denial:
    """Why the API server refused to create a pod."""

    message: str
    passing: bool
    """Whether it may pass without a change to the pod: a used-up quota."""


@dataclass(frozen=True, slots=True)
class World:
    """The objects that were read."""

    snapshot: TraceSnapshot
    pods: Sequence[AgentPod] = ()
    """Agent pods of this snapshot's name, including those of an older one of that name."""
    fresh: bool = True
    """Whether `pods` was read from etcd; else from a cache, which may be late."""
    nodes: Mapping[str, Node | None] = field(default_factory=dict)
    """Nodes that were read. None: no node has this name."""
    target_pods: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Node -> UIDs of its pods that spec.nodes.pods matches."""
    secret: Secret | None = None
    claim: Claim | None = None
    busy: Mapping[str, str] = field(default_factory=dict)
    """node_hash() -> `namespace/name` of another snapshot whose agent is on that node."""
    denied: Mapping[str, Denial] = field(default_factory=dict)
    """Node -> why the API server has just refused its pod."""


def stopping(snapshot: TraceSnapshot) -> bool:
    """Whether the snapshot must end now: `stop` is set, or it is being deleted."""
    return snapshot.spec.stop or snapshot.metadata.deletion_timestamp is not None


def name_of(snapshot: TraceSnapshot, node: str) -> str:
    """Name of the agent pod for this node."""
    return pod_name(snapshot.metadata.name, snapshot.metadata.uid, node)


def own_pods(world: World) -> dict[str, AgentPod]:
    """Node -> its agent pod: it has the snapshot's UID and the one name reserved for the node."""
    uid = world.snapshot.metadata.uid
    by_name = {pod.name: pod for pod in world.pods if pod.snapshot_uid == uid}
    names = {one.node: name_of(world.snapshot, one.node) for one in world.snapshot.status.results}
    return {node: by_name[name] for node, name in names.items() if name in by_name}


def case_of(world: World, entry: NodeResult, pod: AgentPod, limits: Limits, now: datetime) -> Case:
    """Everything that decides the state of one agent."""
    return Case(
        pod=pod,
        node=entry.node,
        start_limit=timedelta(seconds=limits.start_seconds),
        run_limit=run_limit(world.snapshot.spec, limits),
        stop=stopping(world.snapshot),
        now=now,
        host=world.nodes.get(entry.node),
        host_read=entry.node in world.nodes,
    )
