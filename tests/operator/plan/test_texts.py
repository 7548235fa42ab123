# SPDX-License-Identifier: Apache-2.0
"""Every text that the planner writes for people: messages of nodes and conditions, Event notes.

The planner runs over a set of states, and its texts are compared with snapshots. So a change of a
text shows in the review, and a text that no state produces is missing there.
"""

import copy
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from ktrace_api.names import ConditionType
from ktrace_operator.errors import Denied
from ktrace_operator.objects import Claim, Secret, TargetPod
from ktrace_operator.plan.agent_state import Ended, observe
from ktrace_operator.serve.reconcile import SnapshotKey
from ktrace_operator.settings import Limits, OutputSettings
from tests.operator.plan.test_agent_state import case, test_ends
from tests.operator.serve.model import ApiModel, Operator, goes_on, later, names

Scene = Callable[[ApiModel, Operator, SnapshotKey], None]

NODES = names("node-a", "node-b")
PODS: dict[str, Any] = {"nodes": {"pods": {"selector": {}}}}
S3 = {"output": {"s3": {"bucket": "bundles", "credentialsSecret": "keys"}}}
PVC = {"output": {"pvc": {"claimName": "claim"}}}
START_S = 120


def told(model: ApiModel, key: SnapshotKey) -> str:
    """Phase, the conditions Accepted and Succeeded, and each final entry, one a line."""
    status = model.status(key)
    lines = [f"phase {status.phase}"]
    for kind in (ConditionType.ACCEPTED, ConditionType.SUCCEEDED):
        one = status.condition(kind)
        assert one is not None
        lines.append(f"{kind} {one.status} {one.reason}: {one.message}")
    lines += [
        f"{one.node} {one.outcome} {one.reason}: {one.message}"
        for one in status.results
        if one.message
    ]
    return "\n".join(lines)


def fresh() -> ApiModel:
    model = ApiModel()
    model.node("node-a")
    model.node("node-b")
    return model


def after_a_while(model: ApiModel, operator: Operator, key: SnapshotKey) -> None:
    """Until the start limit is over."""
    later(model, START_S)
    operator.settle(key)


def at_once(_model: ApiModel, _operator: Operator, _key: SnapshotKey) -> None:
    pass


def to_the_end(model: ApiModel, operator: Operator, key: SnapshotKey) -> None:
    goes_on(model, operator, key, 100)


def running(model: ApiModel, operator: Operator, key: SnapshotKey) -> None:
    for pod in model.agents_of(key):
        model.start(pod)
    operator.settle(key)


def stopped(model: ApiModel, operator: Operator, key: SnapshotKey) -> None:
    running(model, operator, key)
    model.stop(key)
    operator.settle(key)
    for pod in model.agents_of(key):
        model.succeed(pod)
    operator.settle(key)


def stopped_early(model: ApiModel, operator: Operator, key: SnapshotKey) -> None:
    model.stop(key)
    operator.settle(key)


def one_fails(model: ApiModel, operator: Operator, key: SnapshotKey) -> None:
    running(model, operator, key)
    for pod in model.agents_of(key)[:1]:
        model.end(pod, "", 137, "OOMKilled")
    to_the_end(model, operator, key)


def one_pod_goes(model: ApiModel, operator: Operator, key: SnapshotKey) -> None:
    running(model, operator, key)
    model.strip(model.pod_of("node-a"))
    to_the_end(model, operator, key)


def one_node_goes(model: ApiModel, operator: Operator, key: SnapshotKey) -> None:
    running(model, operator, key)
    pod = model.pod_of("node-a")
    model.lose_node("node-a")
    model.strip(pod)
    operator.settle(key)


def refused_pods(model: ApiModel, operator: Operator, key: SnapshotKey) -> None:
    model.refusal = Denied("POST pods: 403: denied by a policy", 403)
    after_a_while(model, operator, key)


