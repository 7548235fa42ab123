# SPDX-License-Identifier: Apache-2.0
"""Which nodes a snapshot is for: resolved once, then frozen in its status."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from ktrace_api.capture import MAX_PODS
from ktrace_api.names import ConditionReason, NodeReason, Outcome
from ktrace_api.snapshot import NodeTarget, TraceSnapshot
from ktrace_api.status import NodeResult
from ktrace_operator.objects import Node, TargetPod
from ktrace_operator.settings import Limits


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing is started for a snapshot, now or ever."""

    reason: ConditionReason
    message: str


def uids_by_node(pods: Iterable[TargetPod]) -> dict[str, tuple[str, ...]]:
    """UIDs of target pods on each node."""
    found: dict[str, list[str]] = {}
    for pod in sorted(pods, key=lambda one: (one.node, one.name)):
        found.setdefault(pod.node, []).extend(pod.uids)
    return {node: tuple(uids) for node, uids in found.items()}


def pod_namespace(snapshot: TraceSnapshot, allowed: Collection[str]) -> str | Refusal | None:
    """Namespace of the pods that a snapshot names; None where it names none.

    `allowed` are namespaces beside its own, `*` for all.
    """
    target, own = snapshot.spec.nodes.pods, snapshot.metadata.namespace
    if target is None:
        return None
    namespace = target.namespace or own
    if namespace == own or namespace in allowed or "*" in allowed:
        return namespace
    return Refusal(
        ConditionReason.POLICY_DENIED,
        f"spec.nodes.pods.namespace: pods of {namespace} may not be named here",
    )


def choose(
    target: NodeTarget,
    nodes: Mapping[str, Node],
    pods: Mapping[str, tuple[str, ...]],
    limits: Limits,
    now: datetime,
) -> tuple[NodeResult, ...] | Refusal:
    """One entry a node, by name: Pending, or Skipped with a reason.

    `nodes` are those of the cluster that may be meant, `pods` the UIDs of target pods on each.
    Cordoned nodes are traced: they are often the ones in question.
    """
    if target.names is not None:
        chosen = sorted(target.names)
    elif target.selector is not None:
        chosen = sorted(
            n for n, node in nodes.items() if target.selector.matches(dict(node.labels))
        )
    else:
        chosen = sorted(pods)
    limit = min(target.max, limits.max_nodes)
    if not chosen:
        what = "pod that runs" if target.pods is not None else "node"
        return Refusal(ConditionReason.NO_NODES_MATCHED, f"no {what} is matched by spec.nodes")
    if len(chosen) > limit:
        whose = "spec.nodes.max" if limit == target.max else "the administrator's limit"
        return Refusal(
            ConditionReason.TOO_MANY_NODES,
            f"spec.nodes matches {len(chosen)} nodes, more than {whose}: {limit}",
        )
    crowded = [node for node in chosen if len(pods.get(node, ())) > MAX_PODS]
    if crowded:
        return Refusal(
            ConditionReason.INVALID_SPEC,
            f"spec.nodes.pods matches {len(pods[crowded[0]])} pods of node {crowded[0]}; "
            f"a capture can be narrowed to {MAX_PODS}",
        )
    return tuple(_entry(name, nodes.get(name), now) for name in chosen)


def _entry(name: str, node: Node | None, now: datetime) -> NodeResult:
    if node is None:
        return skipped(name, NodeReason.NODE_LOST, "there is no node of this name", now)
    if not node.ready:
        text = f"the node is not ready ({node.not_ready_because})"
        return skipped(name, NodeReason.NODE_NOT_READY, text, now)
    return NodeResult(node=name)


def skipped(node: str, reason: NodeReason, message: str, now: datetime) -> NodeResult:
    """The entry of a node on which no agent is started."""
    return NodeResult(
        node=node, outcome=Outcome.SKIPPED, reason=reason, message=message[:256], ended_at=now
    )
