# SPDX-License-Identifier: Apache-2.0
"""The machines of a cluster: network namespaces, and for nodes also mounts and a hostname.

None has a name on the host: each lives in a process that sleeps in it. A node sees its own
/run, /var/lib and /var/log, so kubelet and containerd are at their usual paths on every node.
The host's processes are seen by all (hostPID is the kernel's first PID namespace, as on a real
node).

    control 10.123.0.1  bridge, etcd, API server, controllers, scheduler, S3
    node i  10.123.0.1i eth0 on that bridge, pods 10.244.i.0/24
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.bpf.workers import wait_until
from tests.cluster.daemons import Daemon

CONTROL_ADDRESS = "10.123.0.1"
PREFIX = 24
POD_CIDR = "10.244.0.0/16"
SERVICE_CIDR = "10.96.0.0/16"
INIT = Path(__file__).parent / "node_init.sh"
READY_S = 20.0


@dataclass(frozen=True)
class Place:
    """Where a node is in the network; `number` counts from 1."""

    number: int

    @property
    def address(self) -> str:
        return f"10.123.0.{10 + self.number}"

    @property
    def pods(self) -> str:
        return f"10.244.{self.number}.0/24"


class Space:
    """Namespaces and the process that holds them."""

    def __init__(self, name: str, folder: Path, cgroup: str, *, is_node: bool) -> None:
        self.name = name
        self.folder = folder
        self.cgroup = cgroup
        self._flags = ["--net", "--mount", "--uts"] if is_node else ["--net"]
        self._ready = folder / "ready"
        command = ["unshare", *self._flags]
        if is_node:
            command += ["--propagation", "private"]
        self._holder = Daemon(
            "holder",
            folder,
            cgroup,
            [*command, "sh", str(INIT), str(folder), name if is_node else ""],
        )

    def make(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._ready.unlink(missing_ok=True)
        self._holder.start()

    def wait(self) -> None:
        def ready() -> bool:
            assert self._holder.alive, f"{self.name} did not begin: {self._holder.tail()}"
            return self._ready.exists()

        wait_until(ready, f"the namespaces of {self.name}", READY_S)

    @property
    def alive(self) -> bool:
        return self._holder.alive

    @property
    def pid(self) -> int:
        """A process that is in these namespaces as long as they exist."""
        return self._holder.pid

    def enter(self, *command: str | Path) -> list[str]:
        """The command line that runs `command` in here."""
        return ["nsenter", "--target", str(self.pid), *self._flags, "--", *map(str, command)]

    def run(self, *command: str | Path, stdin: str = "") -> str:
        """A command in here; its output. AssertionError with its last words if it fails."""
        done = subprocess.run(
            self.enter(*command), input=stdin, text=True, capture_output=True, check=False
        )
        words = " ".join(map(str, command))
        assert done.returncode == 0, f"{self.name}: {words}: {done.stderr or done.stdout}"
        return done.stdout

    def ip(self, *commands: str) -> None:
        self.run("ip", "-batch", "-", stdin="\n".join(commands) + "\n")


def connect(control: Space, nodes: list[tuple[Space, Place]]) -> None:
    """One bridge, a link to each node, and routes to the pods of each."""
    links = [
        "link set lo up",
        "link add br0 type bridge",
        f"addr add {CONTROL_ADDRESS}/{PREFIX} dev br0",
        "link set br0 up",
    ]
    for space, place in nodes:
        port = f"port{place.number}"
        links += [
            f"link add {port} type veth peer name eth0 netns {space.pid}",
            f"link set {port} master br0 up",
            f"route add {place.pods} via {place.address}",
        ]
    control.ip(*links)
    for space, place in nodes:
        space.ip("link set lo up", f"addr add {place.address}/{PREFIX} dev eth0")
        plug_in(space, place, [other for _, other in nodes if other != place])


def plug_in(space: Space, place: Place, others: list[Place]) -> None:
    """Take a node's link up; with the link the kernel also forgot its routes."""
    space.ip(
        "link set eth0 up",
        f"route replace default via {CONTROL_ADDRESS}",
        *(f"route replace {other.pods} via {other.address}" for other in others if other != place),
    )
