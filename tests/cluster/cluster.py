# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes of two nodes on this machine: up, use, down.

Everything is in one state folder and below one cgroup, both named after the instance, so any
number of clusters can exist side by side, and one whose starter was killed can be taken down by
whoever comes next.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.bpf.workers import wait_until
from tests.cluster import binaries, cgroups, manifests
from tests.cluster.control import API_PORT, ControlPlane
from tests.cluster.node import PAUSE, Node
from tests.cluster.s3 import PORT as S3_PORT
from tests.cluster.s3 import S3, Server
from tests.cluster.spaces import Place, Space, connect
from tests.containers.runtime import make_image

DEFAULT_ROOT = "/var/tmp/ktrace-cluster"
NODES = ("node-a", "node-b")
LOST_AFTER_S = 20
"""A node whose kubelet is silent for so long is NotReady."""
READY_S = 120.0
HELM_TIMEOUT = "120s"


def state_root() -> Path:
    """Where clusters keep their state: KTRACE_CLUSTER_ROOT, else a folder on disk."""
    return Path(os.environ.get("KTRACE_CLUSTER_ROOT") or DEFAULT_ROOT)


class Cluster:
    """One cluster, running or not. `say` gets a line for each step."""

    def __init__(
        self,
        instance: str = "dev",
        nodes: Sequence[str] = NODES,
        say: Callable[[str], None] = print,
        lost_after_s: int = LOST_AFTER_S,
    ) -> None:
        self.instance = instance
        self.state = state_root() / instance
        self.kubeconfig = self.state / "kubeconfig"
        """For programs of the host; it leads through a loopback port."""
        self.shared = self.state / "shared"
        """A folder that all nodes see under the same path."""
        self.bin = self.state / "bin"
        """kubectl, and a command for each node that runs its arguments there."""
        self._say = say
        self._cgroup = f"ktrace-{instance}"
        self._ports = self.state / "ports.json"
        places = [Place(number) for number, _ in enumerate(nodes, 1)]
        self._nodes = {
            name: Node(
                Space(name, self.state / name, self._system, is_node=True),
                place,
                [other for other in places if other != place],
                f"{self._cgroup}/{name}",
            )
            for name, place in zip(nodes, places, strict=True)
        }
        space = Space("control", self.state / "control", self._system, is_node=False)
        self.control = ControlPlane(space, self._system, lost_after_s)
        self.s3_server = Server(space, self.state / "s3", self._system)

    @property
    def _system(self) -> str:
        return f"{self._cgroup}/system"

    @property
    def running(self) -> bool:
        """Whether it came up and all of its namespaces are still there."""
        return self.kubeconfig.exists() and self.control.space.alive

    def up(self) -> None:
        """Start it; returns when all nodes are Ready. What is left of an earlier run goes first."""
        if self.running:
            self._say(f"{self.instance} is up already")
            return
        started = time.monotonic()
        binaries.program("kube", self._say)
        self.down()
        with ExitStack() as undo:
            undo.callback(self.down)
            self._make_namespaces()
            self._start()
            self._wait_ready()
            undo.pop_all()
        self._say(f"{self.instance} is up after {time.monotonic() - started:.1f} s")

    def down(self) -> None:
        """Stop and remove all of it; nothing to do is fine."""
        if cgroups.exists(self._cgroup):
            self._say(f"stopping {self.instance}")
            cgroups.destroy(self._cgroup)
        if self.state.exists():
            _remove(self.state)
        if self.state.parent.exists() and not any(self.state.parent.iterdir()):
            self.state.parent.rmdir()

    @contextmanager
    def without_api_server(self) -> Iterator[None]:
        """It is killed, and behind the block started again."""
        server = self.control.daemon("kube-apiserver")
        server.kill()
        try:
            yield
        finally:
            server.start()
            self.control.wait(self._port("api"))

    def node(self, name: str) -> Node:
        return self._nodes[name]

    @property
    def nodes(self) -> list[Node]:
        return list(self._nodes.values())

    def kubectl(self, *arguments: str | Path, stdin: str = "") -> str:
        """The output of kubectl; AssertionError with its last words if it fails."""
        return self._tool(binaries.program("kube") / "kubectl", *arguments, stdin=stdin)

    def get(self, *arguments: str) -> Any:
        """`kubectl get ... -o json`, parsed."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply objects as they are written in manifests."""
        listed = {"apiVersion": "v1", "kind": "List", "items": objects}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(listed))

    def load_image(self, archive: Path, nodes: Sequence[str] = ()) -> None:
        """Import an image archive on these nodes (all by default)."""
        for name in nodes or self._nodes:
            self._nodes[name].load_image(archive)

    def helm_install(
        self, release: str, chart: Path, values: Path | None = None, namespace: str = "default"
    ) -> None:
        """Install or upgrade a chart and wait until its workloads are ready."""
        more = ("--values", values) if values else ()
        self.helm(
            "upgrade", "--install", release, chart, "--namespace", namespace, "--create-namespace",
            "--wait", "--timeout", HELM_TIMEOUT, *more,
        )  # fmt: skip

    def helm_uninstall(self, release: str, namespace: str = "default") -> None:
        self.helm("uninstall", release, "--namespace", namespace, "--wait")

    def helm(self, *arguments: str | Path) -> str:
        return self._tool(binaries.program("helm", self._say) / "helm", *arguments)

    def s3(self, identity: str = "admin") -> S3:
        """The S3 server as seen from the host, as `admin`, `agent` or `reader`."""
        endpoint = f"http://127.0.0.1:{self._port('s3')}"
        return S3(endpoint, self.s3_server.identities[identity])

    def shared_volume(self, name: str, namespace: str = "default") -> Path:
        """A ReadWriteMany PersistentVolume and a claim of the same name; its folder here.

        The claim is bound: until then, a pod that uses it is unschedulable.
        """
        folder = self.shared / name
        folder.mkdir(parents=True)
        self.apply(*manifests.shared_volume(name, namespace, folder))
        bound = "--for=jsonpath={.status.phase}=Bound"
        self.kubectl("wait", f"pvc/{name}", f"--namespace={namespace}", bound, "--timeout=60s")
        return folder

    def audit(self) -> Iterator[dict[str, Any]]:
        """The API server's audit log: every request but probes and node leases, oldest first."""
        with self.control.audit_log.open() as lines:
            for line in lines:
                yield json.loads(line)

    def _tool(self, program: Path, *arguments: str | Path, stdin: str = "") -> str:
        done = subprocess.run(
            [program, *arguments],
            input=stdin,
            text=True,
            capture_output=True,
            check=False,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
        )
        words = " ".join(map(str, (program.name, *arguments)))
        assert done.returncode == 0, f"{words}: {done.stderr or done.stdout}"
        return done.stdout

    def _port(self, name: str) -> int:
        return int(json.loads(self._ports.read_text())[name])

    @cached_property
    def _places(self) -> list[tuple[Space, Place]]:
        return [(node.space, node.place) for node in self.nodes]

    def _make_namespaces(self) -> None:
        self._say(f"state in {self.state}; making namespaces: control, {', '.join(self._nodes)}")
        self.state.mkdir(parents=True, mode=0o700)
        assert self.state.parent.stat().st_uid == os.geteuid(), f"{self.state.parent} is not ours"
        cgroups.make(self._system)
        spaces = [self.control.space, *(space for space, _ in self._places)]
        for space in spaces:
            space.make()
        for node in self.nodes:
            cgroups.make(f"{self._cgroup}/{node.name}")
        for space in spaces:
            space.wait()
        connect(self.control.space, self._places)

    def _start(self) -> None:
        ca = self.control.prepare()
        self._say("starting etcd, API server, S3, containerd")
        self.control.start()
        self.s3_server.prepare()
        self.s3_server.daemon.start()
        for node in self.nodes:
            node.prepare(ca)
            node.daemon("containerd").start()
        ports = {
            "api": self.control.relay("api", API_PORT),
            "s3": self.control.relay("s3", S3_PORT),
        }
        self._ports.write_text(json.dumps(ports))
        pause = self.state / "pause.tar"
        pause.write_bytes(make_image("pause", PAUSE, self.state))
        for node in self.nodes:
            node.wait_containerd()
            node.load_image(pause)
        self.control.wait(ports["api"])
        self._say("starting controller manager, scheduler, kubelet and kube-proxy of each node")
        self.control.start_controllers()
        for node in self.nodes:
            for name in ("kubelet", "kube-proxy"):
                node.daemon(name).start()
        server = f"https://127.0.0.1:{ports['api']}"
        ca.kubeconfig(self.kubeconfig, server, ca.issue("host", "admin", "system:masters"))
        self._write_commands()

    def _wait_ready(self) -> None:
        self._say("waiting for S3, the default service account and Ready nodes")
        self.s3_server.wait(self.s3())

        def account() -> bool:
            found = self.get("serviceaccounts", "--namespace", "default")["items"]
            return any(one["metadata"]["name"] == "default" for one in found)

        wait_until(account, "the default service account", READY_S)
        wait_until(lambda: len(self.ready_nodes()) == len(self._nodes), "Ready nodes", READY_S)

    def ready_nodes(self) -> list[str]:
        """Names of our nodes that are Ready now."""
        return [
            item["metadata"]["name"]
            for item in self.get("nodes")["items"]
            if item["metadata"]["name"] in self._nodes
            and any(
                condition["type"] == "Ready" and condition["status"] == "True"
                for condition in item["status"].get("conditions", ())
            )
        ]

    def _write_commands(self) -> None:
        self.bin.mkdir()
        kubectl = binaries.program("kube") / "kubectl"
        scripts = {"kubectl": f'KUBECONFIG={self.kubeconfig} exec {kubectl} "$@"'}
        for space, _ in [*self._places, (self.control.space, None)]:
            words = " ".join(space.enter())
            scripts[space.name] = f'exec {words} "$@"'
        for name, line in scripts.items():
            path = self.bin / name
            path.write_text(f"#!/bin/sh\n{line}\n")
            path.chmod(0o755)


def _remove(folder: Path) -> None:
    """Delete a state folder; AssertionError if anything is mounted in it."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    inside = [line.split()[4] for line in mounts if line.split()[4].startswith(f"{folder}/")]
    assert not inside, f"still mounted: {', '.join(inside)}"
    shutil.rmtree(folder)
