# SPDX-License-Identifier: Apache-2.0
"""What the chart renders, for every scenario."""

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from syrupy.assertion import SnapshotAssertion

from ktrace_api.crd import definition
from ktrace_api.snapshot import Output
from ktrace_operator.kube.client import RIGHTS, Right
from ktrace_operator.settings import (
    ALLOWED_ENDPOINT,
    AgentSettings,
    Limits,
    S3Policy,
    Settings,
    load,
)
from ktrace_operator.timeouts import LONGEST_WRITE_SECONDS
from tests.chart.helm import (
    CHART,
    NAMESPACE,
    REGISTRY,
    ROOT,
    Refused,
    Thing,
    lint,
    notes,
    of_kind,
    render,
)
from tests.chart.scenarios import S3, SCENARIOS

pytestmark = pytest.mark.world("chart")

DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
CLUSTER_WIDE = {
    "Namespace",
    "ClusterRole",
    "ClusterRoleBinding",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}
each_scenario = pytest.mark.parametrize("name", SCENARIOS)
RENDERED: dict[str, list[Thing]] = {}


def rendered(name: str) -> list[Thing]:
    if name not in RENDERED:
        RENDERED[name] = render(SCENARIOS[name])
    return RENDERED[name]


def settings_of(things: list[Thing], folder: Path) -> Settings:
    """The settings as the operator reads them."""
    [config] = of_kind(things, "ConfigMap")
    path = folder / "settings.yaml"
    path.write_text(config["data"]["settings.yaml"])
    return load(path)


def value(name: str, *path: str) -> Any:
    """A value of a scenario, or the chart's own."""
    found: Any = SCENARIOS[name]
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    default: Any = DEFAULTS
    for key in path:
        default = default[key]
    return default if found is None else found


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
    agent = AgentSettings(image=settings.agent.image)
    assert settings.agent == agent
    assert settings == Settings(namespaces=settings.namespaces, agent=agent)


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


@pytest.mark.parametrize("name", ["default", "s3-by-default", "without-policies"])
def test_notes(name: str, snapshot: SnapshotAssertion):
    assert notes(SCENARIOS[name]) == snapshot


@pytest.mark.parametrize("name", ["default", "s3-with-a-server-of-ones-own"])
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


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"operater": {}}, "operater"),  # codespell:ignore operater
        ({"operator": {"replicas": 0}}, "replicas"),
        ({"operator": {"replicas": "2"}}, "replicas"),
        ({"operator": {"logLevel": "trace"}}, "logLevel"),
        ({"operator": {"image": {"digest": "sha256:123"}}}, "digest"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"image": {"registry": "https://registry.example.com"}}, "registry"),
        ({"namespaces": {"agents": {"name": "Ktrace"}}}, "name"),
        ({"namespaces": {"extra": ["a", "a"]}}, "extra"),
        ({"podTargets": {"namespaces": ["shop-*"]}}, "namespaces"),
        ({"limits": {"maxDuration": "11m"}}, "maxDuration"),
        ({"limits": {"maxNodes": 1001}}, "maxNodes"),
        ({"limits": {"uploadSeconds": 0}}, "uploadSeconds"),
        ({"operator": {"lease": {"durationSeconds": 8}}}, "durationSeconds"),
        ({"operator": {"lease": {"durationSeconds": 12}}}, "operator.lease.durationSeconds"),
        (
            {"operator": {"lease": {"durationSeconds": 30, "renewSeconds": 30}}},
            "at least 38, renewSeconds + 8",
        ),
        ({"output": {"default": {"s3": {"bucket": "B"}}}}, "default"),
        ({"output": {"default": {"s3": S3 | {"prefix": "ktrace/"}}}}, "prefix"),
        ({"output": {"default": {"s3": S3 | {"prefix": "a//b"}}}}, "prefix"),
        ({"output": {"default": {"s3": S3 | {"region": "EU Central"}}}}, "region"),
        ({"output": {"default": {"s3": S3 | {"credentialsSecret": "other/keys"}}}}, "Secret"),
        ({"output": {"default": {"s3": S3 | {"kmsKeyId": "a b"}}}}, "kmsKeyId"),
        ({"output": {"default": {"s3": S3 | {"endpoint": "https://a:70000"}}}}, "endpoint"),
        ({"output": {"default": {"pvc": {"claimName": "Claim"}}}}, "claimName"),
        ({"output": {"default": {"pvc": {"claimName": "a", "subPath": "/a"}}}}, "subPath"),
        ({"output": {"s3": {"allowedEndpoints": ["https://a:70000"]}}}, "allowedEndpoints"),
        ({"output": {"s3": {"allowedEndpoints": ["https://a:0"]}}}, "allowedEndpoints"),
        (
            {"output": {"default": {"s3": {"bucket": "abc"}, "pvc": {"claimName": "x"}}}},
            "default",
        ),
        ({"output": {"s3": {"allowedEndpoints": ["s3.example.com"]}}}, "allowedEndpoints"),
        ({"output": {"s3": {"allowedBuckets": ["a b"]}}}, "allowedBuckets"),
        ({"agent": {"criSockets": ["run/containerd.sock"]}}, "criSockets"),
        ({"networkPolicy": {"apiServerPorts": []}}, "apiServerPorts"),
        ({"namespaces": {"agents": {"name": "ktrace"}}}, "operator's own namespace"),
        (
            {"metrics": {"service": {"enabled": False}, "serviceMonitor": {"enabled": True}}},
            "serviceMonitor",
        ),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_bad_values_are_refused_by_name(values: dict[str, Any], named: str):
    with pytest.raises(Refused, match=re.escape(named)):
        render(values)


