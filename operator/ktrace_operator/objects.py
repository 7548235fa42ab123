# SPDX-License-Identifier: Apache-2.0
"""The few fields of the API server's objects that the operator needs.

The status of an agent pod comes from a node, which may be hostile. So types are checked and texts
are truncated.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ktrace_api.names import (
    AGENT_CONTAINER,
    FINALIZER,
    LABEL_CREDENTIALS,
    LABEL_NODE,
    LABEL_SNAPSHOT,
    LABEL_SNAPSHOT_UID,
)

Raw = Mapping[str, Any]

_LABEL_OS, _LABEL_ARCH = "kubernetes.io/os", "kubernetes.io/arch"
_STATIC_POD_HASH = "kubernetes.io/config.hash"
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def time_of(value: object) -> datetime | None:
    """Parses a time in the API server's format; None for anything else."""
    if not isinstance(value, str):
        return None
    try:
        read = datetime.fromisoformat(value)
    except ValueError:
        return None
    return read if read.tzinfo else read.replace(tzinfo=UTC)


def text_of(value: object, limit: int = 200) -> str:
    """An untrusted text on one line, truncated to `limit` characters."""
    if not isinstance(value, str):
        return ""
    line = _CONTROL_CHARACTERS.sub(" ", value).strip()
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _map(value: object) -> Raw:
    return value if isinstance(value, Mapping) else {}


def _maps(value: object) -> list[Raw]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _texts(value: object) -> dict[str, str]:
    return {key: one for key, one in _map(value).items() if isinstance(one, str)}


@dataclass(frozen=True, slots=True)
class Waiting:
    """State of a container that has not started."""

    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Running:
    """State of a running container."""

    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Terminated:
    """State of a container that has ended or failed to start."""

    exit_code: int = 0
    reason: str = ""
    message: str = ""
    """Unchanged termination message: an AgentResult, or any text."""
    started: datetime | None = None
    finished: datetime | None = None


@dataclass(frozen=True, slots=True)
class AgentPod:
    """The pod of one agent."""

    namespace: str
    name: str
    uid: str
    created: datetime
    snapshot: str = ""
    snapshot_uid: str = ""
    node_hash: str = ""
    node_name: str = ""
    """Node that the pod is bound to; empty before scheduling."""
    deleting: datetime | None = None
    """metadata.deletionTimestamp: the time of the request plus the grace period."""
    finalizers: tuple[str, ...] = ()
    phase: str = ""
    reason: str = ""
    message: str = ""
    unschedulable: str | None = None
    """Message of the scheduler if the pod cannot be scheduled."""
    container: Waiting | Running | Terminated | None = None

    @property
    def held(self) -> bool:
        """Whether it has the operator's finalizer."""
        return FINALIZER in self.finalizers

    @property
    def over(self) -> bool:
        """Whether its container has terminated, which is final."""
        return isinstance(self.container, Terminated)

    @property
    def phase_ended(self) -> bool:
        return self.phase in ("Succeeded", "Failed")

    @classmethod
    def of(cls, raw: Raw) -> "AgentPod":
        """Parses a Pod object."""
        metadata, status = _map(raw.get("metadata")), _map(raw.get("status"))
        labels = _texts(metadata.get("labels"))
        return cls(
            namespace=str(metadata.get("namespace", "")),
            name=str(metadata.get("name", "")),
            uid=str(metadata.get("uid", "")),
            created=time_of(metadata.get("creationTimestamp")) or datetime.fromtimestamp(0, UTC),
            snapshot=labels.get(LABEL_SNAPSHOT, ""),
            snapshot_uid=labels.get(LABEL_SNAPSHOT_UID, ""),
            node_hash=labels.get(LABEL_NODE, ""),
            node_name=str(_map(raw.get("spec")).get("nodeName") or ""),
            deleting=time_of(metadata.get("deletionTimestamp")),
            finalizers=tuple(str(one) for one in metadata.get("finalizers") or ()),
            phase=text_of(status.get("phase")),
            reason=text_of(status.get("reason")),
            message=text_of(status.get("message")),
            unschedulable=_unschedulable(status),
            container=_container(status),
        )


def _unschedulable(status: Raw) -> str | None:
    for condition in _maps(status.get("conditions")):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            if condition.get("reason") == "Unschedulable":
                return text_of(condition.get("message")) or "no reason reported"
            return None
    return None


