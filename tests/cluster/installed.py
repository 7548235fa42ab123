# SPDX-License-Identifier: Apache-2.0
"""ktrace as an administrator installs it: images of the Dockerfiles, the chart, a bucket's keys."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ktrace_api.names import LABEL_CREDENTIALS
from tests.cluster import images
from tests.cluster.cluster import Cluster
from tests.cluster.s3 import BUCKET, ENDPOINT, Identity
from tests.cluster.snapshots import Snapshots

CHART = images.ROOT / "charts/ktrace"
RELEASE = "ktrace"
OPERATORS = "ktrace-system"
"""Namespace of the operator."""
AGENTS = "ktrace-agents"
"""Namespace of snapshots and agents."""
TAG = "dev"
KEYS = "ktrace-s3"
"""Secret of the default output."""
OUTPUT = {
    "bucket": BUCKET,
    "prefix": "run",
    "endpoint": ENDPOINT,
    "pathStyle": True,
    "credentialsSecret": KEYS,
}


def load_images(cluster: Cluster, say: images.Say = print) -> None:
    """Build both images, if anything in them changed, and give them to all nodes."""
    for dockerfile, name, target in (
        ("Dockerfile.operator", "ktrace-operator", ""),
        ("Dockerfile.agent", "ktrace-agent", "core"),
    ):
        archive = images.build(images.ROOT / dockerfile, f"localhost/{name}:{TAG}", target, say=say)
        cluster.load_image(archive)


def values(**more: Any) -> dict[str, Any]:
    """Values of the chart with short limits; `more` is merged one level deep."""
    base: dict[str, Any] = {
        "image": {"registry": "localhost", "pullPolicy": "Never"},
        "namespaces": {"agents": {"name": AGENTS, "keep": False}},
        "operator": {"image": {"tag": TAG}, "logFormat": "text"},
        "agent": {"image": {"tag": TAG}, "terminationGraceSeconds": 20},
        "limits": {"startSeconds": 60, "uploadSeconds": 20, "busySeconds": 600},
        "output": {"default": {"s3": OUTPUT}, "s3": {"allowedEndpoints": [ENDPOINT]}},
    }
    return base | {
        key: {**base.get(key, {}), **value} if isinstance(value, dict) else value
        for key, value in more.items()
    }


def install(cluster: Cluster, folder: Path, chosen: Mapping[str, Any]) -> Snapshots:
    """Install or upgrade the chart; the snapshots of its agents' namespace."""
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(dict(chosen)))
    cluster.helm_install(RELEASE, CHART, file, OPERATORS)
    add_keys(cluster, KEYS, cluster.s3_server.identities["agent"])
    return Snapshots(cluster, AGENTS)


def uninstall(cluster: Cluster) -> None:
    """Take the chart away, and its namespaces."""
    cluster.helm_uninstall(RELEASE, OPERATORS)
    cluster.kubectl("delete", "namespace", "--ignore-not-found", "--timeout=90s", AGENTS, OPERATORS)


def add_keys(cluster: Cluster, name: str, identity: Identity, *, without: str = "") -> None:
    """A credentials Secret in the agents' namespace; one key may be left out."""
    data = {
        "AWS_ACCESS_KEY_ID": identity.access_key,
        "AWS_SECRET_ACCESS_KEY": identity.secret_key,
    }
    data.pop(without, None)
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": name,
                "namespace": AGENTS,
                "labels": {LABEL_CREDENTIALS: "true"},
            },
            "stringData": data,
        }
    )
