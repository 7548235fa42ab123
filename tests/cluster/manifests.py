# SPDX-License-Identifier: Apache-2.0
"""Objects that tests of the cluster share, as dictionaries."""

from pathlib import Path
from typing import Any


def shared_volume(name: str, namespace: str, folder: Path) -> list[dict[str, Any]]:
    """A ReadWriteMany volume on a folder that all nodes see, and the claim that gets it."""
    size = {"storage": "1Gi"}
    mode = ["ReadWriteMany"]
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{namespace}-{name}"},
            "spec": {
                "capacity": size,
                "accessModes": mode,
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": "",
                "hostPath": {"path": str(folder), "type": "Directory"},
                "claimRef": {"namespace": namespace, "name": name},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "accessModes": mode,
                "storageClassName": "",
                "volumeName": f"{namespace}-{name}",
                "resources": {"requests": size},
            },
        },
    ]


def pod(
    name: str,
    node: str,
    image: str,
    command: list[str],
    *,
    labels: dict[str, str] | None = None,
    host: bool = False,
    claim: str = "",
) -> dict[str, Any]:
    """A pod on one node; `host`: privileged in the node's PID and network namespaces.

    `claim` is mounted at /shared.
    """
    volumes = [{"name": "shared", "persistentVolumeClaim": {"claimName": claim}}] if claim else []
    mounts = [{"name": "shared", "mountPath": "/shared"}] if claim else []
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "hostNetwork": host,
            "hostPID": host,
            "volumes": volumes,
            "containers": [
                {
                    "name": "main",
                    "image": image,
                    "imagePullPolicy": "Never",
                    "command": command,
                    "securityContext": {"privileged": host},
                    "volumeMounts": mounts,
                }
            ],
        },
    }


def service(name: str, port: int, target: int) -> dict[str, Any]:
    """A Service for the pods with label app=NAME."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": port, "targetPort": target}]},
    }
