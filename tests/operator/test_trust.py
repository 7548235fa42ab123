# SPDX-License-Identifier: Apache-2.0
"""What an author, or whoever may write a Secret, cannot make the operator do."""

from datetime import UTC, datetime
from typing import Any

import pytest

from ktrace_api.snapshot import Output, TraceSnapshot
from ktrace_operator.errors import Conflict
from ktrace_operator.kube.lease import Lease
from ktrace_operator.plan.agent_pod import assignment, manifest
from ktrace_operator.plan.targets import Refusal, pod_namespace
from ktrace_operator.settings import AgentSettings, LeaseSettings, Settings

SETTINGS = Settings(namespaces=("agents",), agent=AgentSettings(image="example/ktrace-agent:1"))
NOW = datetime(2026, 1, 24, 21, 57, 54, tzinfo=UTC)


def snapshot(**spec: Any) -> TraceSnapshot:
    metadata = {
        "name": "snap",
        "namespace": "agents",
        "uid": "16d1be55-4d13-4e2e-b4bd-89861e542501",
        "creationTimestamp": NOW,
    }
    return TraceSnapshot.model_validate({"metadata": metadata, "spec": spec})


def agent(output: dict[str, Any]) -> dict[str, Any]:
    """Container of the pod of one node."""
    asked = snapshot(nodes={"names": ["a"]}, output=output)
    where = Output.model_validate(output)
    work = assignment(asked, "a", where, (), SETTINGS)
    [container] = manifest(asked, "a", where, work, SETTINGS)["spec"]["containers"]
    return container


def test_of_a_secret_only_the_keys_of_aws_reach_an_agent():
    container = agent({"s3": {"bucket": "bundles", "credentialsSecret": "keys"}})
    assert "envFrom" not in container
    keys = [one["valueFrom"]["secretKeyRef"] for one in container["env"][:3]]
    assert [one["name"] for one in container["env"][:3]] == [one["key"] for one in keys]
    assert {one["key"] for one in keys} == {
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
    }
    assert all(one["name"] == "keys" and one["optional"] for one in keys)


@pytest.mark.parametrize(
    "output", [{"s3": {"bucket": "bundles"}}, {"pvc": {"claimName": "claim"}}], ids=["s3", "pvc"]
)
def test_without_a_secret_no_secret_is_named(output: dict[str, Any]):
    assert not [one for one in agent(output)["env"] if "secretKeyRef" in one.get("valueFrom", {})]


@pytest.mark.parametrize(
    ("namespace", "allowed", "found"),
    [
        (None, (), "agents"),
        ("agents", (), "agents"),
        ("shop", ("shop",), "shop"),
        ("shop", ("*",), "shop"),
        ("shop", (), None),
        ("kube-system", ("shop",), None),
    ],
)
def test_pods_of_other_namespaces_are_named_only_where_that_is_allowed(
    namespace: str | None, allowed: tuple[str, ...], found: str | None
):
    pods: dict[str, Any] = {"selector": {}} | ({"namespace": namespace} if namespace else {})
    answer = pod_namespace(snapshot(nodes={"pods": pods}), allowed)
    if found is None:
        assert isinstance(answer, Refusal)
        assert f"pods of {namespace} may not" in answer.message
    else:
        assert answer == found


class OneLease:
    """An API server that holds one Lease; the next write fails as often as it is told to."""

    def __init__(self, spec: dict[str, Any], conflicts: int = 0) -> None:
        self.object = {"metadata": {"resourceVersion": "1"}, "spec": spec} if spec else {}
        self.conflicts = conflicts

    def lease(self, namespace: str, name: str) -> dict[str, Any] | None:
        return self.object or None

    def write_lease(self, lease: dict[str, Any]) -> dict[str, Any]:
        if self.conflicts:
            self.conflicts -= 1
            raise Conflict("the object has been modified", 409)
        self.object = lease
        return lease


@pytest.mark.parametrize("conflicts", [0, 3])
def test_an_uninstall_takes_the_lease_from_its_holder(conflicts: int):
    held = {"holderIdentity": "operator-1", "renewTime": "t", "leaseDurationSeconds": 1}
    kube = OneLease(held, conflicts)
    Lease(kube, LeaseSettings(duration_seconds=120), "release").seize()  # type: ignore[arg-type]
    assert kube.object["spec"]["holderIdentity"] == "release"
    assert kube.object["spec"]["leaseDurationSeconds"] == 120
    operator = Lease(kube, LeaseSettings(), "operator-1")  # type: ignore[arg-type]
    assert not operator.try_once()
    assert not operator.held


def test_a_lease_that_nobody_holds_is_taken_at_once():
    kube = OneLease({})
    Lease(kube, LeaseSettings(), "release").seize()  # type: ignore[arg-type]
    assert kube.object["spec"]["holderIdentity"] == "release"
