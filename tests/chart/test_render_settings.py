# SPDX-License-Identifier: Apache-2.0
"""The operator's settings and the images, as the chart renders them."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from syrupy.assertion import SnapshotAssertion

from ktrace_api.snapshot import Output
from ktrace_operator.settings import AgentSettings, Limits, S3Policy, Settings
from ktrace_operator.timeouts import LONGEST_WRITE_SECONDS
from tests.chart.helm import NAMESPACE, REGISTRY, ROOT, Refused, of_kind, render
from tests.chart.rendered import DEFAULTS, each_scenario, rendered, settings_of, value
from tests.chart.scenarios import SCENARIOS

pytestmark = pytest.mark.world("chart")


@each_scenario
def test_the_operator_can_read_its_settings(name: str, tmp_path: Path):
    settings = settings_of(rendered(name), tmp_path)
    agents = value(name, "namespaces", "agents", "name")
    assert settings.namespaces == (agents, *value(name, "namespaces", "extra"))
    assert settings.pod_targets == tuple(value(name, "podTargets", "namespaces"))
    assert settings.lease.namespace == NAMESPACE
    wanted = Limits.model_validate(DEFAULTS["limits"] | SCENARIOS[name].get("limits", {}))
    assert settings.limits == wanted
    default = value(name, "output", "default")
    assert settings.output.default == (Output.model_validate(default) if default else None)
    assert settings.output.allow_pvc == value(name, "output", "allowPvc")
    assert settings.agent.platforms == tuple(value(name, "agent", "platforms"))
    assert settings.agent.privileged == value(name, "agent", "privileged")
    assert settings.agent.cri_sockets == tuple(value(name, "agent", "criSockets"))
    assert (
        settings.agent.resources.limits["memory"]
        == (value(name, "agent", "resources")["limits"]["memory"])
    )
    assert settings.writes_per_second == value(name, "operator", "writesPerSecond")


def test_defaults_are_those_of_the_operator(tmp_path: Path):
    settings = settings_of(rendered("default"), tmp_path)
    assert settings.limits == Limits()
    assert settings.output.s3 == S3Policy()
    assert settings.agent.platforms == ("linux/amd64",), "the images that the project builds"
    agent = AgentSettings(image=settings.agent.image, platforms=settings.agent.platforms)
    assert settings.agent == agent
    assert settings == Settings(namespaces=settings.namespaces, agent=agent)


@pytest.mark.parametrize("renew", [1, 5, 60])
def test_a_lease_that_is_as_short_as_may_be(renew: int, tmp_path: Path):
    shortest = renew + int(LONGEST_WRITE_SECONDS)
    lease = {"renewSeconds": renew, "durationSeconds": shortest}
    settings = settings_of(render({"operator": {"lease": lease}}), tmp_path)
    assert settings.lease.duration_seconds == shortest


@pytest.mark.parametrize(
    ("name", "operator", "agent"),
    [
        ("default", f"{REGISTRY}/ktrace-operator:0.1.0", f"{REGISTRY}/ktrace-agent:0.1.0"),
        (
            "registry-in-each-repository",
            "registry.example.com/one/ktrace-operator:0.1.0",
            "registry.example.com/two/ktrace-agent:0.1.0",
        ),
        (
            "private-registry",
            f"registry.example.com:5000/platform/ktrace-operator@sha256:{'ab' * 32}",
            "registry.example.com:5000/platform/mirrors/ktrace-agent:1.2.3",
        ),
    ],
)
def test_images(name: str, operator: str, agent: str, tmp_path: Path):
    things = rendered(name)
    settings = settings_of(things, tmp_path)
    assert settings.agent.image == agent
    secrets = value(name, "image", "pullSecrets")
    assert list(settings.agent.image_pull_secrets) == secrets
    for one in of_kind(things, "Deployment", "Job"):
        pod = one["spec"]["template"]["spec"]
        assert [container["image"] for container in pod["containers"]] == [operator]
        assert [secret["name"] for secret in pod.get("imagePullSecrets", ())] == secrets


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"operator": {"image": {"repository": "registry.example.com/ktrace-operator"}}},
        {"agent": {"image": {"repository": "registry.example.com/ktrace-agent"}}},
    ],
    ids=["neither", "operator", "agent"],
)
def test_a_chart_without_a_registry_says_what_to_build(
    values: dict[str, Any], snapshot: SnapshotAssertion
):
    with pytest.raises(Refused) as refused:
        render({"image": {"registry": ""}} | values)
    [text] = re.findall(r"image\.registry is not set.*", str(refused.value))
    assert text == snapshot


def test_the_commands_for_the_images_are_those_of_the_docs():
    with pytest.raises(Refused) as refused:
        render({"image": {"registry": ""}})
    commands = re.findall(r"`(docker build .*?)`", str(refused.value))
    assert len(commands) == 2
    text = (ROOT / "docs/install.md").read_text()
    for command in commands:
        assert command.replace("REGISTRY", "$REGISTRY") in text
        [dockerfile] = re.findall(r"-f (\S+)", command)
        assert (ROOT / dockerfile).is_file()
        assert command.replace("REGISTRY", "registry.example.com").split("-t ")[1].split()[0] in {
            settings_image(one) for one in ("operator", "agent")
        }


def settings_image(part: str) -> str:
    """The image that the default chart uses for the operator or the agent."""
    things = rendered("default")
    if part == "operator":
        [deployment] = of_kind(things, "Deployment")
        return str(deployment["spec"]["template"]["spec"]["containers"][0]["image"])
    [config] = of_kind(things, "ConfigMap")
    return str(yaml.safe_load(config["data"]["settings.yaml"])["agent"]["image"])
