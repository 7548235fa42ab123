# SPDX-License-Identifier: Apache-2.0
"""Assignment: the work of one agent, from the operator.

It is passed as JSON in the environment variable KTRACE_CAPTURE of the agent's pod. It holds no
secrets: credentials are environment variables from a Secret (AWS_ACCESS_KEY_ID, ...).
"""

import hashlib
from typing import Annotated, Literal

from pydantic import Field

from ktrace_api.capture import MAX_PODS, CaptureConfig, PodUid
from ktrace_api.kubeobject import Folder
from ktrace_api.model import Model
from ktrace_api.snapshot import PvcOutput, S3Output


def uid8(uid: str) -> str:
    """The first eight characters of a UID, for names and paths."""
    return uid[:8]


def node_hash(node: str) -> str:
    """A hash of a node name with ten characters, for names and labels."""
    return hashlib.sha256(node.encode()).hexdigest()[:10]


def snapshot_folder(namespace: str, name: str, uid: str) -> str:
    """Folder of a snapshot below the prefix of an output, unique for each snapshot."""
    return f"{namespace}/{name}-{uid8(uid)}"


def node_folder(node: str) -> str:
    """Folder of a node below the snapshot's folder, named as a Hive partition."""
    return f"node={node}"


class SnapshotRef(Model):
    """Reference to the snapshot of an agent."""

    namespace: Annotated[str, Field(max_length=63)]
    name: Annotated[str, Field(max_length=253)]
    uid: Annotated[str, Field(min_length=8, max_length=64)]


class S3Target(Model):
    """A bucket and the folder of this node in it."""

    kind: Literal["s3"] = "s3"
    output: S3Output
    folder: Folder
    """Key of the node's folder below the bucket: prefix/namespace/name-uid8/node=NAME."""


class VolumeTarget(Model):
    """A mounted volume and the folder of this node in it."""

    kind: Literal["volume"] = "volume"
    output: PvcOutput
    mount: Annotated[str, Field(pattern=r"^/[A-Za-z0-9/_.-]+$", max_length=128)]
    """Mount point of the volume (of its sub_path) in the agent."""
    folder: Folder
    """Folder below the mount point: namespace/name-uid8/node=NAME."""


Target = Annotated[S3Target | VolumeTarget, Field(discriminator="kind")]


class Assignment(Model):
    """The work of one agent."""

    version: Literal[1] = 1
    snapshot: SnapshotRef
    capture: CaptureConfig
    """`capture.node` is the name of the Kubernetes node."""
    pods: Annotated[tuple[PodUid, ...], Field(max_length=MAX_PODS)] = ()
    """Record only events of these pods; empty: of all processes."""
    target: Target
    upload_seconds: Annotated[int, Field(ge=1, le=3600)] = 300
    """Maximum seconds for the delivery of the sealed bundle, including retries."""