@pytest.mark.parametrize("renew", [1, 5, 60])
def test_a_lease_that_is_as_short_as_may_be(renew: int, tmp_path: Path):
    shortest = renew + int(LONGEST_WRITE_SECONDS)
    lease = {"renewSeconds": renew, "durationSeconds": shortest}
    settings = settings_of(render({"operator": {"lease": lease}}), tmp_path)
    assert settings.lease.duration_seconds == shortest


def values_schema(*path: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
    for name in path:
        schema = schema["properties"][name]
    return schema


KEYWORDS = {"type", "pattern", "minLength", "maxLength", "required", "enum"}


@pytest.mark.parametrize(("form", "number"), [("s3", 1), ("pvc", 2)])
def test_the_default_output_is_held_to_the_rules_of_the_crd(form: str, number: int):
    chart = values_schema("output", "default")["oneOf"][number]["properties"][form]
    [version] = definition()["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    crd = spec["properties"]["output"]["properties"][form]
    assert chart["properties"].keys() == crd["properties"].keys()
    assert chart["required"] == crd["required"]
    for name, field in crd["properties"].items():
        rules = {key: value for key, value in field.items() if key in KEYWORDS}
        assert chart["properties"][name] == rules, name


def test_what_the_chart_says_of_settings_the_operator_says_too():
    lease = values_schema("operator", "lease")["properties"]
    assert lease["durationSeconds"]["minimum"] == (
        lease["renewSeconds"]["minimum"] + LONGEST_WRITE_SECONDS
    )
    endpoints = values_schema("output", "s3", "allowedEndpoints")["items"]
    assert endpoints["pattern"] == ALLOWED_ENDPOINT


def leaves(schema: dict[str, Any], path: str = "") -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, child in schema.get("properties", {}).items():
        below = f"{path}.{name}".lstrip(".")
        found |= leaves(child, below) or {below: child}
    return found


def test_the_schema_knows_exactly_the_values_that_there_are():
    schema = json.loads((CHART / "values.schema.json").read_text())
    del schema["properties"]["global"]  # helm's own

    def paths(values: dict[str, Any], path: str = "") -> set[str]:
        found: set[str] = set()
        for name, child in values.items():
            below = f"{path}.{name}".lstrip(".")
            found |= paths(child, below) if isinstance(child, dict) and child else {below}
        return found

    values = {re.sub(r"(\.resources)\..*", r"\1", path) for path in paths(DEFAULTS)}
    known = {re.sub(r"(\.resources)\..*", r"\1", path) for path in leaves(schema)}
    assert values == known


def test_every_value_is_used():
    text = "".join(path.read_text() for path in CHART.glob("templates/**/*") if path.is_file())
    for path in leaves_of_values():
        name = path.split(".")[-1]
        assert re.search(rf"\.{name}\b", text), path


def leaves_of_values() -> list[str]:
    schema = json.loads((CHART / "values.schema.json").read_text())
    deep = {"resources", "s3"}  # passed on as they are
    return [path for path in leaves(schema) if path != "global" and not set(path.split(".")) & deep]