def _container(status: Raw) -> Waiting | Running | Terminated | None:
    for one in _maps(status.get("containerStatuses")):
        if one.get("name") != AGENT_CONTAINER:
            continue
        state = _map(one.get("state"))
        if "terminated" in state:
            return _terminated(_map(state["terminated"]))
        if "running" in state:
            return Running(time_of(_map(state["running"]).get("startedAt")))
        if "waiting" in state:
            waiting = _map(state["waiting"])
            return Waiting(text_of(waiting.get("reason")), text_of(waiting.get("message")))
    return None


def _terminated(state: Raw) -> Terminated:
    code, message = state.get("exitCode"), state.get("message")
    return Terminated(
        exit_code=code if isinstance(code, int) else -1,
        reason=text_of(state.get("reason")),
        message=message if isinstance(message, str) else "",
        started=time_of(state.get("startedAt")),
        finished=time_of(state.get("finishedAt")),
    )


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    ready: bool = True
    not_ready_because: str = ""
    """Reason of its Ready condition if that is not True."""
    os: str = ""
    """Operating system in the words of Go (`linux`, `windows`); "" if unknown."""
    architecture: str = ""
    """Architecture in the words of Go (`amd64`, `arm64`); "" if unknown."""

    @property
    def platform(self) -> str:
        """`linux/arm64`."""
        return f"{self.os or 'unknown'}/{self.architecture or 'unknown'}"

    @classmethod
    def of(cls, raw: Raw) -> "Node":
        """Parses a Node object. Without a Ready condition, the node is not ready.

        The kubelet reports the platform in status.nodeInfo, and sets the labels when the node is
        registered. Labels can be changed by hand, so they count only if nodeInfo is empty.
        """
        metadata, status = _map(raw.get("metadata")), _map(raw.get("status"))
        ready = next(
            (one for one in _maps(status.get("conditions")) if one.get("type") == "Ready"), {}
        )
        labels, info = _texts(metadata.get("labels")), _map(status.get("nodeInfo"))
        return cls(
            name=str(metadata.get("name", "")),
            labels=labels,
            ready=ready.get("status") == "True",
            not_ready_because=text_of(ready.get("reason")) or "NodeStatusNeverUpdated",
            os=text_of(info.get("operatingSystem"), 63) or labels.get(_LABEL_OS, ""),
            architecture=text_of(info.get("architecture"), 63) or labels.get(_LABEL_ARCH, ""),
        )


@dataclass(frozen=True, slots=True)
class TargetPod:
    """A pod that a snapshot selects."""

    name: str
    node: str
    uids: tuple[str, ...]
    """UIDs that identify its processes on the node."""

    @classmethod
    def of(cls, raw: Raw) -> "TargetPod | None":
        """Parses a Pod object; None if it is not bound to a node or has ended.

        A node knows a static pod by the hash of its configuration. That annotation is trusted in
        kube-system only: elsewhere the author of a pod could name the UID of another pod.
        """
        metadata, status = _map(raw.get("metadata")), _map(raw.get("status"))
        node = _map(raw.get("spec")).get("nodeName")
        if not node or status.get("phase") in ("Succeeded", "Failed"):
            return None
        uids = [str(metadata.get("uid", ""))]
        static = _texts(metadata.get("annotations")).get(_STATIC_POD_HASH, "")
        if metadata.get("namespace") == "kube-system" and re.fullmatch(r"[0-9a-f]{32}", static):
            uids.append(static)
        return cls(str(metadata.get("name", "")), str(node), tuple(uids))


@dataclass(frozen=True, slots=True)
class Secret:
    """A Secret without its data."""

    name: str
    usable: bool
    """Whether its label allows snapshots to use it."""

    @classmethod
    def of(cls, raw: Raw) -> "Secret":
        """Parses a PartialObjectMetadata."""
        metadata = _map(raw.get("metadata"))
        labels = _texts(metadata.get("labels"))
        return cls(str(metadata.get("name", "")), labels.get(LABEL_CREDENTIALS) == "true")


@dataclass(frozen=True, slots=True)
class Claim:
    """A PersistentVolumeClaim."""

    name: str
    access_modes: tuple[str, ...]
    phase: str = ""
    deleting: bool = False

    @classmethod
    def of(cls, raw: Raw) -> "Claim":
        """Parses a PersistentVolumeClaim object."""
        metadata, status = _map(raw.get("metadata")), _map(raw.get("status"))
        return cls(
            str(metadata.get("name", "")),
            tuple(str(one) for one in _map(raw.get("spec")).get("accessModes") or ()),
            text_of(status.get("phase")),
            deleting=metadata.get("deletionTimestamp") is not None,
        )
