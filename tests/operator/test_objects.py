# SPDX-License-Identifier: Apache-2.0
"""Objects of the API server as the operator reads them."""

from typing import Any

import pytest

from ktrace_api.names import AGENT_CONTAINER
from ktrace_operator.objects import AgentPod, Node, Running, TargetPod, Terminated, Waiting

LABELS = {"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
ARM = {"operatingSystem": "linux", "architecture": "arm64"}


@pytest.mark.parametrize(
    ("labels", "info", "platform"),
    [
        (LABELS, ARM, "linux/arm64"),
        ({}, {"operatingSystem": "windows", "architecture": "amd64"}, "windows/amd64"),
        (LABELS, {}, "linux/amd64"),
        (LABELS, {"operatingSystem": "", "architecture": ""}, "linux/amd64"),
        ({"kubernetes.io/os": "windows"}, {}, "windows/unknown"),
        ({}, {}, "unknown/unknown"),
        ({}, None, "unknown/unknown"),
        ({}, {"operatingSystem": 1, "architecture": "a\nb"}, "unknown/a b"),
    ],
)
def test_the_platform_of_a_node_is_what_its_kubelet_reports(
    labels: dict[str, str], info: Any, platform: str
):
    """The labels count if the kubelet reports nothing."""
    raw = {"metadata": {"name": "node-a", "labels": labels}, "status": {"nodeInfo": info}}
    assert Node.of(raw).platform == platform


STATIC_POD = "kubernetes.io/config.hash"
HASH = "0123456789abcdef" * 2


def agent_pod(**status: Any) -> AgentPod:
    return AgentPod.of({"metadata": {"name": "pod-a"}, "status": status})


@pytest.mark.parametrize(
    ("state", "container"),
    [
        ({"waiting": {"reason": "ErrImagePull", "message": "no such tag"}},
         Waiting("ErrImagePull", "no such tag")),
        ({"running": {"startedAt": None}}, Running(None)),
        ({"terminated": {"exitCode": 3, "reason": "Error", "message": "why"}},
         Terminated(3, "Error", "why")),
        ({"terminated": {"exitCode": "3", "message": 7}}, Terminated(-1)),
        ({}, None),
        (None, None),
    ],
)  # fmt: skip
def test_the_state_of_the_agents_container(state: Any, container: Any):
    """Other containers, such as a sidecar that a mesh injects, do not count."""
    other = {"name": "mesh", "state": {"terminated": {"exitCode": 1}}}
    found = agent_pod(containerStatuses=[other, {"name": AGENT_CONTAINER, "state": state}])
    assert found.container == container
    assert found.over == isinstance(container, Terminated)
    assert agent_pod(containerStatuses=[other]).container is None


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}, "0/3 nodes"),
        ({"status": "False", "reason": "Unschedulable"}, "no reason reported"),
        ({"status": "False", "reason": "SchedulingGated"}, None),
        ({"status": "True"}, None),
    ],
)
def test_why_a_pod_is_not_scheduled(condition: dict[str, str], message: str | None):
    ready = {"type": "Ready", "status": "False"}
    found = agent_pod(conditions=[ready, {"type": "PodScheduled", **condition}])
    assert found.unschedulable == message


@pytest.mark.parametrize(
    ("namespace", "annotation", "uids"),
    [
        ("kube-system", HASH, ("uid-1", HASH)),
        ("kube-system", "not a hash", ("uid-1",)),
        ("team-a", HASH, ("uid-1",)),
    ],
)
def test_only_the_hash_of_a_static_pod_of_the_system_is_trusted(
    namespace: str, annotation: str, uids: tuple[str, ...]
):
    metadata = {"name": "p", "namespace": namespace, "uid": "uid-1",
                "annotations": {STATIC_POD: annotation}}  # fmt: skip
    raw = {"metadata": metadata, "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}}
    assert TargetPod.of(raw) == TargetPod("p", "n1", uids)
    assert TargetPod.of({**raw, "spec": {}}) is None
    assert TargetPod.of({**raw, "status": {"phase": "Failed"}}) is None
