# SPDX-License-Identifier: Apache-2.0
"""The agent's pod: whoever may write a Secret cannot use it for more than S3 keys."""

from typing import Any

import pytest

from ktrace_api.snapshot import Output
from ktrace_operator.plan.agent_pod import assignment, manifest
from ktrace_operator.settings import AgentSettings, Settings
from tests.operator.plan.snapshots import snapshot

SETTINGS = Settings(namespaces=("agents",), agent=AgentSettings(image="example/ktrace-agent:1"))


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