def output_changes(model: ApiModel, operator: Operator, key: SnapshotKey) -> None:
    del operator
    other = Operator(
        model, output=OutputSettings.model_validate({"default": {"s3": {"bucket": "elsewhere"}}})
    )
    later(model, 1)
    other.settle(key)
    other.close()


def target_goes(model: ApiModel, operator: Operator, key: SnapshotKey) -> None:
    model.targets.clear()
    operator.settle(key)


def claim(*modes: str, **changes: Any) -> Callable[[ApiModel], None]:
    def prepare(model: ApiModel) -> None:
        model.claims["claim"] = Claim("claim", modes, **changes)

    return prepare


def secret(model: ApiModel) -> None:
    model.secrets["keys"] = Secret("keys", usable=False)


def targets(count: int) -> Callable[[ApiModel], None]:
    def prepare(model: ApiModel) -> None:
        model.targets = [TargetPod(f"pod-{n}", "node-a", (f"{n:032x}",)) for n in range(count)]

    return prepare


def not_ready(model: ApiModel) -> None:
    model.node("node-b", ready=False)


def no_image(*nodes: str) -> Callable[[ApiModel], None]:
    """Nodes of other platforms: the first is linux/arm64, the second windows/amd64."""

    def prepare(model: ApiModel) -> None:
        for node, platform in zip(nodes, ("linux/arm64", "windows/amd64"), strict=False):
            model.node(node, platform=platform)

    return prepare


def other_agent(model: ApiModel) -> None:
    other = Operator(model)
    other.settle(model.apply("other", names("node-a")))
    other.close()


def nothing(_model: ApiModel) -> None:
    pass


def refuse(model: ApiModel) -> None:
    model.refusal = Denied("POST pods: 403: denied by a policy", 403)


def denied_targets(model: ApiModel) -> None:
    targets(1)(model)
    refuse(model)


NO_PVC = OutputSettings.model_validate(
    {"default": {"s3": {"bucket": "bundles"}}, "allowPvc": False}
)
TEAM_BUCKETS = OutputSettings.model_validate({"s3": {"allowedBuckets": ["team-*"]}})
ONE_AT_A_TIME = {"nodes": {"names": ["node-a", "node-b"], "parallelism": 1}}
Row = tuple[dict[str, Any], Callable[[ApiModel], None], Scene, dict[str, Any]]
STATES: dict[str, Row] = {
    "starting": (NODES, nothing, at_once, {}),
    "running": (NODES, nothing, running, {}),
    "one node running": (names("node-a"), nothing, running, {}),
    "completed": (NODES, nothing, to_the_end, {}),
    "one fails": (NODES, nothing, one_fails, {}),
    "all fail": (names("node-a"), nothing, one_fails, {}),
    "one pod goes": (NODES, nothing, one_pod_goes, {}),
    "one node goes": (names("node-a"), nothing, one_node_goes, {}),
    "not ready, unknown": (names("node-b", "node-c"), not_ready, to_the_end, {}),
    "no image for any node": (NODES, no_image("node-a", "node-b"), at_once, {}),
    "no image for one node": (NODES, no_image("node-a"), to_the_end, {}),
    "stopped": (NODES, nothing, stopped, {}),
    "stopped while nodes wait": (ONE_AT_A_TIME, nothing, stopped, {}),
    "stopped before the start": (NODES | {"stop": True}, nothing, at_once, {}),
    "pods refused": (ONE_AT_A_TIME, nothing, refused_pods, {}),
    "pods refused at first": (NODES, refuse, after_a_while, {}),
    "node busy": (
        names("node-a"), other_agent, after_a_while, {"limits": Limits(busy_seconds=START_S)},
    ),
    "output changes": (ONE_AT_A_TIME, nothing, output_changes, {}),
    "target pod goes": (PODS, denied_targets, target_goes, {}),
    "no node": ({"nodes": {"selector": {"matchLabels": {"no": "such"}}}}, nothing, at_once, {}),
    "no pod": (PODS, nothing, at_once, {}),
    "too many nodes": ({"nodes": {"selector": {}, "max": 1}}, nothing, at_once, {}),
    "above the chart's limit": (NODES, nothing, at_once, {"limits": Limits(max_nodes=1)}),
    "too many pods": (PODS, targets(257), at_once, {}),
    "too long": (
        NODES, nothing, at_once, {"limits": Limits(max_duration=timedelta(seconds=30))},
    ),
    "pods elsewhere": (
        {"nodes": {"pods": {"namespace": "shop", "selector": {}}}}, nothing, at_once, {},
    ),
    "no output": (NODES, nothing, at_once, {"output": OutputSettings()}),
    "endpoint": (
        NODES | {"output": {"s3": {"bucket": "bundles", "endpoint": "https://s3.example"}}},
        nothing, at_once, {},
    ),
    "bucket": (NODES | S3, nothing, at_once, {"output": TEAM_BUCKETS}),
    "claims not allowed": (NODES | PVC, nothing, at_once, {"output": NO_PVC}),
    "no Secret": (NODES | S3, nothing, at_once, {}),
    "no Secret in time": (NODES | S3, nothing, after_a_while, {}),
    "Secret without a label": (NODES | S3, secret, at_once, {}),
    "no claim in time": (NODES | PVC, nothing, after_a_while, {}),
    "claim being deleted": (NODES | PVC, claim("ReadWriteMany", deleting=True), at_once, {}),
    "claim lost": (NODES | PVC, claim("ReadWriteMany", phase="Lost"), at_once, {}),
    "claim of one node": (NODES | PVC, claim("ReadWriteOnce"), at_once, {}),
    "claim without writers": (names("node-a") | PVC, claim("ReadOnlyMany"), at_once, {}),
    "unreadable": (NODES | {"duration": "soon"}, nothing, at_once, {}),
}  # fmt: skip


