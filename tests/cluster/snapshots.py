# SPDX-License-Identifier: Apache-2.0
"""TraceSnapshots as a user and a cluster's administrator see them, and what the audit log tells."""

import json
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from kubernetes import client as kubernetes_client
from kubernetes import config as kubernetes_config

from ktrace_api.assignment import uid8
from ktrace_api.names import (
    AGENT_APP,
    API_GROUP,
    API_VERSION,
    FINALIZER,
    KIND,
    LABEL_APP,
    LABEL_SNAPSHOT,
    PLURAL,
)
from tests.bpf.workers import wait_until
from tests.cluster.cluster import NODES, Cluster

RESOURCE = f"{PLURAL}.{API_GROUP}"
PAUSE_S = 0.25

Object = dict[str, Any]


def snapshot(name: str, nodes: Sequence[str] = NODES, **spec: Any) -> Object:
    """The manifest of a short snapshot of these nodes."""
    return {
        "apiVersion": f"{API_GROUP}/{API_VERSION}",
        "kind": KIND,
        "metadata": {"name": name},
        "spec": {"nodes": {"names": list(nodes)}, "duration": "1s"} | spec,
    }


class Snapshots:
    """Those of one namespace, and the agents' pods that work for them."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self.namespace = namespace

    def create(self, name: str, nodes: Sequence[str] = NODES, **spec: Any) -> None:
        """Make one; fields of the spec by name."""
        self.kubectl("create", "-f", "-", stdin=json.dumps(snapshot(name, nodes, **spec)))

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        return self._cluster.kubectl("--namespace", self.namespace, *arguments, stdin=stdin)

    def get(self, name: str) -> Object:
        """The object as it is now."""
        return self._read(
            f"/apis/{API_GROUP}/{API_VERSION}/namespaces/{self.namespace}/{PLURAL}/{name}"
        )

    def all(self) -> list[Object]:
        """All of the namespace."""
        listed = self._read(f"/apis/{API_GROUP}/{API_VERSION}/namespaces/{self.namespace}/{PLURAL}")
        return list(listed["items"])

    def status(self, name: str) -> Object:
        """The status as it is now; empty where there is none."""
        return dict(self.get(name).get("status") or {})

    def wait(self, *names: str, seconds: float) -> None:
        """Until these (all, where none is named) are Finished, well or not."""
        which = [f"{RESOURCE}/{name}" for name in names] or [RESOURCE, "--all"]
        self.kubectl("wait", "--for=condition=Finished", f"--timeout={seconds:g}s", *which)

    def end_of(self, name: str, seconds: float) -> Object:
        """The status at the end."""
        self.wait(name, seconds=seconds)
        return self.status(name)

    def pods(self, name: str = "") -> list[Object]:
        """The agents' pods, of one snapshot or of all."""
        selector = f"{LABEL_APP}={AGENT_APP}" + (f",{LABEL_SNAPSHOT}={name}" if name else "")
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        return list(self._read(path, {"labelSelector": selector})["items"])

    def pod(self, name: str, node: str) -> Object | None:
        """The pod of one node's agent, once it is bound to the node."""
        return next((one for one in self.pods(name) if one["spec"].get("nodeName") == node), None)

    def running_pod(self, name: str, node: str, seconds: float = 60) -> Object:
        """The pod of one node's agent, once its container runs."""

        def running() -> Object | None:
            pod = self.pod(name, node)
            states = (
                one["state"]
                for one in (pod or {"status": {}})["status"].get("containerStatuses", ())
            )
            return pod if any("running" in state for state in states) else None

        return dict(wait_until(running, f"an agent of {name} on {node}", seconds, PAUSE_S))

    def wait_gone(self, seconds: float = 60) -> None:
        """Until no agent's pod is left in the namespace."""
        wait_until(
            lambda: not self.pods(), f"the end of pods in {self.namespace}", seconds, PAUSE_S
        )

    def held(self) -> list[str]:
        """Pods that the operator's finalizer keeps."""
        return [
            one["metadata"]["name"]
            for one in self.pods()
            if FINALIZER in one["metadata"].get("finalizers", ())
        ]

    def created_pods(self) -> Counter[str]:
        """Name of each agent's pod that was ever made here -> how often, by the audit log."""
        return Counter(
            event["objectRef"]["name"]
            for event in self._cluster.audit()
            if event["verb"] == "create"
            and event["responseStatus"]["code"] == 201
            and event["objectRef"].get("resource") == "pods"
            and not event["objectRef"].get("subresource")
            and event["objectRef"].get("namespace") == self.namespace
        )

    def made(self, name: str) -> list[int]:
        """How often each pod of a snapshot was made, by its present UID."""
        prefix = f"{name}-{uid8(self.get(name)['metadata']['uid'])}-"
        return [times for pod, times in self.created_pods().items() if pod.startswith(prefix)]

    def _read(self, path: str, query: dict[str, str] | None = None) -> Object:
        answer = self._api.call_api(
            *self._api.param_serialize(
                method="GET",
                resource_path=path,
                query_params=list((query or {}).items()),
                header_params={"Accept": "application/json"},
                auth_settings=["BearerToken"],
            ),
            _request_timeout=(5, 30),
        )
        content = json.loads(answer.read())  # type: ignore[no-untyped-call]
        assert answer.status == 200, f"GET {path}: {content.get('message')}"
        return dict(content)

    @cached_property
    def _api(self) -> kubernetes_client.ApiClient:
        configuration = kubernetes_client.Configuration()
        kubernetes_config.load_kube_config(  # type: ignore[no-untyped-call]
            str(self._cluster.kubeconfig), client_configuration=configuration
        )
        return kubernetes_client.ApiClient(configuration)


def entries_of(status: Object) -> dict[str, Object]:
    """Node -> its entry in the results."""
    return {one["node"]: one for one in status.get("results", ())}


def reasons(status: Object) -> dict[str, tuple[str, str]]:
    """Node -> outcome and reason."""
    return {
        node: (one["outcome"], one.get("reason", "")) for node, one in entries_of(status).items()
    }


def conditions(status: Object) -> dict[str, str]:
    """Type -> status of each condition."""
    return {one["type"]: one["status"] for one in status.get("conditions", ())}


def message_of(status: Object, kind: str) -> str:
    """The message of a condition."""
    return next(str(one["message"]) for one in status["conditions"] if one["type"] == kind)


def container_of(pod: Object) -> str:
    """The id of the agent's container."""
    [status] = pod["status"]["containerStatuses"]
    return str(status["containerID"]).rpartition("/")[2]
