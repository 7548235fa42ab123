# SPDX-License-Identifier: Apache-2.0
"""A stolen token of the operator or of an agent, and how to get one.

The API server is a real one, with the chart's roles and policies; there are no nodes. What a
running operator and real agents make of it is in tests/cluster.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.chart.apiserver import Api, User
from tests.chart.helm import NAMESPACE, Thing
from tests.chart.people import (
    AGENT,
    AGENTS,
    MALLORY,
    OPERATOR,
    PODS,
    SHOP,
    agent,
    pod,
    refused,
)

pytestmark = pytest.mark.world("chart")


def _container(change: dict[str, Any]) -> Callable[[Thing], None]:
    return lambda thing: thing["spec"]["containers"][0].update(change)


def _spec(change: dict[str, Any]) -> Callable[[Thing], None]:
    return lambda thing: thing["spec"].update(change)


def _volume(volume: dict[str, Any], **mount: Any) -> Callable[[Thing], None]:
    def change(thing: Thing) -> None:
        thing["spec"]["volumes"].append({"name": "more", **volume})
        mounts = thing["spec"]["containers"][0]["volumeMounts"]
        mounts.append({"name": "more", "mountPath": "/more", **mount})

    return change


def _env(*entries: dict[str, Any]) -> Callable[[Thing], None]:
    return lambda thing: thing["spec"]["containers"][0]["env"].extend(entries)


def _writable(thing: Thing) -> None:
    thing["spec"]["containers"][0]["volumeMounts"][0]["readOnly"] = False


def _of(kind: str, uid: str = "16d1be55-4d13-4e2e-b4bd-89861e542501") -> Callable[[Thing], None]:
    return lambda thing: thing["metadata"]["ownerReferences"][0].update(kind=kind, uid=uid)


TOKEN = {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}
WHOLE: dict[str, Any] = {"secretRef": {"name": "keys"}}
FORGED: dict[str, Callable[[Thing], None]] = {
    "image": _container({"image": "evil"}),
    "command": _container({"command": ["sh"]}),
    "args": _container({"args": ["--evil"]}),
    "hook": _container({"lifecycle": {"preStop": {"exec": {"command": ["sh"]}}}}),
    "name": _container({"name": "shell"}),
    "whole-secret": _container({"envFrom": [WHOLE]}),
    "second-container": lambda thing: thing["spec"]["containers"].append(
        {"name": "b", "image": "ktrace-agent:0.1.0"}
    ),
    "init-container": _spec({"initContainers": [{"name": "b", "image": "evil"}]}),
    "preload": _env({"name": "LD_PRELOAD", "value": "/host/run/evil.so"}),
    "pythonpath": _env({"name": "PYTHONPATH", "value": "/host/run"}),
    "other-key": _env(
        {"name": "AWS_X", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "password"}}}
    ),
    "config-map": _env(
        {"name": "AWS_X", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}}
    ),
    "host-root": _volume({"hostPath": {"path": "/"}}, readOnly=True),
    "host-etc": _volume({"hostPath": {"path": "/etc"}}, readOnly=True),
    "host-below": _volume({"hostPath": {"path": "/run/credentials"}}, readOnly=True),
    "host-writable": _volume({"hostPath": {"path": "/run"}}),
    "first-mount-writable": _writable,
    "secret-volume": _volume({"secret": {"secretName": "keys"}}),
    "token-volume": _volume({"projected": {"sources": [TOKEN]}}),
    "token": _spec({"automountServiceAccountToken": True}),
    "account": _spec({"serviceAccountName": "default"}),
    "ipc": _spec({"hostIPC": True}),
    "no-deadline": _spec({"activeDeadlineSeconds": None}),
    "restarts": _spec({"restartPolicy": "Always"}),
    "no-owner": lambda thing: thing["metadata"].pop("ownerReferences"),
    "owned-by-a-pod": _of("Pod"),
    "owned-by-another": _of("TraceSnapshot"),
}


@pytest.mark.parametrize("name", FORGED)
def test_the_operators_token_makes_only_agents(api: Api, mine: Thing, name: str):
    asked = copy.deepcopy(agent(mine))
    assert api.create(asked, user=OPERATOR, dry_run=True).ok
    FORGED[name](asked)
    refused(api.create(asked, user=OPERATOR, dry_run=True), "ktrace-agents")


def test_a_token_for_a_cloud_is_no_token_for_the_cluster(api: Api, mine: Thing):
    asked = agent(mine)
    token = {"serviceAccountToken": {"path": "token", "audience": "sts.amazonaws.com"}}
    _volume({"projected": {"sources": [token]}}, readOnly=True)(asked)
    _env({"name": "AWS_WEB_IDENTITY_TOKEN_FILE", "value": "/more/token"})(asked)
    assert api.create(asked, user=OPERATOR, dry_run=True).ok


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/secrets"),
        ("GET", f"/api/v1/namespaces/{AGENTS}/secrets"),
        ("GET", "/api/v1/namespaces/kube-system/secrets/any"),
        ("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets/any"),
        ("GET", "/api/v1/pods"),
        ("GET", "/api/v1/nodes/node-a/proxy/"),
        ("PATCH", "/api/v1/nodes/node-a"),
        ("GET", f"{PODS}/any/log"),
        ("POST", f"/apis/ktrace.io/v1alpha1/namespaces/{AGENTS}/tracesnapshots"),
        ("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"),
        (
            "DELETE",
            "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/ktrace-agents",
        ),
        ("POST", f"/api/v1/namespaces/{NAMESPACE}/pods"),
        ("POST", "/api/v1/namespaces/kube-system/pods"),
        ("POST", f"/api/v1/namespaces/{AGENTS}/serviceaccounts/default/token"),
        ("GET", f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/another"),
        ("GET", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/any"),
    ],
)
def test_the_operators_token_opens_nothing_else(api: Api, method: str, path: str):
    bodies: dict[str, object] = {"POST": {}, "PATCH": {}}
    answer = api.request(
        method,
        path,
        bodies.get(method),
        user=OPERATOR,
        content_type="application/merge-patch+json" if method == "PATCH" else "application/json",
    )
    assert answer.status == 403, answer
    assert "cannot" in answer.message


def test_a_pod_of_another_kind_is_none_of_the_operators(api: Api):
    refused(api.create(pod(), user=OPERATOR), "no other pods")


@pytest.mark.parametrize("user", [AGENT, User.account(SHOP, "default")])
def test_the_agents_account_can_do_nothing(api: Api, user: User):
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": AGENTS},
    }
    path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    answer = api.request("POST", path, review, user=user)
    groups = {
        group for rule in answer.body["status"]["resourceRules"] for group in rule["apiGroups"]
    }
    assert groups <= {"authorization.k8s.io", "authentication.k8s.io"}


def test_a_tenant_does_not_give_themselves_the_operators_rights(api: Api):
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "mine", "namespace": AGENTS},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "Role",
            "name": "ktrace-operator",
        },
        "subjects": [{"kind": "User", "name": MALLORY.name}],
    }
    refused(api.create(binding, user=MALLORY), "ktrace.io")


def test_a_tenant_gets_no_token_of_the_operators(api: Api):
    path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/ktrace-operator/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    refused(api.request("POST", path, request, user=MALLORY), "cannot create")
