# SPDX-License-Identifier: Apache-2.0
"""Selects the nodes of a snapshot: once, then fixed in its status."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from ktrace_api.capture import MAX_PODS
from ktrace_api.names import ConditionReason, NodeReason, Outcome
from ktrace_api.snapshot import NodeTarget, TraceSnapshot
from ktrace_api.status import NodeResult
from ktrace_operator.objects import Node, TargetPod
from ktrace_operator.settings import Settings


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a snapshot is never started."""

    reason: ConditionReason
    message: str


def uids_by_node(pods: Iterable[TargetPod]) -> dict[str, tuple[str, ...]]:
    """Node -> UIDs of its target pods."""
    found: dict[str, list[str]] = {}
    for pod in sorted(pods, key=lambda one: (one.node, one.name)):
        found.setdefault(pod.node, []).extend(pod.uids)
    return {node: tuple(uids) for node, uids in found.items()}


def pod_namespace(snapshot: TraceSnapshot, allowed: Collection[str]) -> str | Refusal | None:
    """Namespace of the pods that a snapshot names; None if it names none.

    `allowed` lists further namespaces beside the snapshot's own; `*` allows all.
    """
    target, own = snapshot.spec.nodes.pods, snapshot.metadata.namespace
    if target is None:
        return None
    namespace = target.namespace or own
    if namespace == own or namespace in allowed or "*" in allowed:
        return namespace
    return Refusal(
        ConditionReason.POLICY_DENIED,
        f"spec.nodes.pods.namespace {namespace} is not in the chart's podTargets.namespaces",
    )


def choose(
    target: NodeTarget,
    nodes: Mapping[str, Node],
    pods: Mapping[str, tuple[str, ...]],
    settings: Settings,
    now: datetime,
) -> tuple[NodeResult, ...] | Refusal:
    """One entry per node, sorted by name: Pending, or Skipped with a reason.

    `nodes` are the candidates in the cluster, `pods` the UIDs of target pods by node. Cordoned
    nodes are traced, since they are often the nodes under investigation.
    """
    if target.names is not None:
        chosen = sorted(target.names)
    elif target.selector is not None:
        chosen = sorted(
            n for n, node in nodes.items() if target.selector.matches(dict(node.labels))
        )
    else:
        chosen = sorted(pods)
    limit = min(target.max, settings.limits.max_nodes)
    if not chosen:
        what = "running pod" if target.pods is not None else "node"
        return Refusal(ConditionReason.NO_NODES_MATCHED, f"spec.nodes matches no {what}")
    if len(chosen) > limit:
        whose = "spec.nodes.max" if limit == target.max else "the chart's limits.maxNodes"
        return Refusal(
            ConditionReason.TOO_MANY_NODES,
            f"spec.nodes matches {len(chosen)} nodes, more than {whose} ({limit})",
        )
    crowded = [node for node in chosen if len(pods.get(node, ())) > MAX_PODS]
    if crowded:
        return Refusal(
            ConditionReason.INVALID_SPEC,
            f"spec.nodes.pods matches {len(pods[crowded[0]])} pods on node {crowded[0]}; "
            f"the maximum per node is {MAX_PODS}",
        )
    return tuple(_entry(name, nodes.get(name), settings.agent.platforms, now) for name in chosen)


def _entry(name: str, node: Node | None, platforms: Collection[str], now: datetime) -> NodeResult:
    if node is None:
        return skipped(name, NodeReason.NODE_LOST, "no node has this name", now)
    if not _has_image(node, platforms):
        served = ", ".join(platforms)
        text = f"no agent image for {node.platform} (the chart's agent.platforms: {served})"
        return skipped(name, NodeReason.UNSUPPORTED_PLATFORM, text, now)
    if not node.ready:
        text = f"node NotReady ({node.not_ready_because})"
        return skipped(name, NodeReason.NODE_NOT_READY, text, now)
    return NodeResult(node=name)


def _has_image(node: Node, platforms: Collection[str]) -> bool:
    """Whether the agent image may run on this node. An unknown platform is given a chance."""
    known = [one.split("/") for one in platforms]
    return not known or any(
        node.os in ("", os) and node.architecture in ("", architecture)
        for os, architecture in known
    )


def skipped(node: str, reason: NodeReason, message: str, now: datetime) -> NodeResult:
    """The entry of a node on which no agent is started."""
    return NodeResult(
        node=node, outcome=Outcome.SKIPPED, reason=reason, message=message[:256], ended_at=now
    )
