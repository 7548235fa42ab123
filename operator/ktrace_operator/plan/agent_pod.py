# SPDX-License-Identifier: Apache-2.0
"""The pod of one agent.

The snapshot's author controls only values that the schema bounds: no image, command, host path,
capability or toleration.
"""

from datetime import timedelta
from typing import Any

from ktrace_api.assignment import (
    Assignment,
    S3Target,
    SnapshotRef,
    VolumeTarget,
    node_folder,
    node_hash,
    snapshot_folder,
    uid8,
)
from ktrace_api.capture import MIB, CaptureConfig
from ktrace_api.names import (
    AGENT_APP,
    AGENT_CONTAINER,
    API_GROUP,
    API_VERSION,
    CAPTURE_VARIABLE,
    FINALIZER,
    KIND,
    LABEL_APP,
    LABEL_MANAGED_BY,
    LABEL_NODE,
    LABEL_SNAPSHOT,
    LABEL_SNAPSHOT_UID,
    MANAGER,
)
from ktrace_api.snapshot import Output, SnapshotSpec, TraceSnapshot
from ktrace_operator.plan.privileges import security_context
from ktrace_operator.settings import Limits, Settings

HOST_ROOT = "/host"
HOST_FOLDERS = {"run": "/run", "log": "/var/log", "kubelet": "/var/lib/kubelet"}
"""Mounted read-only: the container runtime's socket and the names of pods are below them."""
WORK_DIR = "/var/lib/ktrace/work"
VOLUME_DIR = "/var/lib/ktrace/volume"
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
"""Keys of a credentials Secret that are passed to an agent."""

MARGIN = timedelta(seconds=30)
"""Allowance for clock differences, and for the delay until an end shows in the API server."""
_SEAL = timedelta(seconds=60)
_ROWS_PER_SECOND = 50_000
"""Rows per second that a slow node can seal."""
_RECORD_BYTES = 1024


def pod_name(snapshot: str, uid: str, node: str) -> str:
    """The only name that this node's agent can have, so that a second one cannot be created."""
    return f"{snapshot[:40].rstrip('-.')}-{uid8(uid)}-{node_hash(node)}"


def run_limit(spec: SnapshotSpec, limits: Limits) -> timedelta:
    """Maximum run time of an agent: recording, sealing and delivery."""
    sealing = _SEAL + timedelta(seconds=spec.capture.max_events / _ROWS_PER_SECOND)
    return spec.duration + sealing + timedelta(seconds=limits.upload_seconds)


def assignment(
    snapshot: TraceSnapshot, node: str, output: Output, pods: tuple[str, ...], settings: Settings
) -> Assignment:
    """The Assignment of the agent on `node`; `pods` are UIDs, none means all processes."""
    metadata = snapshot.metadata
    folder = f"{snapshot_folder(metadata.namespace, metadata.name, metadata.uid)}/"
    folder += node_folder(node)
    return Assignment(
        snapshot=SnapshotRef(namespace=metadata.namespace, name=metadata.name, uid=metadata.uid),
        capture=CaptureConfig(
            node=node,
            duration=snapshot.spec.duration,
            cri_sockets=settings.agent.cri_sockets,
            **snapshot.spec.capture.config(),
        ),
        pods=pods,
        target=_target(output, folder),
        upload_seconds=min(settings.limits.upload_seconds, 3600),
    )


def _target(output: Output, folder: str) -> S3Target | VolumeTarget:
    if output.s3 is not None:
        prefix = f"{output.s3.prefix}/" if output.s3.prefix else ""
        return S3Target(output=output.s3, folder=prefix + folder)
    assert output.pvc is not None
    return VolumeTarget(output=output.pvc, mount=VOLUME_DIR, folder=folder)


