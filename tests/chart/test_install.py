# SPDX-License-Identifier: Apache-2.0
"""The chart in a real API server: every object is taken, comes, changes and goes again."""

from typing import Any

import pytest
import yaml

from ktrace_api.status import SnapshotStatus
from tests.chart.apiserver import Api, collection, wait_for
from tests.chart.helm import (
    CHART,
    NAMESPACE,
    Thing,
    install,
    named,
    of_kind,
    render,
    uninstall,
)
from tests.chart.people import AGENTS, OPERATOR, ROOT, pod, snapshot
from tests.chart.scenarios import SCENARIOS

pytestmark = pytest.mark.world("chart")

ELSEWHERE = {"ServiceMonitor"}
"""Kinds of somebody else's CRD."""


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_api_server_takes_every_object(api: Api, name: str):
    things = render(SCENARIOS[name])
    namespaces = {one["metadata"].get("namespace") for one in things} - {None}
    api.apply(
        *(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": one}}
            for one in namespaces
        )
    )
    taken = [one for one in things if one["kind"] not in ELSEWHERE]
    assert len(taken) > 15
    for thing in taken:
        answer = api.create(thing, dry_run=True)
        assert answer.ok or answer.status == 409, (thing["kind"], answer.message)
        assert answer.warnings == (), (thing["kind"], answer.warnings)


def test_policies_have_no_fault_that_the_api_server_finds(api: Api):
    path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"

    def checked() -> bool:
        items = api.request("GET", path).body["items"]
        return len(items) == 5 and all("typeChecking" in one.get("status", {}) for one in items)

    wait_for(checked, "policies are not checked")
    for one in api.request("GET", path).body["items"]:
        assert one["status"]["typeChecking"] == {}, one["metadata"]["name"]
        assert one["spec"]["failurePolicy"] == "Fail"


@pytest.mark.parametrize("kind", ["Deployment", "Job"])
def test_only_agents_need_more_than_pod_security_calls_restricted(api: Api, kind: str):
    namespace: Thing = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": "restricted",
            "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
        },
    }
    api.apply(namespace)
    account = "/api/v1/namespaces/restricted/serviceaccounts/default"
    wait_for(lambda: api.request("GET", account).ok, "no service account")
    [owner] = of_kind(render({}), kind)
    template = owner["spec"]["template"]
    asked = pod(namespace="restricted") | {"spec": template["spec"] | {"serviceAccountName": ""}}
    answer = api.create(asked, dry_run=True)
    assert answer.ok, answer.message
    asked["spec"] = {**asked["spec"], "hostPID": True}
    assert not api.create(asked, dry_run=True).ok


def test_the_crd_is_established_and_answers_to_its_names(api: Api):
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/tracesnapshots.ktrace.io"
    found = api.request("GET", path).body
    conditions = {one["type"]: one["status"] for one in found["status"]["conditions"]}
    assert conditions["Established"] == conditions["NamesAccepted"] == "True"
    assert "NonStructuralSchema" not in conditions
    assert found["spec"]["names"]["shortNames"] == ["tsnap"]
    wanted = yaml.safe_load((CHART / "crds/TraceSnapshot.yaml").read_text())
    assert found["spec"]["versions"] == wanted["spec"]["versions"]


def test_what_is_not_said_is_filled_in(api: Api):
    answer = api.create(snapshot({"selector": {}}), user=ROOT, dry_run=True)
    assert answer.ok, answer.message
    assert answer.body["spec"] == {
        "nodes": {"selector": {}, "max": 100, "parallelism": 0},
        "duration": "60s",
        "capture": {
            "events": ["tcp", "udp", "connect", "retransmit"],
            "dnsOnly": False,
            "sample": 1,
            "maxEvents": 200_000,
            "maxBytes": "256Mi",
            "conntrack": True,
            "cri": "Auto",
            "security": True,
            "backend": "Auto",
        },
        "stop": False,
    }


@pytest.mark.parametrize(
    "spec",
    [
        {"duration": "1s"},
        {"duration": "4m59s"},
        {"duration": "300s"},
        {"ttlAfterFinished": "0s"},
        {"ttlAfterFinished": "10080m"},
        {"ttlAfterFinished": "604800s"},
        {"capture": {"maxBytes": "1Mi"}},
        {"capture": {"maxBytes": "16Gi"}},
        {"capture": {"maxBytes": 268_435_456}},
        {"capture": {"maxBytes": "200M"}},
        {"capture": {"ports": [1, 65535], "events": ["tcp"], "dnsOnly": True}},
        {"output": {"s3": {"bucket": "team-a", "prefix": "a/b_c/d=e"}}},
        {"output": {"pvc": {"claimName": "claim", "subPath": "a/b"}}},
        {"stop": True},
    ],
    ids=str,
)
def test_specs_at_their_limits(api: Api, spec: dict[str, Any]):
    answer = api.create(snapshot({"selector": {}}, **spec), user=ROOT, dry_run=True)
    assert answer.ok, answer.message


