# SPDX-License-Identifier: Apache-2.0
"""Who there is in the tests of the policies, and what they make."""

import itertools
from typing import Any

from ktrace_api.names import API_GROUP, API_VERSION, KIND
from ktrace_api.snapshot import Output, TraceSnapshot
from ktrace_operator.plan.agent_pod import assignment, manifest
from ktrace_operator.settings import AgentSettings, Settings
from tests.chart.apiserver import Answer, User
from tests.chart.helm import NAMESPACE, REGISTRY, Thing

AGENTS, SHOP = "ktrace-agents", "shop"
PODS = f"/api/v1/namespaces/{AGENTS}/pods"
SNAPSHOTS = f"/apis/ktrace.io/v1alpha1/namespaces/{AGENTS}/tracesnapshots"
ALL: dict[str, Any] = {"selector": {}}
LABELLED = {"matchLabels": {"app": "web"}}
"""Nodes and pods that a snapshot names."""
RUNTIME = "another"
"""A RuntimeClass that the cluster has."""

ALICE = User("alice")
"""Bound to ktrace-edit in the agents' namespace, and to view in the shop's: the usual author."""
NED = User("ned")
"""As alice, without pods; may trace node-a."""
TESS = User("tess")
"""As alice, and may trace all nodes."""
MALLORY = User("mallory")
"""admin of the agents' namespace and of the shop's: as much as a tenant may ever get."""
ROOT = User("root")
"""cluster-admin: RBAC stops nothing, the policies must."""
OPERATOR = User.account(NAMESPACE, "ktrace-operator")
RELEASE = User(User.account(NAMESPACE, "ktrace-release").name, ("system:masters",))
"""Of the hook before an uninstall, whose roles come and go with it: here RBAC stops it nowhere."""
AGENT = User.account(AGENTS, "ktrace-agent")

_numbers = itertools.count(1)


def snapshot(
    nodes: dict[str, Any], namespace: str = AGENTS, name: str | None = None, **more: Any
) -> Thing:
    """A TraceSnapshot of a new name; `metadata` and fields of the spec may be given."""
    metadata = {"name": name or f"snap-{next(_numbers)}", "namespace": namespace}
    metadata |= more.pop("metadata", {})
    return {
        "apiVersion": f"{API_GROUP}/{API_VERSION}",
        "kind": KIND,
        "metadata": metadata,
        "spec": {"nodes": nodes, **more},
    }


def pod(
    name: str | None = None,
    namespace: str = AGENTS,
    labels: dict[str, str] | None = None,
    **spec: Any,
) -> Thing:
    """A pod that asks for nothing, unless `spec` does."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name or f"reader-{next(_numbers)}",
            "namespace": namespace,
            "labels": labels or {},
        },
        "spec": {"containers": [{"name": "main", "image": "example/reader"}], **spec},
    }


def agent(owner: Thing, node: str = "node-a", *, privileged: bool = True) -> Thing:
    """The pod that the operator makes for a snapshot as the API server returned it."""
    settings = Settings(
        namespaces=(AGENTS,),
        agent=AgentSettings(image=f"{REGISTRY}/ktrace-agent:0.1.0", privileged=privileged),
    )
    asked = TraceSnapshot.model_validate(owner)
    output = asked.spec.output or Output.model_validate({"s3": {"bucket": "bundles"}})
    return manifest(asked, node, output, assignment(asked, node, output, (), settings), settings)


def _binding(user: User, role: str, namespace: str | None) -> Thing:
    metadata = {"name": f"{user.name}-{role}"} | ({"namespace": namespace} if namespace else {})
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding" if namespace else "ClusterRoleBinding",
        "metadata": metadata,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "User", "name": user.name}],
    }


def objects() -> list[Thing]:
    """What everybody may do, and what else the cluster has."""
    runtime = {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": RUNTIME},
        "handler": RUNTIME,
    }
    one_node = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "trace-node-a"},
        "rules": [
            {
                "apiGroups": [API_GROUP],
                "resources": ["nodes"],
                "resourceNames": ["node-a"],
                "verbs": ["trace"],
            }
        ],
    }
    return [
        runtime,
        one_node,
        _binding(ALICE, "ktrace-edit", AGENTS),
        _binding(ALICE, "view", SHOP),
        _binding(NED, "ktrace-edit", AGENTS),
        _binding(NED, "trace-node-a", None),
        _binding(TESS, "ktrace-edit", AGENTS),
        _binding(TESS, "ktrace-trace-nodes", None),
        _binding(MALLORY, "admin", AGENTS),
        _binding(MALLORY, "admin", SHOP),
        _binding(ROOT, "cluster-admin", None),
    ]


def refused(answer: Answer, *words: str) -> None:
    """It was, and says so in these words."""
    assert answer.status in (400, 403, 413, 422), (answer.status, answer.message)
    for word in words:
        assert word in answer.message, answer.message


def accepted(answer: Answer) -> Thing:
    assert answer.ok, (answer.status, answer.message)
    return answer.body


def path_of(thing: Thing) -> str:
    """Of a snapshot."""
    return f"{SNAPSHOTS}/{thing['metadata']['name']}"
