# SPDX-License-Identifier: Apache-2.0
"""Typed calls to the API server. No other module of the operator reads or writes objects there.

RIGHTS lists the permissions that all calls need. A test compares the chart's roles with it.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal, NamedTuple, TypeVar
from urllib.parse import quote

from ktrace_api.kubeobject import ObjectMeta
from ktrace_api.names import (
    AGENT_APP,
    API_GROUP,
    API_VERSION,
    FINALIZER,
    LABEL_APP,
    LABEL_MANAGED_BY,
    LABEL_SNAPSHOT,
    MANAGER,
    PLURAL,
)
from ktrace_api.snapshot import LabelSelector
from ktrace_api.status import SnapshotStatus
from ktrace_operator.errors import AlreadyExists, Conflict, Expired, NotFound
from ktrace_operator.kube.transport import (
    JSON,
    JSON_PATCH,
    MERGE_PATCH,
    METADATA_LIST,
    METADATA_ONLY,
    Transport,
)
from ktrace_operator.objects import AgentPod, Claim, Node, Raw, Secret, TargetPod
from ktrace_operator.timeouts import WRITE_SECONDS

T = TypeVar("T")

PAGE = 250
"""Objects per page of a list."""
AGENT_SELECTOR = f"{LABEL_APP}={AGENT_APP},{LABEL_MANAGED_BY}={MANAGER}"

Scope = Literal["served", "own", "targets", "cluster"]


class Right(NamedTuple):
    """A permission that the operator needs."""

    group: str
    resource: str
    verb: str
    scope: Scope
    """`served`: each of settings.namespaces; `own`: the Lease's namespace; `targets`: namespaces
    of pods that `nodes.pods` may name; `cluster`: cluster-scoped."""


_GRANTS: tuple[tuple[str, str, str, Scope], ...] = (
    (API_GROUP, PLURAL, "get list watch delete", "served"),
    (API_GROUP, f"{PLURAL}/status", "patch", "served"),
    ("", "pods", "get list watch create patch delete", "served"),
    ("", "secrets", "get", "served"),
    ("", "persistentvolumeclaims", "get", "served"),
    ("events.k8s.io", "events", "create", "served"),
    ("", "pods", "list", "targets"),
    ("", "nodes", "get list", "cluster"),
    ("coordination.k8s.io", "leases", "get create update", "own"),
)
RIGHTS = frozenset(
    Right(group, resource, verb, scope)
    for group, resource, verbs, scope in _GRANTS
    for verb in verbs.split()
)
"""Permissions for all calls of this module, and for the watches of kopf."""


def selector_text(selector: LabelSelector) -> str:
    """A selector in the syntax of the query parameter labelSelector."""
    parts = [f"{key}={value}" for key, value in sorted(selector.match_labels.items())]
    for one in selector.match_expressions:
        match one.operator:
            case "In" | "NotIn":
                parts.append(f"{one.key} {one.operator.lower()} ({','.join(one.values)})")
            case "Exists":
                parts.append(one.key)
            case "DoesNotExist":
                parts.append(f"!{one.key}")
    return ",".join(parts)


class Kube:
    """Typed, blocking calls. Each raises the subclasses of ApiError (errors.py)."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    # Snapshots

    def snapshot(self, namespace: str, name: str) -> dict[str, Any] | None:
        """The current object; None if it does not exist."""
        try:
            return self._transport.read(f"{_snapshots(namespace)}/{quote(name)}")
        except NotFound:
            return None

    def versions(self, namespace: str) -> dict[str, str]:
        """Name -> resourceVersion of a namespace's snapshots, from the API server's cache."""
        found = self._list(_snapshots(namespace), _version, cached=True, accept=METADATA_LIST)
        return dict(found)

    def traced(self, namespace: str) -> set[str]:
        """Names of snapshots that have agent pods, from the API server's cache."""
        query = {"labelSelector": AGENT_SELECTOR}
        pods = _pods(namespace)
        return set(self._list(pods, _snapshot_of, query, cached=True, accept=METADATA_LIST))

    def write_status(self, metadata: ObjectMeta, status: SnapshotStatus) -> None:
        """Writes the whole status. Raises Conflict if the object changed since it was read."""
        body = {
            "metadata": {"uid": metadata.uid, "resourceVersion": metadata.resource_version},
            "status": status.to_json(),
        }
        path = f"{_snapshots(metadata.namespace)}/{quote(metadata.name)}/status"
        self._transport.write("PATCH", path, body, MERGE_PATCH)

    def delete_snapshot(self, metadata: ObjectMeta) -> None:
        """Deletes the snapshot if it has not changed since it was read."""
        path = f"{_snapshots(metadata.namespace)}/{quote(metadata.name)}"
        preconditions = {"uid": metadata.uid, "resourceVersion": metadata.resource_version}
        self._delete(path, preconditions)

    # Agents

    def agents(
        self, namespace: str, snapshot: str | None = None, *, fresh: bool = True
    ) -> list[AgentPod]:
        """Agent pods of a namespace, or of the snapshots of one name in it.

        fresh: read them from etcd instead of the API server's cache.
        """
        selector = AGENT_SELECTOR + (f",{LABEL_SNAPSHOT}={snapshot}" if snapshot else "")
        query = {"labelSelector": selector}
        return self._list(_pods(namespace), AgentPod.of, query, cached=not fresh)

    def create_agent(self, manifest: Raw) -> bool:
        """Creates a pod. Returns False if it exists already.

        Raises AlreadyExists if a pod with other labels has its name.
        """
        metadata = manifest["metadata"]
        try:
            self._transport.write("POST", _pods(metadata["namespace"]), manifest)
        except AlreadyExists:
            there = self._transport.read(f"{_pods(metadata['namespace'])}/{metadata['name']}")
            if (there["metadata"].get("labels") or {}).items() >= metadata["labels"].items():
                return False
            raise
        return True

    def release(self, pod: AgentPod) -> None:
        """Removes the operator's finalizer only. Raises Conflict if the finalizers have changed."""
        rest = [one for one in pod.finalizers if one != FINALIZER]
        patch = [
            {"op": "test", "path": "/metadata/uid", "value": pod.uid},
            {"op": "test", "path": "/metadata/finalizers", "value": list(pod.finalizers)},
            {"op": "replace", "path": "/metadata/finalizers", "value": rest},
        ]
        try:
            self._transport.write("PATCH", f"{_pods(pod.namespace)}/{pod.name}", patch, JSON_PATCH)
        except NotFound:
            return

    def delete_agent(self, pod: AgentPod, grace: timedelta | None = None) -> None:
        """Deletes exactly this pod: SIGTERM, then SIGKILL after `grace` (None: the pod's value)."""
        self._delete(f"{_pods(pod.namespace)}/{pod.name}", {"uid": pod.uid}, grace)

    # Objects that a spec names

    def nodes(self, selector: LabelSelector | None = None) -> list[Node]:
        """Nodes that match a selector; all nodes if it is None."""
        text = selector_text(selector) if selector else ""
        query = {"labelSelector": text} if text else {}
        return self._list("/api/v1/nodes", Node.of, query)

    def node(self, name: str) -> Node | None:
        """One node; None if it does not exist."""
        try:
            return Node.of(self._transport.read(f"/api/v1/nodes/{quote(name)}"))
        except NotFound:
            return None

    def target_pods(self, namespace: str, selector: LabelSelector) -> list[TargetPod]:
        """Pods that match a selector, are bound to a node and have not ended."""
        text = selector_text(selector)
        query = {"labelSelector": text} if text else {}
        pods = self._list(_pods(namespace), TargetPod.of, query)
        return [pod for pod in pods if pod is not None]

    def secret(self, namespace: str, name: str) -> Secret | None:
        """Metadata of a Secret, without its data; None if it does not exist."""
        path = f"/api/v1/namespaces/{quote(namespace)}/secrets/{quote(name)}"
        try:
            return Secret.of(self._transport.read(path, accept=METADATA_ONLY))
        except NotFound:
            return None

    def claim(self, namespace: str, name: str) -> Claim | None:
        """A PersistentVolumeClaim; None if it does not exist."""
        path = f"/api/v1/namespaces/{quote(namespace)}/persistentvolumeclaims/{quote(name)}"
        try:
            return Claim.of(self._transport.read(path))
        except NotFound:
            return None

    # Events and the Lease

    def create_event(self, event: Raw) -> None:
        """Creates an events.k8s.io/v1 Event."""
        namespace = quote(event["metadata"]["namespace"])
        self._transport.write(
            "POST", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events", event
        )

    def lease(self, namespace: str, name: str) -> dict[str, Any] | None:
        """The Lease; None if it does not exist."""
        try:
            return self._transport.read(
                f"{_leases(namespace)}/{quote(name)}", timeout=WRITE_SECONDS
            )
        except NotFound:
            return None

    def write_lease(self, lease: Raw) -> dict[str, Any]:
        """Creates the Lease, or replaces exactly the version that was read (resourceVersion)."""
        metadata = lease["metadata"]
        path = _leases(metadata["namespace"])
        if "resourceVersion" not in metadata:
            return self._transport.write_unfenced("POST", path, lease)
        return self._transport.write_unfenced("PUT", f"{path}/{quote(metadata['name'])}", lease)

    def _delete(
        self, path: str, preconditions: dict[str, str], grace: timedelta | None = None
    ) -> None:
        options: dict[str, Any] = {"preconditions": preconditions}
        if grace is not None:
            options["gracePeriodSeconds"] = int(grace.total_seconds())
        try:
            self._transport.write("DELETE", path, options)
        except (NotFound, Conflict):
            return  # deleted already, or another object has its name: the next plan handles both

    def _list(
        self,
        path: str,
        parse: Callable[[Raw], T],
        query: dict[str, str] | None = None,
        *,
        cached: bool = False,
        accept: str = JSON,
    ) -> list[T]:
        """All objects of a list, page by page. An expired list is read once more as a whole."""
        query = dict(query or {}) | {"limit": str(PAGE)}
        if cached:
            query["resourceVersion"] = "0"
        try:
            return self._pages(path, parse, query, accept)
        except Expired:
            query.pop("limit")
            return self._pages(path, parse, query, accept)

    def _pages(
        self, path: str, parse: Callable[[Raw], T], query: dict[str, str], accept: str
    ) -> list[T]:
        found: list[T] = []
        while True:
            answer = self._transport.read(path, query, accept)
            found += [parse(raw) for raw in answer.get("items") or ()]
            token = (answer.get("metadata") or {}).get("continue")
            if not token:
                return found
            query = {key: value for key, value in query.items() if key != "resourceVersion"}
            query["continue"] = token


def _version(raw: Raw) -> tuple[str, str]:
    return str(raw["metadata"]["name"]), str(raw["metadata"]["resourceVersion"])


def _snapshot_of(raw: Raw) -> str:
    return str((raw["metadata"].get("labels") or {}).get(LABEL_SNAPSHOT, ""))


def _snapshots(namespace: str) -> str:
    return f"/apis/{API_GROUP}/{API_VERSION}/namespaces/{quote(namespace)}/{PLURAL}"


def _pods(namespace: str) -> str:
    return f"/api/v1/namespaces/{quote(namespace)}/pods"


def _leases(namespace: str) -> str:
    return f"/apis/coordination.k8s.io/v1/namespaces/{quote(namespace)}/leases"
