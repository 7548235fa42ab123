# SPDX-License-Identifier: Apache-2.0
"""A small API server in memory, with nodes whose kubelets do what the test says.

It keeps what the operator relies on: resourceVersions and the conflicts they make, unique names,
finalizers, graceful deletion, garbage collection by owner, a cache that may be late. What it
leaves out (validation, quotas, watches) is tested against the real one in tests/cluster.
"""

import copy
import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from ktrace_api.kubeobject import ObjectMeta
from ktrace_api.names import API_GROUP, API_VERSION, FINALIZER, KIND, NodeReason
from ktrace_api.result import AgentResult, Delivered
from ktrace_api.snapshot import LabelSelector
from ktrace_api.status import NodeResult, SnapshotStatus
from ktrace_operator.errors import AlreadyExists, ApiError, Conflict, Denied, NotFound, Unavailable
from ktrace_operator.objects import AgentPod, Claim, Node, Secret, TargetPod
from ktrace_operator.serve.reconcile import Reconciler, SnapshotKey
from ktrace_operator.settings import AgentSettings, Limits, OutputSettings, Settings

START = datetime(2026, 1, 24, 21, 57, 54, tzinfo=UTC)
NAMESPACE = "ktrace-agents"
SHA = "ab" * 32


class Crash(BaseException):
    """The operator's process died."""


