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
