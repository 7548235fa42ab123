# SPDX-License-Identifier: Apache-2.0
"""Pods that look like agents, pods beside agents, and ways into them.

The API server is a real one, with the chart's roles and policies; there are no nodes. What a
running operator and real agents make of it is in tests/cluster.
"""

from typing import Any

import pytest

from tests.chart.apiserver import Api, User
from tests.chart.helm import Thing
from tests.chart.people import (
    MALLORY,
    OPERATOR,
    PODS,
    ROOT,
    accepted,
    agent,
    pod,
    refused,
)

pytestmark = pytest.mark.world("chart")


@pytest.mark.parametrize(
    "metadata",
    [
        {"labels": {"ktrace.io/snapshot": "a"}},
        {"labels": {"ktrace.io/node-hash": "a"}},
        {"labels": {"app.kubernetes.io/managed-by": "ktrace-operator"}},
        {"finalizers": ["ktrace.io/collect"]},
        {"name": "snap-16d1be55-0123456789"},
    ],
    ids=str,
)
@pytest.mark.parametrize("user", [MALLORY, ROOT])
def test_nobody_but_the_operator_makes_agents(api: Api, user: User, metadata: dict[str, Any]):
    asked = pod()
    asked["metadata"] |= metadata
    refused(api.create(asked, user=user), "only the operator may")


SECURITY: list[dict[str, Any]] = [
    {"privileged": True},
    {"capabilities": {"add": ["SYS_ADMIN"]}},
    {"capabilities": {"add": ["BPF"]}},
    {"procMount": "Unmasked"},
    {"seccompProfile": {"type": "Unconfined"}},
    {"appArmorProfile": {"type": "Unconfined"}},
    {"seLinuxOptions": {"type": "spc_t"}},
]
SPECS: list[dict[str, Any]] = [
    {"hostPID": True},
    {"hostNetwork": True},
    {"hostIPC": True},
    {"volumes": [{"name": "host", "hostPath": {"path": "/"}}]},
    {"volumes": [{"name": "run", "hostPath": {"path": "/run/containerd/containerd.sock"}}]},
    {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}},
    {"securityContext": {"seccompProfile": {"type": "Unconfined"}}},
    {"containers": [{"name": "a", "image": "b", "ports": [{"containerPort": 80, "hostPort": 80}]}]},
    *(
        {kind: [{"name": "a", "image": "b", "securityContext": one}], "hostUsers": False}
        for one in SECURITY
        for kind in ("containers", "initContainers")
    ),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: str(spec)[:70])
@pytest.mark.parametrize("user", [MALLORY, ROOT])
def test_pods_beside_agents_have_no_privilege(api: Api, user: User, spec: dict[str, Any]):
    refused(api.create(pod(**spec), user=user), "agents")


def test_a_pod_that_reads_bundles_from_a_claim_may_be_there(api: Api):
    claim = {"name": "bundles", "persistentVolumeClaim": {"claimName": "bundles"}}
    answer = api.create(pod(volumes=[claim]), user=MALLORY)
    accepted(answer)


def test_no_privileged_container_is_added_to_a_pod(api: Api):
    reader = api.create(pod(), user=MALLORY).body
    path = f"{PODS}/{reader['metadata']['name']}"
    debug = {"name": "debug", "image": "b", "securityContext": {"privileged": True}}
    change = {"spec": {"ephemeralContainers": [debug]}}
    refused(api.patch(f"{path}/ephemeralcontainers", change, user=ROOT), "other than agents")
    del debug["securityContext"]
    assert api.patch(f"{path}/ephemeralcontainers", change, user=ROOT).ok


def test_a_pod_does_not_become_an_agent(api: Api):
    reader = api.create(pod(), user=MALLORY).body
    path = f"{PODS}/{reader['metadata']['name']}"
    for change in (
        {"labels": {"ktrace.io/snapshot-uid": "x"}},
        {"finalizers": ["ktrace.io/collect"]},
    ):
        refused(api.patch(path, {"metadata": change}, user=ROOT))


@pytest.fixture
def running_agent(api: Api, mine: Thing) -> Thing:
    """An agent's pod as the operator makes it."""
    answer = api.create(agent(mine), user=OPERATOR)
    accepted(answer)
    return answer.body


@pytest.mark.parametrize("user", [MALLORY, ROOT, OPERATOR])
@pytest.mark.parametrize(
    "change",
    [
        {"metadata": {"labels": {"ktrace.io/snapshot-uid": None}}},
        {"metadata": {"labels": {"ktrace.io/snapshot": "another"}}},
        {"spec": {"containers": [{"name": "agent", "image": "evil"}]}},
        {"spec": {"activeDeadlineSeconds": 1}},
    ],
    ids=str,
)
def test_an_agent_stays_what_it_is(
    api: Api, running_agent: Thing, user: User, change: dict[str, Any]
):
    path = f"{PODS}/{running_agent['metadata']['name']}"
    answer = api.request(
        "PATCH", path, change, user=user, content_type="application/strategic-merge-patch+json"
    )
    refused(answer, "ValidatingAdmissionPolicy 'ktrace-")


@pytest.mark.parametrize("user", [OPERATOR, ROOT], ids=["operator", "administrator"])
def test_agents_are_let_go_and_collected(api: Api, running_agent: Thing, user: User):
    path = f"{PODS}/{running_agent['metadata']['name']}"
    assert api.patch(path, {"metadata": {"ownerReferences": None}}, user=ROOT).ok
    assert api.patch(path, {"metadata": {"finalizers": None}}, user=user).ok
    assert api.delete(path).ok


@pytest.mark.parametrize("user", [MALLORY, ROOT, OPERATOR])
@pytest.mark.parametrize("way", ["exec?command=id", "attach", "portforward?ports=80", "proxy/"])
def test_nobody_enters_an_agent(api: Api, running_agent: Thing, user: User, way: str):
    path = f"{PODS}/{running_agent['metadata']['name']}/{way}"
    answer = api.request("GET" if "proxy" in way else "POST", path, user=user)
    refused(answer)
    if user is ROOT:
        assert "are denied for agents" in answer.message


def test_no_container_is_added_to_an_agent(api: Api, running_agent: Thing):
    path = f"{PODS}/{running_agent['metadata']['name']}/ephemeralcontainers"
    change = {"spec": {"ephemeralContainers": [{"name": "debug", "image": "b"}]}}
    refused(api.patch(path, change, user=ROOT), "containers cannot be added")


def test_other_pods_may_be_entered(api: Api):
    reader = api.create(pod(), user=MALLORY).body
    path = f"{PODS}/{reader['metadata']['name']}/exec?command=id"
    answer = api.request("POST", path, user=MALLORY)
    assert answer.status not in (403, 404, 422), answer  # it runs nowhere: no policy says so
