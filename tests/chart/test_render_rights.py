# SPDX-License-Identifier: Apache-2.0
"""What the chart allows the operator, the agents, the hook and the users."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from ktrace_operator.kube.client import RIGHTS, Right
from tests.chart.helm import NAMESPACE, Thing, of_kind
from tests.chart.rendered import each_scenario, rendered, settings_of

pytestmark = pytest.mark.world("chart")


def bound_to(things: list[Thing], account: str) -> list[tuple[str | None, dict[str, Any]]]:
    """(namespace or None, rule) of everything that a service account may do."""
    roles = {
        (one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]): one["rules"]
        for one in of_kind(things, "Role", "ClusterRole")
    }
    found = []
    for one in of_kind(things, "RoleBinding", "ClusterRoleBinding"):
        if all(subject["name"] != account for subject in one["subjects"]):
            continue
        namespace = one["metadata"].get("namespace")
        role = one["roleRef"]
        place = namespace if role["kind"] == "Role" else None
        found += [(namespace, rule) for rule in roles[(role["kind"], place, role["name"])]]
    return found


def granted(things: list[Thing], account: str) -> set[tuple[str | None, str, str, str]]:
    """(namespace, group, resource, verb)."""
    return {
        (namespace, *right)
        for namespace, rule in bound_to(things, account)
        for right in itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"])
    }


@each_scenario
def test_the_operator_may_do_what_it_does_and_nothing_else(name: str, tmp_path: Path):
    things = rendered(name)
    settings = settings_of(things, tmp_path)
    every = "*" in settings.pod_targets
    places: dict[str, list[str | None]] = {
        "served": list(settings.namespaces),
        "own": [NAMESPACE],
        "targets": [None] if every else list(settings.pod_targets),
        "cluster": [None],
    }
    wanted = {
        (place, right.group, right.resource, right.verb)
        for right in RIGHTS
        for place in places[right.scope]
    }
    assert granted(things, settings.lease.name) == wanted


def test_no_right_reaches_further_than_it_must():
    served = {right for right in RIGHTS if right.scope == "served"}
    assert Right("", "secrets", "list", "served") not in served
    cluster = {(right.resource, right.verb) for right in RIGHTS if right.scope == "cluster"}
    assert cluster == {("nodes", "get"), ("nodes", "list")}
    for _, rule in bound_to(rendered("default"), "ktrace-operator"):
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        if rule["resources"] == ["leases"] and "create" not in rule["verbs"]:
            assert rule["resourceNames"] == ["ktrace-operator"]


@each_scenario
def test_the_agents_account_has_no_right_and_no_token(name: str, tmp_path: Path):
    things = rendered(name)
    settings = settings_of(things, tmp_path)
    account = settings.agent.service_account
    assert bound_to(things, account) == []
    accounts = [
        one for one in of_kind(things, "ServiceAccount") if one["metadata"]["name"] == account
    ]
    assert {one["metadata"]["namespace"] for one in accounts} == set(settings.namespaces)
    assert all(one["automountServiceAccountToken"] is False for one in accounts)


def test_the_hook_may_let_go_of_pods_and_nothing_else():
    assert granted(rendered("default"), "ktrace-release") == {
        ("ktrace-agents", "", "pods", "list"),
        ("ktrace-agents", "", "pods", "patch"),
        ("ktrace-agents", "", "pods", "delete"),
        (NAMESPACE, "coordination.k8s.io", "leases", "create"),
        (NAMESPACE, "coordination.k8s.io", "leases", "get"),
        (NAMESPACE, "coordination.k8s.io", "leases", "update"),
    }


def test_whole_nodes_are_granted_by_hand_alone():
    roles = {one["metadata"]["name"]: one for one in of_kind(rendered("default"), "ClusterRole")}
    for name, role in roles.items():
        aggregated = any("aggregate-to" in label for label in role["metadata"]["labels"])
        traces = any("trace" in rule["verbs"] for rule in role["rules"])
        assert traces == (name == "ktrace-trace-nodes")
        assert not (traces and aggregated)
        assert all("status" not in text for rule in role["rules"] for text in rule["resources"])
    assert "aggregate-to-edit" in str(roles["ktrace-edit"])
    plain = of_kind(rendered("without-policies"), "ClusterRole")
    assert "aggregate-to" not in str(plain)