def play(name: str) -> tuple[ApiModel, SnapshotKey]:
    spec, prepare, scene, changes = STATES[name]
    model = fresh()
    prepare(model)
    operator = Operator(model, **changes)
    model.events.clear()
    key = model.apply("snap", copy.deepcopy(spec))
    try:
        operator.settle(key)
        scene(model, operator, key)
    finally:
        operator.close()
    return model, key


@pytest.mark.parametrize("name", STATES)
def test_conditions_and_events(name: str, snapshot: SnapshotAssertion):
    model, key = play(name)
    events = [f"{one['type']} {one['reason']}: {one['note']}" for one in model.events]
    assert "\n".join([told(model, key), *events]) == snapshot


def test_messages_of_nodes(snapshot: SnapshotAssertion):
    """All ends of test_ends."""
    table = next(mark for mark in test_ends.pytestmark if mark.name == "parametrize")
    found = set()
    for pod, after, changes, _reason in table.args[1]:
        end = observe(case(pod, after, **changes))
        assert isinstance(end, Ended)
        found.add(f"{end.entry.reason}: {end.entry.message}")
    assert "\n".join(sorted(found)) == snapshot


def test_ttl_with_gitops(snapshot: SnapshotAssertion):
    model = fresh()
    operator = Operator(model)
    spec = names("node-a") | {"ttlAfterFinished": "60s"}
    labels = {"argocd.argoproj.io/instance": "app"}
    goes_on(model, operator, model.apply("snap", spec, labels=labels), 100)
    operator.close()
    assert model.events[-1]["note"] == snapshot


def test_a_name_that_is_too_long(snapshot: SnapshotAssertion):
    model = fresh()
    operator = Operator(model)
    key = model.apply("x" * 64, NODES)
    operator.settle(key)
    operator.close()
    assert told(model, key) == snapshot


def test_a_status_of_another_version_is_only_logged(
    caplog: pytest.LogCaptureFixture, snapshot: SnapshotAssertion
):
    model = fresh()
    operator = Operator(model)
    key = model.apply("snap", NODES)
    model.snapshots[key]["status"] = {"phase": "Paused"}
    caplog.set_level(logging.INFO, "ktrace_operator")
    operator.settle(key)
    operator.close()
    assert [one.getMessage() for one in caplog.records] == snapshot
