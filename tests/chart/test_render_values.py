# SPDX-License-Identifier: Apache-2.0
"""The values that the chart accepts, and those that it refuses."""

import json
import re
from typing import Any

import pytest

from ktrace_api.crd import definition
from ktrace_operator.settings import ALLOWED_ENDPOINT, PLATFORM
from ktrace_operator.timeouts import LONGEST_WRITE_SECONDS
from tests.chart.helm import CHART, Refused, render
from tests.chart.rendered import DEFAULTS
from tests.chart.scenarios import S3

pytestmark = pytest.mark.world("chart")


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
        ({"agent": {"platforms": ["amd64"]}}, "platforms"),
        ({"agent": {"platforms": ["windows/amd64"]}}, "platforms"),
        ({"agent": {"platforms": ["linux/amd64"] * 2}}, "platforms"),
        ({"agent": {"privileged": "false"}}, "privileged"),
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
    assert values_schema("agent", "platforms")["items"]["pattern"] == PLATFORM


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
