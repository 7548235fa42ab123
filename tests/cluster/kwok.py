# SPDX-License-Identifier: Apache-2.0
"""Nodes that exist only in the API server: kwok plays their kubelets, a thousand on two cores.

Such a node has no lease and no heartbeat, since a thousand of them would be most of the load.
The cluster must be made with a `lost_after_s` longer than the test.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import yaml

from tests.bpf.workers import wait_until
from tests.cluster import binaries
from tests.cluster.cluster import Cluster
from tests.cluster.daemons import Daemon

ANNOTATION = {"ktrace.io/played-by": "kwok"}
READY_S = 300.0
CREATORS = 4
"""kubectl creates one object after the other."""
NOT_DELETED = {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"}

CONTAINERS = """
{{{{ $now := Now }}}}
phase: {phase}
startTime: {{{{ or .status.startTime $now | Quote }}}}
conditions:
{{{{ range list "Initialized" "Ready" "ContainersReady" }}}}
- type: {{{{ . }}}}
  status: "{ready}"
  lastTransitionTime: {{{{ $now | Quote }}}}
{{{{ end }}}}
containerStatuses:
{{{{ range .spec.containers }}}}
- name: {{{{ .name | Quote }}}}
  image: {{{{ .image | Quote }}}}
  imageID: ""
  ready: {ready}
  restartCount: 0
  state:
{state}
{{{{ end }}}}
"""
RUNNING = """
    running:
      startedAt: {{ $now | Quote }}
"""
TERMINATED = """
    terminated:
      exitCode: {code}
      reason: {reason}
      startedAt: {{{{ $root.status.startTime | Quote }}}}
      finishedAt: {{{{ $now | Quote }}}}
      message: |-
        {message}
"""


@dataclass(frozen=True)
class Life:
    """How each pod on a played node goes."""

    message: str = ""
    """Termination message: one line, a Go template; `$root` is the pod, as in
    `{"node": "{{ $root.spec.nodeName }}", "uid": "{{ $root.metadata.uid }}"}`."""
    exit_code: int = 0
    start_s: float = 1.0
    """From bound to running."""
    run_s: float = 5.0
    """From running to the end."""

    def stages(self) -> list[dict[str, Any]]:
        """kwok's Stage objects: a node becomes Ready; a pod runs, ends, goes when deleted."""
        phase = "Failed" if self.exit_code else "Succeeded"
        end = TERMINATED.format(
            code=self.exit_code,
            reason="Error" if self.exit_code else "Completed",
            message=self.message,
        )
        running = CONTAINERS.format(phase="Running", ready="true", state=RUNNING)
        ended = "{{ $root := . }}\n" + CONTAINERS.format(phase=phase, ready="false", state=end)
        return [
            _stage("pod-run", "Pod", [NOT_DELETED, _phase("Pending")], running, self.start_s),
            _stage("pod-end", "Pod", [NOT_DELETED, _phase("Running")], ended, self.run_s),
            _stage("pod-delete", "Pod", [{**NOT_DELETED, "operator": "Exists"}], None, 0.0),
            # Nodes are made Ready; without a stage of ours kwok would add heartbeats.
            _stage("node", "Node", [{"key": ".status.phase", "operator": "DoesNotExist"}],
                   "phase: Running", 0.0),
        ]  # fmt: skip


class Kwok:
    """kwok beside the control plane of a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._config = cluster.state / "kwok.yaml"

    def start(self, nodes: int, life: Life) -> None:
        """Play `nodes` nodes, node-0000 and so on; returns when all are Ready."""
        self.play(life)
        items = list(_nodes(nodes))
        with ThreadPoolExecutor(CREATORS) as pool:
            list(pool.map(self._create, (items[start::CREATORS] for start in range(CREATORS))))

        def ready() -> bool:
            template = "{range .items[*]}{.spec.taints[*].key}{'\\n'}{end}"
            select = ("nodes", "-l", "type=kwok", "-o", f"jsonpath={template}")
            lines = self._cluster.kubectl("get", *select).split("\n")[:-1]
            return len(lines) == nodes and not any(lines)

        wait_until(ready, f"{nodes} Ready nodes of kwok", READY_S)

    def _create(self, items: list[dict[str, Any]]) -> None:
        if items:
            listed = {"apiVersion": "v1", "kind": "List", "items": items}
            self._cluster.kubectl("create", "-f", "-", stdin=json.dumps(listed))

    def play(self, life: Life) -> None:
        """From now on pods go as `life` says."""
        self._config.write_text(yaml.safe_dump_all(life.stages()))
        self.restart()

    def restart(self) -> None:
        """Anew, with the same life of pods."""
        daemon = self._daemon()
        if daemon.alive:
            daemon.kill()
        daemon.start()

    def _daemon(self) -> Daemon:
        control = self._cluster.control
        ((key, value),) = ANNOTATION.items()
        command = control.space.enter(
            binaries.program("kwok") / "kwok",
            f"--kubeconfig={control.admin_kubeconfig}",
            f"--config={self._config}",
            f"--manage-nodes-with-annotation-selector={key}={value}",
            "--node-lease-duration-seconds=0",
        )
        return Daemon("kwok", control.folder, control.space.cgroup, command)


def _stage(
    name: str, kind: str, when: list[dict[str, Any]], status: str | None, delay_s: float
) -> dict[str, Any]:
    """One step of an object's life; without a status it is the deletion."""
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": {"matchExpressions": when},
            "delay": {"durationMilliseconds": round(delay_s * 1000)},
            "next": {"delete": True} if status is None else {"statusTemplate": status},
        },
    }


def _phase(phase: str) -> dict[str, Any]:
    return {"key": ".status.phase", "operator": "In", "values": [phase]}


def _nodes(count: int) -> Iterator[dict[str, Any]]:
    """Nodes that are Ready from the start, as a kubelet registers itself with its status."""
    room = {"cpu": "32", "memory": "256Gi", "pods": "110", "ephemeral-storage": "100Gi"}
    for number in range(count):
        name = f"node-{number:04}"
        yield {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": name,
                "annotations": ANNOTATION,
                "labels": {"type": "kwok", "kubernetes.io/hostname": name,
                           "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"},
            },
            "status": {
                "capacity": room,
                "allocatable": room,
                "conditions": [{"type": "Ready", "status": "True", "reason": "KwokReady"}],
                "nodeInfo": {
                    "architecture": "amd64", "operatingSystem": "linux", "kubeletVersion": "kwok",
                    "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "",
                    "kubeProxyVersion": "", "machineID": "", "osImage": "", "systemUUID": "",
                },
            },
        }  # fmt: skip