def manifest(
    snapshot: TraceSnapshot, node: str, output: Output, work: Assignment, settings: Settings
) -> dict[str, Any]:
    """The Pod object."""
    metadata, agent = snapshot.metadata, settings.agent
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": _active_deadline(snapshot.spec, settings.limits),
        "terminationGracePeriodSeconds": agent.termination_grace_seconds,
        "hostPID": True,
        "hostNetwork": True,
        "dnsPolicy": "Default",
        "enableServiceLinks": False,
        "serviceAccountName": agent.service_account,
        "automountServiceAccountToken": False,
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": _only_on(node)},
        "containers": [_container(output, work, settings)],
        "volumes": _volumes(snapshot.spec, output),
    }
    if agent.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in agent.image_pull_secrets]
    if agent.priority_class:
        spec["priorityClassName"] = agent.priority_class
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(metadata.name, metadata.uid, node),
            "namespace": metadata.namespace,
            "labels": {
                LABEL_APP: AGENT_APP,
                LABEL_MANAGED_BY: MANAGER,
                LABEL_SNAPSHOT: metadata.name,
                LABEL_SNAPSHOT_UID: metadata.uid,
                LABEL_NODE: node_hash(node),
            },
            "finalizers": [FINALIZER],
            "ownerReferences": [
                {
                    "apiVersion": f"{API_GROUP}/{API_VERSION}",
                    "kind": KIND,
                    "name": metadata.name,
                    "uid": metadata.uid,
                    "controller": True,
                    "blockOwnerDeletion": False,
                }
            ],
        },
        "spec": spec,
    }


def _active_deadline(spec: SnapshotSpec, limits: Limits) -> int:
    """The kubelet's own limit in seconds, longer than every limit that the operator enforces."""
    whole = timedelta(seconds=limits.start_seconds) + run_limit(spec, limits) + MARGIN
    return int(whole.total_seconds())


def _only_on(node: str) -> dict[str, Any]:
    fields = [{"key": "metadata.name", "operator": "In", "values": [node]}]
    return {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchFields": fields}]
        }
    }


def _container(output: Output, work: Assignment, settings: Settings) -> dict[str, Any]:
    mounts: list[dict[str, Any]] = [
        {
            "name": name,
            "mountPath": f"{HOST_ROOT}{path}",
            "readOnly": True,
            "mountPropagation": "HostToContainer",
        }
        for name, path in HOST_FOLDERS.items()
    ]
    mounts.append({"name": "work", "mountPath": WORK_DIR})
    if output.pvc is not None:
        volume = {"name": "volume", "mountPath": VOLUME_DIR}
        mounts.append(volume | ({"subPath": output.pvc.sub_path} if output.pvc.sub_path else {}))
    container: dict[str, Any] = {
        "name": AGENT_CONTAINER,
        "image": settings.agent.image,
        "imagePullPolicy": settings.agent.image_pull_policy,
        "env": [
            *_credentials(output),
            {"name": CAPTURE_VARIABLE, "value": work.model_dump_json(exclude_none=True)},
            {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "KTRACE_HOST_ROOT", "value": HOST_ROOT},
            {"name": "KTRACE_WORK_DIR", "value": WORK_DIR},
            {"name": "TMPDIR", "value": WORK_DIR},
        ],
        "resources": {
            "requests": dict(settings.agent.resources.requests),
            "limits": dict(settings.agent.resources.limits),
        },
        "securityContext": security_context(privileged=settings.agent.privileged),
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts,
    }
    return container


def _credentials(output: Output) -> list[dict[str, Any]]:
    """Environment variables from named keys of the Secret. The agent reports missing keys.

    Never the whole Secret: a key LD_PRELOAD in an agent's container would let the Secret's owner,
    who is not an administrator, run a program with the node's rights.
    """
    if output.s3 is None or not output.s3.credentials_secret:
        return []
    secret = output.s3.credentials_secret
    return [
        {
            "name": key,
            "valueFrom": {"secretKeyRef": {"name": secret, "key": key, "optional": True}},
        }
        for key in CREDENTIALS
    ]


def _volumes(spec: SnapshotSpec, output: Output) -> list[dict[str, Any]]:
    capture = spec.capture
    # The rows, the same rows as Parquet, the archive of both, and the spool of raw records.
    size = 3 * capture.max_bytes + capture.max_events * _RECORD_BYTES + 256 * MIB
    volumes: list[dict[str, Any]] = [
        {"name": name, "hostPath": {"path": path, "type": "Directory"}}
        for name, path in HOST_FOLDERS.items()
    ]
    volumes.append({"name": "work", "emptyDir": {"sizeLimit": str(size)}})
    if output.pvc is not None:
        claim = {"claimName": output.pvc.claim_name}
        volumes.append({"name": "volume", "persistentVolumeClaim": claim})
    return volumes