def stamp(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")


def settings(**changes: Any) -> Settings:
    base: dict[str, Any] = {
        "namespaces": (NAMESPACE,),
        "agent": AgentSettings(image="example/ktrace-agent:1", platforms=("linux/amd64",)),
        "limits": Limits(),
        "output": OutputSettings.model_validate({"default": {"s3": {"bucket": "bundles"}}}),
    }
    return Settings(**(base | changes))


class ApiModel:
    """State of the cluster, and everything that ever happened to it that a test asks about."""

    def __init__(self) -> None:
        self.now = START
        self.snapshots: dict[tuple[str, str], dict[str, Any]] = {}
        self.pods: dict[tuple[str, str], dict[str, Any]] = {}
        self.cached_pods: list[AgentPod] = []
        self.nodes: dict[str, Node] = {}
        self.targets: list[TargetPod] = []
        self.secrets: dict[str, Secret] = {}
        self.claims: dict[str, Claim] = {}
        self.events: list[dict[str, Any]] = []
        self.closed: set[str] = set()
        """Namespaces in which the operator has no rights (any more)."""
        self.refusal: ApiError | None = None
        """What the creation of a pod is answered with; None: it is taken."""
        self.leader: str | None = None
        """The one client that may write; None: all may."""
        self.created: Counter[tuple[str, str]] = Counter()
        """Pods that were ever created, by snapshot UID and name."""
        self.status_writes: Counter[str] = Counter()
        self.writes = 0
        self.statuses: list[tuple[str, SnapshotStatus]] = []
        """Every status that was ever written, by UID."""
        self._version = 1
        self._uids = 0

    # Users

    def apply(self, name: str, spec: dict[str, Any], **metadata: Any) -> SnapshotKey:
        self._uids += 1
        self.snapshots[NAMESPACE, name] = {
            "apiVersion": f"{API_GROUP}/{API_VERSION}",
            "kind": KIND,
            "metadata": {
                "name": name,
                "namespace": NAMESPACE,
                "uid": f"{self._uids:08x}-0000-4000-8000-000000000000",
                "generation": 1,
                "resourceVersion": self.version(),
                "creationTimestamp": stamp(self.now),
                **metadata,
            },
            "spec": spec,
            "status": {"observedGeneration": -1},
        }
        return SnapshotKey(NAMESPACE, name)

    def stop(self, key: SnapshotKey) -> None:
        found = self.snapshots[key]
        found["spec"]["stop"] = True
        found["metadata"]["generation"] += 1
        found["metadata"]["resourceVersion"] = self.version()

    def delete_snapshot(self, key: SnapshotKey) -> None:
        """As `kubectl delete`: gone at once, its pods follow."""
        uid = self.snapshots.pop(key)["metadata"]["uid"]
        for pod in list(self.pods.values()):
            if any(owner["uid"] == uid for owner in pod["metadata"]["ownerReferences"]):
                self.delete_pod(pod)

    def status(self, key: SnapshotKey) -> SnapshotStatus:
        return SnapshotStatus.model_validate(self.snapshots[key]["status"])

    def node(
        self, name: str, *, ready: bool = True, platform: str = "linux/amd64", **labels: str
    ) -> None:
        because = "" if ready else "NodeStatusUnknown"
        self.nodes[name] = Node(name, labels, ready, because, *platform.split("/"))

    # Kubelets

    def pod_of(self, node: str) -> dict[str, Any]:
        return next(pod for pod in self.pods.values() if node_of(pod) == node)

    def agents_of(self, key: SnapshotKey) -> list[dict[str, Any]]:
        """Pods of the snapshots of this name."""
        pods = self.pods.values()
        return [pod for pod in pods if pod["metadata"]["labels"]["ktrace.io/snapshot"] == key.name]

    def start(self, pod: dict[str, Any], clock: datetime | None = None) -> None:
        """clock: what time it is on the node, None: what time it is."""
        pod["spec"]["nodeName"] = node_of(pod)
        self._state(pod, {"running": {"startedAt": stamp(clock or self.now)}}, "Running")

    def wait(self, pod: dict[str, Any], reason: str) -> None:
        pod["spec"]["nodeName"] = node_of(pod)
        self._state(pod, {"waiting": {"reason": reason, "message": "as it is"}}, "Pending")

    def end(self, pod: dict[str, Any], message: str, code: int, reason: str = "Error") -> None:
        started = self.now
        for one in pod["status"].get("containerStatuses", ()):
            if "running" in one["state"]:
                started = datetime.fromisoformat(one["state"]["running"]["startedAt"])
        terminated = {
            "exitCode": code,
            "reason": "Completed" if code == 0 else reason,
            "message": message,
            "startedAt": stamp(started),
            "finishedAt": stamp(self.now),
        }
        self._state(pod, {"terminated": terminated}, "Failed" if code else "Succeeded")
        if pod["metadata"].get("deletionTimestamp"):
            pod["metadata"]["deletionGracePeriodSeconds"] = 0
            self._collect(pod)

    def succeed(self, pod: dict[str, Any]) -> None:
        self.end(pod, good_result(pod), 0)

    def delete_pod(self, pod: dict[str, Any]) -> None:
        """As the API server: SIGTERM and a grace period if a kubelet has it, else none."""
        metadata = pod["metadata"]
        if "deletionTimestamp" in metadata:
            return
        bound, over = pod["spec"].get("nodeName"), pod["status"]["phase"] in ("Succeeded", "Failed")
        grace = pod["spec"]["terminationGracePeriodSeconds"] if bound and not over else 0
        metadata["deletionTimestamp"] = stamp(self.now + timedelta(seconds=grace))
        metadata["deletionGracePeriodSeconds"] = grace
        metadata["resourceVersion"] = self.version()
        self._collect(pod)

    def strip(self, pod: dict[str, Any]) -> None:
        """Somebody with too many rights forces a pod away."""
        self.pods.pop((pod["metadata"]["namespace"], pod["metadata"]["name"]), None)

    def lose_node(self, name: str) -> None:
        """The node object goes, and the pod garbage collector ends its pods."""
        del self.nodes[name]
        for pod in list(self.pods.values()):
            if node_of(pod) == name and pod["spec"].get("nodeName"):
                pod["status"]["phase"] = "Failed"
                pod["metadata"].setdefault("deletionTimestamp", stamp(self.now))
                pod["metadata"]["deletionGracePeriodSeconds"] = 0
                self._collect(pod)

    def sync(self) -> None:
        """The API server's cache is up to date."""
        self.cached_pods = [AgentPod.of(pod) for pod in self.pods.values()]

    def version(self) -> str:
        self._version += 1
        return str(self._version)

    def _state(self, pod: dict[str, Any], state: dict[str, Any], phase: str) -> None:
        pod["status"]["phase"] = phase
        pod["status"]["containerStatuses"] = [{"name": "agent", "state": state}]
        pod["metadata"]["resourceVersion"] = self.version()

    def _collect(self, pod: dict[str, Any]) -> None:
        metadata = pod["metadata"]
        if metadata.get("deletionGracePeriodSeconds") == 0 and not metadata["finalizers"]:
            self.pods.pop((metadata["namespace"], metadata["name"]), None)

    def collect(self, pod: dict[str, Any]) -> None:
        self._collect(pod)


def node_of(pod: dict[str, Any]) -> str:
    term = pod["spec"]["affinity"]["nodeAffinity"]
    term = term["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"][0]
    return str(term["matchFields"][0]["values"][0])


def assigned(pod: dict[str, Any]) -> dict[str, Any]:
    environment = pod["spec"]["containers"][0]["env"]
    return json.loads(next(one["value"] for one in environment if one["name"] == "KTRACE_CAPTURE"))


def good_result(pod: dict[str, Any], **changes: Any) -> str:
    node = node_of(pod)
    fields: dict[str, Any] = {
        "snapshot_uid": assigned(pod)["snapshot"]["uid"],
        "node": node,
        "reason": NodeReason.COMPLETED,
        "delivered": Delivered(
            path=f"node={node}/ktrace.{node}.20260124T215754Z.bundle.tgz", bytes=4711, sha256=SHA
        ),
        "events": 97,
        "complete": True,
        "ended_by": "duration",
    }
    return AgentResult(**(fields | changes)).to_message().decode()


class ModelKube:
    """The face of kube.Kube onto the model, for one process of the operator."""

    def __init__(self, model: ApiModel, name: str = "operator") -> None:
        self._model, self.name = model, name
        self.crash_after: int | None = None
        """Writes that still succeed before the process dies."""
        self.before_write: Callable[[], None] = lambda: None

    def _write(self) -> None:
        if self.crash_after == 0:
            raise Crash
        self.before_write()
        if self._model.leader not in (None, self.name):
            raise Unavailable("the Lease was not renewed in time")
        if self.crash_after is not None:
            self.crash_after -= 1
        self._model.writes += 1

    def snapshot(self, namespace: str, name: str) -> dict[str, Any] | None:
        return copy.deepcopy(self._model.snapshots.get((namespace, name)))

    def write_status(self, metadata: ObjectMeta, status: SnapshotStatus) -> None:
        self._write()
        found = self._model.snapshots.get((metadata.namespace, metadata.name))
        if found is None:
            raise NotFound("no such snapshot")
        mine = (metadata.uid, metadata.resource_version)
        if mine != (found["metadata"]["uid"], found["metadata"]["resourceVersion"]):
            raise Conflict("the snapshot was changed")
        found["status"] |= json.loads(json.dumps(status.to_json()))
        found["metadata"]["resourceVersion"] = self._model.version()
        self._model.status_writes[metadata.uid] += 1
        self._model.statuses.append((metadata.uid, status))

    def delete_snapshot(self, metadata: ObjectMeta) -> None:
        self._write()
        found = self._model.snapshots.get((metadata.namespace, metadata.name))
        if found and found["metadata"]["uid"] == metadata.uid:
            self._model.delete_snapshot(SnapshotKey(metadata.namespace, metadata.name))

    def agents(
        self, namespace: str, snapshot: str | None = None, *, fresh: bool = True
    ) -> list[AgentPod]:
        if namespace in self._model.closed:
            raise Denied(f"GET pods of {namespace}: 403: forbidden", 403)
        if fresh:
            found = [AgentPod.of(pod) for pod in self._model.pods.values()]
        else:
            found = self._model.cached_pods
        return [
            pod for pod in found if pod.namespace == namespace and snapshot in (None, pod.snapshot)
        ]

    def create_agent(self, manifest: dict[str, Any]) -> bool:
        self._write()
        if self._model.refusal is not None:
            raise self._model.refusal
        pod = copy.deepcopy(manifest)
        metadata = pod["metadata"]
        key = (metadata["namespace"], metadata["name"])
        if (there := self._model.pods.get(key)) is not None:
            if there["metadata"]["labels"] == metadata["labels"]:
                return False
            raise AlreadyExists("another pod has this name")
        self._model._uids += 1
        metadata |= {
            "uid": f"pod-{self._model._uids}",
            "creationTimestamp": stamp(self._model.now),
            "resourceVersion": self._model.version(),
        }
        pod["status"] = {"phase": "Pending"}
        self._model.pods[key] = pod
        self._model.created[metadata["labels"]["ktrace.io/snapshot-uid"], metadata["name"]] += 1
        return True

    def release(self, pod: AgentPod) -> None:
        self._write()
        found = self._model.pods.get((pod.namespace, pod.name))
        if found is None or found["metadata"]["uid"] != pod.uid:
            return
        if found["metadata"]["finalizers"] != list(pod.finalizers):
            raise Conflict("finalizers changed")
        found["metadata"]["finalizers"] = [one for one in pod.finalizers if one != FINALIZER]
        self._model.collect(found)

    def delete_agent(self, pod: AgentPod, grace: timedelta | None = None) -> None:
        self._write()
        found = self._model.pods.get((pod.namespace, pod.name))
        if found is not None and found["metadata"]["uid"] == pod.uid:
            self._model.delete_pod(found)

    def nodes(self, selector: LabelSelector | None = None) -> list[Node]:
        nodes = self._model.nodes.values()
        return [one for one in nodes if selector is None or selector.matches(dict(one.labels))]

    def node(self, name: str) -> Node | None:
        return self._model.nodes.get(name)

    def target_pods(self, namespace: str, selector: LabelSelector) -> list[TargetPod]:
        return list(self._model.targets)

    def secret(self, namespace: str, name: str) -> Secret | None:
        return self._model.secrets.get(name)

    def claim(self, namespace: str, name: str) -> Claim | None:
        return self._model.claims.get(name)

    def create_event(self, event: dict[str, Any]) -> None:
        self._write()
        self._model.events.append(event)


class Operator:
    """One process: it forgets everything when it dies."""

    def __init__(self, model: ApiModel, name: str = "operator", **changes: Any) -> None:
        self.kube = ModelKube(model, name)
        self._model, self.settings = model, settings(**changes)
        self.reconciler = Reconciler(
            self.kube,  # type: ignore[arg-type]  # the same face
            self.settings,
            clock=lambda: model.now,
            at_once=1,
        )

    def look(self, key: SnapshotKey) -> timedelta | None:
        return self.reconciler.reconcile(key)

    def settle(self, key: SnapshotKey, looks: int = 50) -> timedelta | None:
        """Looks until there is nothing to do at once; the queue's part."""
        for _ in range(looks):
            self._model.sync()
            try:
                after = self.look(key)
            except Conflict:
                continue
            if after is None or after > timedelta(0):
                return after
        raise AssertionError("the operator does not come to rest")

    def close(self) -> None:
        self.reconciler.close()


Run = Callable[..., Operator]
"""Starts a process of the operator with these settings."""


def result(status: SnapshotStatus, node: str) -> NodeResult:
    return next(one for one in status.results if one.node == node)


def names(*nodes: str) -> dict[str, Any]:
    return {"nodes": {"names": list(nodes)}}


def later(model: ApiModel, seconds: float) -> None:
    model.now += timedelta(seconds=seconds)


def begun(
    model: ApiModel,
    operator: Operator,
    name: str,
    spec: dict[str, Any],
    *,
    clock: datetime | None = None,
    **metadata: Any,
) -> SnapshotKey:
    """A snapshot whose agents have all started, which the operator has not seen yet.

    clock: what time it is on their nodes, None: what time it is.
    """
    key = model.apply(name, spec, **metadata)
    operator.settle(key)
    for pod in model.agents_of(key):
        model.start(pod, clock)
    return key


def goes_on(model: ApiModel, operator: Operator, key: SnapshotKey, seconds: int, each: int = 64):
    """Time passes on kubelets that work; each agent delivers after `each` seconds."""
    for _ in range(0, seconds, 5):
        for pod in model.agents_of(key):
            if pod["status"]["phase"] == "Pending":
                model.start(pod)
            elif model.now >= AgentPod.of(pod).created + timedelta(seconds=each):
                model.succeed(pod)
        operator.settle(key)
        later(model, 5)
