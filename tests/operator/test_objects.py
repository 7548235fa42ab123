# SPDX-License-Identifier: Apache-2.0
"""Objects of the API server as the operator reads them."""

from typing import Any

import pytest

from ktrace_operator.objects import Node

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
