# SPDX-License-Identifier: Apache-2.0
"""The two security contexts of an agent, and the places that contain a copy of them."""

import re
from pathlib import Path

import pytest
import yaml

from ktrace_operator.plan.agent_pod import assignment, manifest
from ktrace_operator.plan.privileges import CAPABILITIES, security_context
from ktrace_operator.settings import AgentSettings, Settings
from tests.operator.plan.snapshots import snapshot

ROOT = Path(__file__).resolve().parents[3]
POLICY = ROOT / "charts/ktrace/templates/policies/agents.yaml"
VALUES = ROOT / "charts/ktrace/values.yaml"
DAEMONSET = ROOT / "deploy/daemonset.yaml"
SECURITY = ROOT / "docs/security.md"


@pytest.mark.parametrize("privileged", [True, False])
def test_the_setting_decides_the_context_of_the_pod(privileged: bool):
    agent = AgentSettings(image="example/ktrace-agent:1", privileged=privileged)
    settings = Settings(namespaces=("agents",), agent=agent)
    asked = snapshot(nodes={"names": ["a"]}, output={"s3": {"bucket": "bundles"}})
    output = asked.spec.output
    assert output is not None
    work = assignment(asked, "a", output, (), settings)
    [container] = manifest(asked, "a", output, work, settings)["spec"]["containers"]
    assert container["securityContext"] == security_context(privileged=privileged)
    assert container["securityContext"]["privileged"] is privileged


def test_privileged_is_the_default():
    assert AgentSettings(image="example/ktrace-agent:1").privileged


def test_the_smaller_context_adds_only_what_is_listed():
    context = security_context(privileged=False)
    assert context["capabilities"] == {"drop": ["ALL"], "add": list(CAPABILITIES)}
    assert context["allowPrivilegeEscalation"] is False
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert "privileged" in context, "an absent field would leave it to a webhook"


def test_the_policy_contains_the_same_capabilities():
    [found] = re.findall(r"capabilities\.add ==\s+(\[.*?\])", POLICY.read_text())
    assert yaml.safe_load(found) == list(CAPABILITIES)


def test_the_values_and_the_docs_list_them():
    [comment] = re.findall(r"((?:  #.*\n)+)  privileged: true", VALUES.read_text())
    assert set(re.findall(r"\b[A-Z_]{3,}\b", comment)) == set(CAPABILITIES)
    listed = re.findall(r"^\| `CAP_([A-Z_]+)`", SECURITY.read_text(), re.MULTILINE)
    assert listed == list(CAPABILITIES)


def test_the_daemonset_contains_the_smaller_context_as_a_comment():
    lines = DAEMONSET.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if "# privileged: false" in line)
    comment: list[str] = []
    for line in lines[start:]:
        if not line.lstrip().startswith("# "):
            break
        comment.append(line.lstrip().removeprefix("# "))
    wanted = security_context(privileged=False)
    assert yaml.safe_load("\n".join(comment)) == {
        key: value for key, value in wanted.items() if key != "readOnlyRootFilesystem"
    }
