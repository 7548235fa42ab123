# SPDX-License-Identifier: Apache-2.0
"""What the examples say is what the CRD, the agent and the tools that read them understand."""

import importlib.util
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from lupa.lua51 import LuaRuntime

from ktrace_api.crd import definition
from ktrace_api.finding import FindingId
from ktrace_api.names import API_GROUP, API_VERSION, KIND, LABEL_CREDENTIALS, ConditionReason
from ktrace_api.snapshot import SnapshotSpec

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = sorted([*(ROOT / "examples").rglob("*.yaml"), *(ROOT / "deploy").glob("*.yaml")])
[VERSION] = definition()["spec"]["versions"]
SCHEMA = Draft202012Validator(VERSION["schema"]["openAPIV3Schema"]["properties"]["spec"])


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


SNAPSHOTS = [
    pytest.param(document, id=str(path.relative_to(ROOT)))
    for path in FILES
    for document in documents(path)
    if document["kind"] == KIND
]


def test_there_are_snapshots():
    assert len(SNAPSHOTS) == 6


@pytest.mark.parametrize("snapshot", SNAPSHOTS)
def test_model_and_schema_accept_it(snapshot: dict[str, Any]):
    assert snapshot["apiVersion"] == f"{API_GROUP}/{API_VERSION}"
    assert snapshot["metadata"].keys() & {"name", "generateName"}
    assert snapshot["metadata"]["namespace"] == agents_namespace()
    SnapshotSpec.model_validate(snapshot["spec"])
    SCHEMA.validate(snapshot["spec"])


def agents_namespace() -> str:
    values = yaml.safe_load((ROOT / "charts/ktrace/values.yaml").read_text())
    return str(values["namespaces"]["agents"]["name"])


@pytest.mark.parametrize(
    ("name", "seconds", "ports", "dns_only"),
    [
        ("dns", 60, (), True),
        ("service-vip", 90, (80, 443, 6443), False),
        ("slow-connect", 60, (443, 6443), False),
    ],
)
def test_recipes_ask_what_they_promise(
    name: str, seconds: int, ports: tuple[int, ...], dns_only: bool
):
    [document] = documents(ROOT / f"examples/{name}.yaml")
    assert document["metadata"]["name"] == name
    spec = SnapshotSpec.model_validate(document["spec"])
    assert spec.duration.total_seconds() == seconds
    assert (spec.capture.ports, spec.capture.dns_only) == (ports, dns_only)
    assert spec.capture.conntrack
    assert spec.capture.cri == "Auto"
    assert spec.output is None


def test_the_secret_is_a_template_that_an_agent_may_use():
    [secret] = [one for one in documents(ROOT / "examples/s3.yaml") if one["kind"] == "Secret"]
    assert secret["metadata"]["labels"] == {LABEL_CREDENTIALS: "true"}
    assert set(secret["stringData"].values()) == {"REPLACE-ME"}
    [snapshot] = [one for one in documents(ROOT / "examples/s3.yaml") if one["kind"] == KIND]
    assert snapshot["spec"]["output"]["s3"]["credentialsSecret"] == secret["metadata"]["name"]


def condition(kind: str, status: str, reason: str) -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": "why"}


def ended(succeeded: str, reason: ConditionReason) -> dict[str, Any]:
    conditions = [condition("Finished", "True", reason), condition("Succeeded", succeeded, reason)]
    return {"observedGeneration": 1, "conditions": conditions}


RUNNING = {
    "observedGeneration": 1,
    "conditions": [
        condition("Finished", "False", "Running"),
        condition("Succeeded", "Unknown", "Running"),
        condition("Reconciling", "True", "Running"),
    ],
}


@pytest.mark.parametrize(
    ("status", "health", "message"),
    [
        (None, "Progressing", "not processed by an operator yet"),
        ({"observedGeneration": -1}, "Progressing", "not processed by an operator yet"),
        (RUNNING, "Progressing", "Running: why"),
        ({**ended("True", ConditionReason.COMPLETED), "observedGeneration": 0}, "Progressing", ""),
        (ended("True", ConditionReason.COMPLETED), "Healthy", "Completed: why"),
        (ended("False", ConditionReason.PARTIALLY_COMPLETED), "Degraded", "Partially"),
        (ended("False", ConditionReason.ALL_FAILED), "Degraded", "AllFailed: why"),
        (ended("False", ConditionReason.INVALID_SPEC), "Degraded", "InvalidSpec: why"),
        (ended("False", ConditionReason.CANCELED), "Suspended", "Canceled: why"),
    ],
)
def test_argo_cd_sees_how_it_stands(status: dict[str, Any] | None, health: str, message: str):
    [config] = documents(ROOT / "examples/gitops/argocd/argocd-cm.yaml")
    script = config["data"][f"resource.customizations.health.{API_GROUP}_{KIND}"]
    lua = LuaRuntime(unpack_returned_tuples=True)
    lua.globals().obj = lua.table_from(
        {"metadata": {"generation": 1}, "status": status}, recursive=True
    )
    said = dict(lua.execute(script))
    assert said["status"] == health
    assert message in said["message"]


def test_controller_knows_findings_and_no_ktrace():
    path = ROOT / "examples/controller.py"
    assert not re.search(r"^(from|import) ktrace", path.read_text(), re.MULTILINE)
    spec = importlib.util.spec_from_file_location("controller", path)
    assert spec is not None
    assert spec.loader is not None
    controller = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(controller)
    assert set(controller.NEXT) <= set(FindingId)
    assert (controller.GROUP, controller.VERSION) == (API_GROUP, API_VERSION)


def daemonset() -> dict[str, Any]:
    [found] = [
        one for one in documents(ROOT / "deploy/daemonset.yaml") if one["kind"] == "DaemonSet"
    ]
    return dict(found["spec"]["template"]["spec"])


def test_daemonset_gives_flags_that_there_are():
    done = subprocess.run(
        [ROOT / ".venv/bin/ktrace", "--help"], check=True, capture_output=True, text=True
    )
    [capture] = daemonset()["initContainers"]
    for argument in capture["args"]:
        assert argument.split("=")[0] in done.stdout


def test_daemonset_writes_nowhere_on_the_host_but_into_its_folder():
    pod = daemonset()
    host = {one["name"] for one in pod["volumes"] if "hostPath" in one}
    [capture], [done] = pod["initContainers"], pod["containers"]
    for mount in [*capture["volumeMounts"], *done["volumeMounts"]]:
        if mount["name"] in host and not mount.get("readOnly"):
            assert (mount["mountPath"], mount in capture["volumeMounts"]) == ("/out", True)
    assert "privileged" not in done["securityContext"]
    assert done["securityContext"]["capabilities"] == {"drop": ["ALL"]}
