# SPDX-License-Identifier: Apache-2.0
"""Lives of snapshots from start to end, by the real reconciler on the modelled API server."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ktrace_api.names import ConditionReason, ConditionType, NodeReason, Outcome, Phase
from ktrace_api.status import SnapshotStatus
from ktrace_operator.objects import Claim, Node, Secret, TargetPod
from ktrace_operator.serve.reconcile import SnapshotKey
from ktrace_operator.settings import Limits, OutputSettings
from tests.operator.serve.model import (
    SHA,
    START,
    ApiModel,
    Run,
    assigned,
    begun,
    goes_on,
    good_result,
    later,
    names,
    node_of,
    result,
    stamp,
)

FAR = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
CLOCKS = (
    datetime(2, 1, 1, tzinfo=UTC),
    datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC),
    datetime(2027, 1, 1, tzinfo=UTC),
    FAR,
)
"""Of nodes that are wrong at START."""


def truths(status: SnapshotStatus) -> dict[str, str]:
    return {one.type.value: one.status for one in status.conditions}


def test_two_nodes_from_start_to_end(model: ApiModel, run: Run):
    operator = run()
    key = model.apply("dns", names("node-a", "node-b"))
    operator.settle(key)
    status = model.status(key)
    assert status.phase is Phase.PENDING
    assert [one.node for one in status.results] == ["node-a", "node-b"]
    assert status.path == f"s3://bundles/{key.namespace}/dns-00000001/"
    assert len(model.pods) == 2
    for pod in list(model.pods.values()):
        model.start(pod)
    later(model, 3)
    operator.settle(key)
    assert model.status(key).phase is Phase.RUNNING
    later(model, 60)
    for pod in list(model.pods.values()):
        model.succeed(pod)
    operator.settle(key)
    assert operator.settle(key) is None, "nothing is left to do"
    status = model.status(key)
    assert status.phase is Phase.COMPLETED
    assert status.nodes.succeeded == 2
    assert result(status, "node-a").sha256 == SHA
    assert truths(status) == {
        "Accepted": "True",
        "Succeeded": "True",
        "Finished": "True",
        "Reconciling": "False",
        "Stalled": "False",
        "Ready": "True",
    }
    assert not model.pods
    assert model.status_writes.total() <= 4


def test_partial_is_a_result(model: ApiModel, run: Run):
    operator = run()
    key = begun(model, operator, "one-dies", names("node-a", "node-b"))
    operator.settle(key)
    model.succeed(model.pod_of("node-a"))
    model.end(model.pod_of("node-b"), "", 137, "OOMKilled")
    operator.settle(key)
    status = model.status(key)
    assert status.phase is Phase.PARTIALLY_COMPLETED
    assert result(status, "node-b").reason is NodeReason.OOM_KILLED
    assert result(status, "node-a").path is not None
    assert truths(status)["Stalled"] == "True"
    assert truths(status)["Ready"] == "False"
    finished = status.condition(ConditionType.FINISHED)
    assert finished is not None
    assert "node-b" in finished.message


def test_waves(model: ApiModel, run: Run):
    operator = run()
    key = model.apply("waves", {"nodes": {"selector": {}, "parallelism": 1}})
    for count in range(3):
        operator.settle(key)
        alive = [pod for pod in model.pods.values() if pod["status"]["phase"] == "Pending"]
        assert len(alive) == 1, count
        model.start(alive[0])
        later(model, 61)
        model.succeed(alive[0])
    operator.settle(key)
    assert model.status(key).phase is Phase.COMPLETED
    assert sum(model.created.values()) == 3


def test_nodes_that_are_not_ready_or_not_there_are_skipped(model: ApiModel, run: Run):
    operator = run()
    model.node("node-b", ready=False)
    key = model.apply("skips", names("node-a", "node-b", "nowhere"))
    operator.settle(key)
    status = model.status(key)
    assert result(status, "node-b").reason is NodeReason.NODE_NOT_READY
    assert result(status, "nowhere").reason is NodeReason.NODE_LOST
    assert status.nodes.skipped == 2
    assert [node_of(pod) for pod in model.pods.values()] == ["node-a"]


def test_nodes_without_an_image_are_skipped(model: ApiModel, run: Run):
    operator = run()
    model.node("node-b", platform="linux/arm64")
    model.node("node-c", ready=False, platform="windows/amd64")
    key = model.apply("mixed", {"nodes": {"selector": {}}})
    operator.settle(key)
    assert [node_of(pod) for pod in model.pods.values()] == ["node-a"]
    goes_on(model, operator, key, 100)
    status = model.status(key)
    assert status.phase is Phase.PARTIALLY_COMPLETED
    for node in ("node-b", "node-c"):
        assert result(status, node).outcome is Outcome.SKIPPED
        assert result(status, node).reason is NodeReason.UNSUPPORTED_PLATFORM


def test_a_snapshot_without_an_image_for_any_node_ends_at_once(model: ApiModel, run: Run):
    operator = run()
    model.node("node-a", platform="linux/arm64")
    key = model.apply("arm", names("node-a"))
    operator.settle(key)
    status = model.status(key)
    assert status.phase is Phase.FAILED
    succeeded = status.condition(ConditionType.SUCCEEDED)
    assert succeeded is not None
    assert succeeded.reason is ConditionReason.UNSUPPORTED_PLATFORM
    assert all(text in succeeded.message for text in ("node-a", "linux/arm64", "linux/amd64"))
    assert truths(status)["Stalled"] == "True"
    assert not model.created


@pytest.mark.parametrize(
    ("spec", "changes", "reason"),
    [
        ({"nodes": {"selector": {"matchLabels": {"zone": "nine"}}}}, {}, "NoNodesMatched"),
        ({"nodes": {"selector": {}, "max": 2}}, {}, "TooManyNodes"),
        ({"nodes": {"selector": {}}}, {"limits": Limits(max_nodes=2)}, "TooManyNodes"),
        (
            names("node-a") | {"duration": "300s"},
            {"limits": Limits(max_duration=timedelta(seconds=60))},
            "PolicyDenied",
        ),
        (names("node-a"), {"output": OutputSettings()}, "NoOutput"),
        (
            names("node-a")
            | {"output": {"s3": {"bucket": "bundles", "endpoint": "http://169.254.169.254"}}},
            {},
            "PolicyDenied",
        ),
        (names("node-a") | {"duration": "forever"}, {}, "InvalidSpec"),
        (names("node-a") | {"stop": True}, {}, "Canceled"),
    ],
)
def test_what_is_refused_ends_at_once(
    model: ApiModel, run: Run, spec: dict[str, Any], changes: dict[str, Any], reason: str
):
    operator = run(**changes)
    key = model.apply("refused", spec)
    assert operator.settle(key) is None
    status = model.status(key)
    accepted = status.condition(ConditionType.ACCEPTED)
    assert accepted is not None
    assert (accepted.status, accepted.reason) == ("False", ConditionReason(reason))
    assert status.finished
    assert status.completion_time == model.now
    assert not model.created


def test_an_endpoint_that_is_none_is_named(model: ApiModel, run: Run):
    output = {"output": {"s3": {"bucket": "bundles", "endpoint": "https://s3.example:70000"}}}
    allowed = OutputSettings.model_validate({"s3": {"allowedEndpoints": ["https://s3.example"]}})
    key = model.apply("named", names("node-a") | output)
    assert run(output=allowed).settle(key) is None
    accepted = model.status(key).condition(ConditionType.ACCEPTED)
    assert accepted is not None
    assert (accepted.status, accepted.reason) == ("False", ConditionReason.INVALID_SPEC)
    assert accepted.message.startswith("spec.output.s3.endpoint: ")


def test_a_secret_that_comes_late(model: ApiModel, run: Run):
    operator = run()
    output = {"output": {"s3": {"bucket": "bundles", "credentialsSecret": "keys"}}}
    key = model.apply("late", names("node-a") | output)
    assert operator.settle(key) == timedelta(seconds=5)
    accepted = model.status(key).condition(ConditionType.ACCEPTED)
    assert accepted is not None
    assert (accepted.status, accepted.reason) == ("Unknown", ConditionReason.RESOLVING)
    model.secrets["keys"] = Secret("keys", usable=False)
    later(model, 5)
    operator.settle(key)
    accepted = model.status(key).condition(ConditionType.ACCEPTED)
    assert accepted is not None
    assert "label" in accepted.message
    model.secrets["keys"] = Secret("keys", usable=True)
    later(model, 5)
    operator.settle(key)
    assert len(model.pods) == 1
    environment = next(iter(model.pods.values()))["spec"]["containers"][0]["env"]
    assert environment[0]["valueFrom"]["secretKeyRef"]["name"] == "keys"


@pytest.mark.parametrize(
    ("output", "claim", "reason"),
    [
        ({"s3": {"bucket": "bundles", "credentialsSecret": "none"}}, None, "CredentialsUnusable"),
        ({"pvc": {"claimName": "volume"}}, None, "ClaimUnusable"),
        ({"pvc": {"claimName": "volume"}}, Claim("volume", ("ReadWriteOnce",)), "ClaimUnusable"),
    ],
)
def test_what_never_comes_is_refused_in_time(
    model: ApiModel, run: Run, output: dict[str, Any], claim: Claim | None, reason: str
):
    operator = run()
    if claim:
        model.claims[claim.name] = claim
    key = model.apply("never", names("node-a", "node-b") | {"output": output})
    later(model, 119)
    operator.settle(key)
    assert not model.status(key).finished
    later(model, 1)
    operator.settle(key)
    succeeded = model.status(key).condition(ConditionType.SUCCEEDED)
    assert succeeded is not None
    assert succeeded.reason == reason


def test_only_the_chosen_pods_of_a_node(model: ApiModel, run: Run):
    operator = run()
    uid = "6e1b1c2d-0000-4000-8000-00000000000a"
    model.targets = [TargetPod("shop-1", "node-b", (uid,))]
    key = model.apply("pods", {"nodes": {"pods": {"selector": {"matchLabels": {"app": "shop"}}}}})
    operator.settle(key)
    assert assigned(model.pod_of("node-b"))["pods"] == [uid]
    assert len(model.pods) == 1


def test_stop_keeps_what_there_is(model: ApiModel, run: Run):
    operator = run()
    nodes = {"names": ["node-a", "node-b"], "parallelism": 1}
    key = begun(model, operator, "stopped", {"nodes": nodes})
    pod = model.pod_of("node-a")
    operator.settle(key)
    model.stop(key)
    operator.settle(key)
    assert "deletionTimestamp" in pod["metadata"]
    assert not model.status(key).finished
    later(model, 7)
    model.end(pod, good_result(pod, ended_by="signal"), 0)
    operator.settle(key)
    status = model.status(key)
    assert status.phase is Phase.CANCELED
    assert result(status, "node-a").outcome is Outcome.SUCCEEDED
    skipped = result(status, "node-b")
    assert (skipped.outcome, skipped.reason) == (Outcome.SKIPPED, NodeReason.CANCELED)
    assert not model.pods
    assert truths(status)["Succeeded"] == "False"


def test_a_deleted_snapshot_leaves_no_pod(model: ApiModel, run: Run):
    operator = run()
    key = begun(model, operator, "deleted", names("node-a"))
    pod = model.pod_of("node-a")
    model.delete_snapshot(key)
    operator.settle(key)
    assert pod["metadata"]["finalizers"] == []
    assert pod["metadata"]["deletionGracePeriodSeconds"] == 60, "SIGTERM comes first"
    model.end(pod, good_result(pod), 0)
    assert operator.settle(key) is None
    assert not model.pods


def test_a_new_snapshot_of_the_same_name_is_another(model: ApiModel, run: Run):
    operator = run()
    key = begun(model, operator, "again", names("node-a"))
    first = model.pod_of("node-a")
    model.delete_snapshot(key)
    key = model.apply("again", names("node-a"))
    operator.settle(key)
    status = model.status(key)
    assert status.nodes.pending == 1, "the first one's agent is still on the node"
    model.end(first, good_result(first), 0)
    later(model, 5)
    operator.settle(key)
    second = model.pod_of("node-a")
    assert second["metadata"]["name"] != first["metadata"]["name"]


def test_a_lost_node(model: ApiModel, run: Run):
    operator = run()
    key = begun(model, operator, "lost", names("node-a", "node-b"))
    operator.settle(key)
    model.lose_node("node-a")
    operator.settle(key)
    assert result(model.status(key), "node-a").outcome is Outcome.FAILED or model.pods
    model.succeed(model.pod_of("node-b"))
    operator.settle(key)
    status = model.status(key)
    assert result(status, "node-a").reason is NodeReason.NODE_LOST
    assert status.phase is Phase.PARTIALLY_COMPLETED
    assert not model.pods


def test_a_silent_node_is_given_up_after_the_deadline(model: ApiModel, run: Run):
    operator = run()
    key = begun(model, operator, "silent", names("node-a") | {"duration": "30s"})
    operator.settle(key)
    model.nodes["node-a"] = Node("node-a", {}, False, "NodeStatusUnknown")
    later(model, 30 + 60 + 4 + 300 - 1)
    operator.settle(key)
    assert not model.status(key).finished
    later(model, 1)
    operator.settle(key)
    assert result(model.status(key), "node-a").reason is NodeReason.NODE_LOST
    assert all(not pod["metadata"]["finalizers"] for pod in model.pods.values())


def test_a_hung_agent_is_ended(model: ApiModel, run: Run):
    operator = run()
    key = begun(model, operator, "hung", names("node-a") | {"duration": "30s"})
    pod = model.pod_of("node-a")
    operator.settle(key)
    later(model, 30 + 60 + 4 + 300)
    operator.settle(key)
    assert "deletionTimestamp" in pod["metadata"]
    later(model, 60)
    model.end(pod, "", 137)
    operator.settle(key)
    assert result(model.status(key), "node-a").reason is NodeReason.DEADLINE_EXCEEDED
    assert not model.pods


@pytest.mark.parametrize("clock", CLOCKS, ids=stamp)
def test_a_node_with_a_wrong_clock_records_for_as_long_as_asked(
    model: ApiModel, run: Run, clock: datetime
):
    operator = run()
    key = begun(model, operator, "clock", names("node-a") | {"duration": "60s"}, clock=clock)
    pod = model.pod_of("node-a")
    for _ in range(13):
        operator.settle(key)
        later(model, 5)
        assert "deletionTimestamp" not in pod["metadata"], "it still records"
    started = model.snapshots[key]["status"]["results"][0]["startedAt"]
    assert stamp(START) <= started <= stamp(model.now)
    model.succeed(pod)
    operator.settle(key)
    assert model.status(key).phase is Phase.COMPLETED


def test_a_hung_agent_of_a_node_with_a_wrong_clock_is_ended(model: ApiModel, run: Run):
    operator = run()
    key = begun(model, operator, "hung", names("node-a") | {"duration": "30s"}, clock=FAR)
    pod = model.pod_of("node-a")
    operator.settle(key)
    later(model, 120 + 30 + 60 + 4 + 300)
    operator.settle(key)
    assert "deletionTimestamp" in pod["metadata"]


def test_a_pod_that_was_forced_away_is_lost_and_not_made_again(model: ApiModel, run: Run):
    operator = run()
    key = begun(model, operator, "forced", names("node-a"))
    operator.settle(key)
    model.strip(model.pod_of("node-a"))
    operator.settle(key)
    assert result(model.status(key), "node-a").reason is NodeReason.POD_DELETED
    assert sum(model.created.values()) == 1


def test_ended_is_ended(model: ApiModel, run: Run):
    operator = run()
    key = begun(model, operator, "once", names("node-a"))
    model.succeed(model.pod_of("node-a"))
    operator.settle(key)
    before = model.status(key)
    later(model, 1000)
    model.stop(key)
    again = run()
    again.settle(key)
    status = model.status(key)
    assert status.completion_time == before.completion_time
    assert status.phase is Phase.COMPLETED
    assert status.observed_generation == 2
    assert all(one.observed_generation == 2 for one in status.conditions)
    assert sum(model.created.values()) == 1


@pytest.mark.parametrize("gitops", [False, True])
def test_ttl(model: ApiModel, run: Run, gitops: bool):
    operator = run()
    labels = {"kustomize.toolkit.fluxcd.io/name": "apps"} if gitops else {}
    spec = names("node-a") | {"ttlAfterFinished": "60s"}
    key = begun(model, operator, "ttl", spec, labels=labels)
    model.succeed(model.pod_of("node-a"))
    operator.settle(key)
    after = operator.settle(key)
    assert after == (None if gitops else timedelta(seconds=60))
    later(model, 60)
    operator.settle(key)
    assert (tuple(key) in model.snapshots) is gitops
    assert ("TTLIgnoredGitOps" in [one["reason"] for one in model.events]) is gitops


def test_events_are_for_steps_not_for_nodes(model: ApiModel, run: Run):
    operator = run()
    for number in range(31):
        model.node(f"extra-{number}")
    key = begun(model, operator, "many", {"nodes": {"selector": {}}})
    later(model, 3)
    operator.settle(key)
    for pod in list(model.pods.values()):
        model.succeed(pod)
    operator.settle(key)
    assert [one["reason"] for one in model.events] == [
        "NodesSelected",
        "AgentsStarted",
        "Completed",
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_writes_of_a_thousand_nodes(model: ApiModel, run: Run):
    model.nodes.clear()
    for number in range(1000):
        model.node(f"node-{number:04d}.{'x' * 200}.example")
    operator = run()
    key = model.apply("a" * 63, {"nodes": {"selector": {}, "max": 1000}})
    operator.settle(key)
    assert len(model.pods) == 1000
    pods = list(model.pods.values())
    for at in range(0, 1000, 100):
        for pod in pods[at : at + 100]:
            model.start(pod)
        later(model, 1)
        operator.settle(key)
    later(model, 60)
    for at in range(0, 1000, 100):
        for pod in pods[at : at + 100]:
            model.end(pod, good_result(pod, message="m" * 256), 0)
        later(model, 3)
        operator.settle(key)
    assert model.status(key).phase is Phase.COMPLETED
    assert model.status_writes.total() <= 15
    assert model.writes <= 4 * 1000
    assert not model.pods


def test_key_is_readable():
    assert str(SnapshotKey("ns", "name")) == "ns/name"
