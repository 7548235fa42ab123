# SPDX-License-Identifier: Apache-2.0
"""The policy of agents that are not privileged: a stolen token of the operator adds no right.

It is the chart's with `agent.privileged: false`, in a namespace of its own, beside the installed
chart with the default.
"""

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from ktrace_operator.plan.privileges import CAPABILITIES, security_context
from tests.chart.apiserver import Api, wait_for
from tests.chart.helm import Thing, named, render
from tests.chart.people import OPERATOR, accepted, agent, pod, refused

pytestmark = pytest.mark.world("chart")

LIMITED = "limited-agents"
POLICY = "ktrace-limited-agents"
VALUES: dict[str, Any] = {
    "agent": {"privileged": False},
    "namespaces": {"agents": {"name": LIMITED}},
}


@pytest.fixture(scope="module")
def limited(api: Api) -> Iterator[Api]:
    """The namespace, its objects and the policy, which is in force."""
    things = copy.deepcopy(render(VALUES))
    policy = named(things, "ValidatingAdmissionPolicy", "ktrace-agents")
    binding = named(things, "ValidatingAdmissionPolicyBinding", "ktrace-agents")
    policy["metadata"]["name"] = binding["metadata"]["name"] = POLICY
    binding["spec"]["policyName"] = POLICY
    inside = [one for one in things if one["metadata"].get("namespace") == LIMITED]
    api.apply(named(things, "Namespace", LIMITED), *inside, policy, binding)
    forged = pod(namespace=LIMITED, labels={"ktrace.io/snapshot-uid": "x"})
    wait_for(
        lambda: "only the operator may" in api.create(forged, dry_run=True).message,
        "the policy of limited agents is not in force",
    )
    yield api
    for kind in ("validatingadmissionpolicybindings", "validatingadmissionpolicies"):
        api.delete(f"/apis/admissionregistration.k8s.io/v1/{kind}/{POLICY}")


@pytest.fixture
def asked(limited: Api, mine: Thing) -> Thing:
    """The pod as the operator makes it there."""
    made = agent(mine, privileged=False)
    made["metadata"]["namespace"] = LIMITED
    return made


def test_the_operators_agent_is_accepted(limited: Api, asked: Thing):
    made = accepted(limited.create(asked, user=OPERATOR))
    [container] = made["spec"]["containers"]
    assert container["securityContext"] == security_context(privileged=False)
    path = f"/api/v1/namespaces/{LIMITED}/pods/{made['metadata']['name']}"
    assert limited.patch(path, {"metadata": {"finalizers": None}}, user=OPERATOR).ok
    assert limited.delete(path).ok


def _added(*names: str) -> dict[str, Any]:
    return {"capabilities": {"drop": ["ALL"], "add": list(names)}}


FORGED: dict[str, dict[str, Any]] = {
    "privileged": {"privileged": True, "allowPrivilegeEscalation": None},
    "one-more": _added(*CAPABILITIES, "SYS_MODULE"),
    "another": _added(*CAPABILITIES[:-1], "SYS_MODULE"),
    "all": _added("ALL"),
    "those-of-the-runtime": {"capabilities": {"add": list(CAPABILITIES)}},
    "no-capabilities": {"capabilities": None},
    "escalation": {"allowPrivilegeEscalation": True},
    "escalation-by-default": {"allowPrivilegeEscalation": None},
    "seccomp": {"seccompProfile": {"type": "Unconfined"}},
    "no-seccomp": {"seccompProfile": None},
    "seccomp-file": {"seccompProfile": {"type": "Localhost", "localhostProfile": "x"}},
    "apparmor": {"appArmorProfile": {"type": "Localhost", "localhostProfile": "x"}},
    "no-apparmor": {"appArmorProfile": None},
    "selinux": {"seLinuxOptions": {"type": "init_t"}},
    "no-selinux": {"seLinuxOptions": None},
    "proc": {"procMount": "Default"},
    "user": {"runAsUser": 1},
    "writable-image": {"readOnlyRootFilesystem": False},
}


@pytest.mark.parametrize("name", FORGED)
def test_no_other_context_is(limited: Api, asked: Thing, name: str):
    accepted(limited.create(asked, user=OPERATOR, dry_run=True))
    [container] = asked["spec"]["containers"]
    container["securityContext"] |= FORGED[name]
    answer = limited.create(asked, user=OPERATOR, dry_run=True)
    refused(answer, f"ValidatingAdmissionPolicy '{POLICY}'")


def test_nor_is_the_privileged_one(limited: Api, asked: Thing):
    [container] = asked["spec"]["containers"]
    container["securityContext"] = security_context(privileged=True)
    refused(limited.create(asked, user=OPERATOR, dry_run=True), "capabilities and profiles only")