@pytest.mark.parametrize(
    "nodes",
    [
        {"names": [f"{'n' * 243}-{i:04}" for i in range(50)]},
        {"selector": {"matchLabels": {"example.com/pool.a": "", "b": "x_y.Z"}}},
        {
            "selector": {
                "matchExpressions": [
                    {"key": "a", "operator": "In", "values": ["x", ""]},
                    {"key": "b", "operator": "DoesNotExist"},
                    {"key": "c", "operator": "Exists", "values": []},
                ]
            }
        },
        {"pods": {"selector": {}}, "max": 1000, "parallelism": 1000},
    ],
    ids=["names", "labels", "expressions", "pods"],
)
def test_nodes_in_every_form(api: Api, nodes: dict[str, Any]):
    answer = api.create(snapshot(nodes), user=ROOT, dry_run=True)
    assert answer.ok, answer.message


def largest_status() -> dict[str, Any]:
    """A thousand nodes with long names, all failed, with everything that may be said of them."""
    result = {
        "outcome": "Failed",
        "reason": "DeadlineExceeded",
        "message": "m" * 120,
        "startedAt": "2026-01-24T21:57:54Z",
        "endedAt": "2026-01-24T21:58:54Z",
    }
    status = {
        "observedGeneration": 1,
        "phase": "Failed",
        "nodes": {"total": 1000, "failed": 1000},
        "results": [{"node": f"node-{i:04}-{'x' * 50}", **result} for i in range(1000)],
        "verdicts": {"dns": 3, "unknown": 1},
    }
    return SnapshotStatus.model_validate(status).to_json()


def test_a_status_of_a_thousand_nodes_is_taken(api: Api):
    made = api.create(snapshot({"selector": {}}), user=ROOT)
    assert made.ok, made.message
    path = f"{collection(made.body)}/{made.body['metadata']['name']}"
    answer = api.patch(f"{path}/status", {"status": largest_status()}, user=OPERATOR)
    assert answer.ok, answer.message
    assert len(answer.body["status"]["results"]) == 1000
    assert api.delete(path).ok


def test_columns_for_people(api: Api):
    made = api.create(snapshot({"selector": {}}, name="shown"), user=ROOT)
    assert made.ok, made.message
    status = {
        "phase": "Completed",
        "path": "s3://bundles/a/",
        "nodes": {"total": 3, "succeeded": 2, "failed": 1},
        "findings": [{"id": "DNS_NO_REPLY", "severity": "critical", "title": "t"}],
    }
    path = f"{collection(made.body)}/shown"
    assert api.patch(f"{path}/status", {"status": status}, user=OPERATOR).ok
    table = api.table(path)
    assert [column["name"] for column in table["columnDefinitions"]] == [
        "Name",
        "Phase",
        "Nodes",
        "OK",
        "Failed",
        "Findings",
        "Path",
        "Age",
    ]
    [row] = table["rows"]
    assert row["cells"][:7] == [
        "shown",
        "Completed",
        3,
        2,
        1,
        "DNS_NO_REPLY",
        "s3://bundles/a/",
    ]
    assert api.delete(path).ok


def test_it_is_changed_removed_and_installed_again(api: Api):
    """The last test here: it takes the chart away, and brings it back for whoever comes next."""
    from tests.chart.conftest import VALUES

    settings = f"/api/v1/namespaces/{NAMESPACE}/configmaps/ktrace-operator"
    install(api.kubeconfig, VALUES | {"limits": {"maxDuration": "90s"}})
    assert "maxDuration: 90s" in api.request("GET", settings).body["data"]["settings.yaml"]
    made = api.create(snapshot({"selector": {}}, name="survives"), user=ROOT)
    assert made.ok, made.message
    try:
        uninstall(api.kubeconfig, "--no-hooks")
        assert api.request("GET", settings).status == 404
        kept = api.request("GET", f"{collection(made.body)}/survives")
        assert kept.ok, "the namespace and its snapshots stay"
    finally:
        install(api.kubeconfig, VALUES)
    namespace = api.request("GET", f"/api/v1/namespaces/{AGENTS}").body
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"
    assert named(render(VALUES), "Namespace", AGENTS)["metadata"]["labels"].items() <= (
        namespace["metadata"]["labels"].items()
    )
