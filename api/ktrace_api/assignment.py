# SPDX-License-Identifier: Apache-2.0
"""What the operator gives one agent: the capture, whose it is, and where its bundle goes.

It travels as JSON in the environment variable KTRACE_CAPTURE of the agent's pod. Secrets never
do: credentials reach the agent as environment variables from a Secret (AWS_ACCESS_KEY_ID, ...).
"""

import hashlib
from typing import Annotated, Literal

from pydantic import Field

from ktrace_api.capture import MAX_PODS, CaptureConfig, PodUid
from ktrace_api.kubeobject import Folder
from ktrace_api.model import Model
from ktrace_api.snapshot import PvcOutput, S3Output


def uid8(uid: str) -> str:
    """First eight characters of an object's UID, for names and paths."""
    return uid[:8]


def node_hash(node: str) -> str:
    """Ten characters that stand for a node's name in names and labels."""
    return hashlib.sha256(node.encode()).hexdigest()[:10]


def snapshot_folder(namespace: str, name: str, uid: str) -> str:
    """Folder of one snapshot below an output's prefix; two snapshots never share it."""
    return f"{namespace}/{name}-{uid8(uid)}"


def node_folder(node: str) -> str:
    """Folder of one node in a snapshot's, as Hive partitions are named."""
    return f"node={node}"


class SnapshotRef(Model):
    """The snapshot that an agent works for."""

    namespace: Annotated[str, Field(max_length=63)]
    name: Annotated[str, Field(max_length=253)]
    uid: Annotated[str, Field(min_length=8, max_length=64)]


class S3Target(Model):
    """A bucket, and the folder of this node in it."""

    kind: Literal["s3"] = "s3"
    output: S3Output
    folder: Folder
    """Key of the node's folder below the bucket: prefix/namespace/name-uid8/node=NAME."""


class VolumeTarget(Model):
    """A mounted volume, and the folder of this node in it."""

    kind: Literal["volume"] = "volume"
    output: PvcOutput
    mount: Annotated[str, Field(pattern=r"^/[A-Za-z0-9/_.-]+$", max_length=128)]
    """Where the volume (its sub_path) is mounted in the agent."""
    folder: Folder
    """Below the mount: namespace/name-uid8/node=NAME."""


Target = Annotated[S3Target | VolumeTarget, Field(discriminator="kind")]


class Assignment(Model):
    """One agent's work."""

    version: Literal[1] = 1
    snapshot: SnapshotRef
    capture: CaptureConfig
    """`capture.node` is the node's name in the cluster."""
    pods: Annotated[tuple[PodUid, ...], Field(max_length=MAX_PODS)] = ()
    """Keep only events of these pods; empty: of all processes."""
    target: Target
    upload_seconds: Annotated[int, Field(ge=1, le=3600)] = 300
    """Seconds that delivery may take, with all tries, after the bundle is sealed."""
