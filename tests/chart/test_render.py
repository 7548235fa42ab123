# SPDX-License-Identifier: Apache-2.0
"""The objects that the chart renders, for every scenario."""

import re
from collections import Counter

import pytest
import yaml
from syrupy.assertion import SnapshotAssertion

from tests.chart.helm import CHART, ROOT, lint, notes, of_kind
from tests.chart.rendered import each_scenario, rendered
from tests.chart.scenarios import SCENARIOS

pytestmark = pytest.mark.world("chart")

CLUSTER_WIDE = {
    "Namespace",
    "ClusterRole",
    "ClusterRoleBinding",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}


@each_scenario
def test_helm_finds_nothing_to_say(name: str):
    assert "0 chart(s) failed" in lint(SCENARIOS[name])


@each_scenario
def test_every_object_has_a_place_a_name_of_its_own_and_the_usual_labels(name: str):
    things = rendered(name)
    seen = Counter(
        (one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in things
    )
    assert max(seen.values()) == 1, seen.most_common(1)
    for one in things:
        metadata = one["metadata"]
        assert ("namespace" in metadata) == (one["kind"] not in CLUSTER_WIDE), metadata
        assert len(metadata["name"]) <= 63
        labels = metadata["labels"]
        assert labels["app.kubernetes.io/part-of"] == "ktrace"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,63}", text) for text in labels.values())


@pytest.mark.parametrize("name", ["default", "s3-by-default", "without-policies"])
def test_notes(name: str, snapshot: SnapshotAssertion):
    assert notes(SCENARIOS[name]) == snapshot


@pytest.mark.parametrize("name", ["default", "s3-with-a-server-of-ones-own", "few-capabilities"])
def test_messages_of_the_policies(name: str, snapshot: SnapshotAssertion):
    found = [
        f"{policy['metadata']['name']}: {rule.get('messageExpression') or rule['message']}"
        for policy in of_kind(rendered(name), "ValidatingAdmissionPolicy")
        for rule in policy["spec"]["validations"]
    ]
    assert "\n".join(found) == snapshot


def test_versions_are_one():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = (ROOT / "pyproject.toml").read_text()
    [version] = re.findall(r'^version = "(.*)"$', project, re.MULTILINE)
    assert chart["version"] == chart["appVersion"] == version


@each_scenario
def test_nothing_but_agents_needs_a_privilege(name: str):
    for one in of_kind(rendered(name), "Deployment", "Job"):
        pod = one["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert set(container["resources"]) == {"requests", "limits"}
            assert "memory" in container["resources"]["limits"]


def test_a_change_of_settings_restarts_the_operator():
    sums = set()
    for name in ("default", "low-ceilings", "s3-by-default"):
        [deployment] = of_kind(rendered(name), "Deployment")
        sums.add(deployment["spec"]["template"]["metadata"]["annotations"]["checksum/settings"])
    assert len(sums) == 3


def kinds(name: str) -> Counter[str]:
    return Counter(one["kind"] for one in rendered(name))


def test_what_is_asked_for_is_there_and_what_is_not_is_not():
    assert kinds("default")["PodDisruptionBudget"] == 1
    assert kinds("one-replica")["PodDisruptionBudget"] == 0
    assert kinds("default")["ServiceMonitor"] == 0
    assert kinds("service-monitor")["ServiceMonitor"] == 1
    assert kinds("no-metrics-service")["Service"] == 0
    assert kinds("default")["Namespace"] == 1
    assert kinds("agents-namespace-is-there")["Namespace"] == 0
    assert kinds("default")["ResourceQuota"] == 0
    assert kinds("few-snapshots")["ResourceQuota"] == 1
    assert kinds("without-policies")["ValidatingAdmissionPolicy"] == 0
    assert kinds("default")["ValidatingAdmissionPolicy"] == 5
    assert kinds("without-network-policy")["NetworkPolicy"] == 0
    assert kinds("without-network-policy")["Job"] == 0
    [kept] = of_kind(rendered("default"), "Namespace")
    assert kept["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    [going] = of_kind(rendered("namespace-goes-with-the-chart"), "Namespace")
    assert "annotations" not in going["metadata"]


def test_services_and_policies_select_the_operator_and_no_agent():
    things = rendered("default")
    [deployment] = of_kind(things, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for one in of_kind(things, "Service"):
        assert one["spec"]["selector"].items() <= labels.items()
    for one in of_kind(things, "NetworkPolicy", "PodDisruptionBudget"):
        spec = one["spec"]
        selector = spec.get("podSelector") or spec["selector"]
        assert selector["matchLabels"].items() <= labels.items()
    ports = {
        port["name"] for port in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]
    }
    assert ports == {"metrics", "probes"}
