# SPDX-License-Identifier: Apache-2.0
"""Incidents made for real in a cluster: a Service, its backends, and a client that suffers.

Each is a context: what it planted goes at the end. Pods run in the operator's image, which has
Python; the client is on the last node and the backends are on the first, so that packets cross
nodes and the Service's address is translated on the client's node.
"""

import json
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self

from tests.bpf.workers import wait_until
from tests.cluster.cluster import Cluster

SHOP = "shop"
DNS_VIP = "10.96.0.10"
"""Where every pod's resolv.conf of this cluster points to."""
ASKED = f"payments.{SHOP}.svc.cluster.local"
READY_S = 90
TABLE = "ktrace_incident"
RULES = f"""table inet {TABLE} {{
set seen {{
type ipv4_addr . inet_service
flags dynamic,timeout
timeout 60s
}}
chain forward {{
type filter hook forward priority 0
%s
}}
}}
"""
LISTENER = """
import socket, sys, threading
def serve(connection):
    with connection:
        while data := connection.recv(4096):
            connection.sendall(data)
with socket.create_server(("", int(sys.argv[1])), backlog=128) as server:
    while True:
        threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""
SILENT = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind(("", int(sys.argv[1])))
    while True:
        server.recv(65535)
"""
SHOPPER = """
import socket, sys, time
while True:
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3) as connection:
            connection.sendall(b"a shirt")
            connection.recv(100)
    except OSError as error:
        print(error, flush=True)
    time.sleep(0.2)
"""
ASKER = """
import socket, sys, time
while True:
    try:
        socket.getaddrinfo(sys.argv[1], 443)
    except OSError as error:
        print(error, flush=True)
    time.sleep(0.2)
"""

Object = dict[str, Any]


class Incident(ABC):
    """One incident in a cluster whose nodes have `image`."""

    client = "checkout"
    """Name of the pod that suffers."""
    peer: str
    """`address:port` that it uses, known once the incident is planted."""

    def __init__(self, cluster: Cluster, image: str) -> None:
        self._cluster = cluster
        self._image = image
        self.first, self.last = cluster.nodes[0].name, cluster.nodes[-1].name
        self._objects: list[Object] = []

    @abstractmethod
    def plant(self) -> None:
        """Make what goes wrong, then the client."""

    def __enter__(self) -> Self:
        try:
            self._add({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SHOP}})
            self.plant()
        except BaseException:
            self.clear()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()

    def clear(self) -> None:
        """Take away all of it; returns when its pods are gone."""
        for node in self._cluster.nodes:
            node.space.run("nft", "-f", "-", stdin=f"table inet {TABLE}\ndelete table inet {TABLE}")
        listed = {"apiVersion": "v1", "kind": "List", "items": self._objects}
        self._cluster.kubectl(
            "delete", "--ignore-not-found", "--timeout=60s", "-f", "-", stdin=json.dumps(listed)
        )

    def _add(self, *objects: Object) -> None:
        self._objects += objects
        self._cluster.apply(*objects)

    def _pod(
        self, name: str, node: str, code: str, *arguments: str, namespace: str = SHOP, **spec: Any
    ) -> str:
        """Start a pod on a node and wait until it runs; its address."""
        container = {
            "name": "main",
            "image": self._image,
            "imagePullPolicy": "Never",
            "command": ["python3", "-c", code, *arguments],
            "securityContext": {"runAsUser": 0},  # binds port 53
        }
        metadata = {
            "name": name,
            "namespace": namespace,
            "labels": {"app": name.rstrip("-0123456789")},
        }
        self._add(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": metadata,
                "spec": {
                    "nodeName": node,
                    "containers": [container],
                    "automountServiceAccountToken": False,
                    "terminationGracePeriodSeconds": 0,
                    **spec,
                },
            }
        )
        self._cluster.kubectl(
            "wait", f"pod/{name}", "-n", namespace, "--for=condition=Ready", f"--timeout={READY_S}s"
        )
        pod = self._cluster.get("pod", name, "-n", namespace)
        return str(pod["status"]["podIP"])

    def _service(
        self, name: str, port: int, target: int, *, protocol: str = "TCP", namespace: str = SHOP,
        **spec: Any,
    ) -> str:  # fmt: skip
        """A Service for the pods of this name, once it has endpoints; its address."""
        ports = [{"port": port, "targetPort": target, "protocol": protocol}]
        self._add(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"selector": {"app": name}, "ports": ports, **spec},
            }
        )

        def translated() -> str | None:
            address = str(self._cluster.get("service", name, "-n", namespace)["spec"]["clusterIP"])
            rules = self._cluster.node(self.last).space.run("nft", "list", "ruleset")
            return address if f"{address} . {protocol.lower()} . {port} : goto" in rules else None

        return str(wait_until(translated, f"rules of kube-proxy for {name}", READY_S))

    def _on_first_node(self, rules: str) -> None:
        """Rules for what the first node forwards."""
        self._cluster.node(self.first).space.run("nft", "-f", "-", stdin=RULES % rules)


class DeadDns(Incident):
    """The cluster's DNS takes questions and never answers: its process hangs."""

    peer = f"{DNS_VIP}:53"

    def plant(self) -> None:
        self._pod("kube-dns", self.first, SILENT, "53", namespace="kube-system")
        self._service(
            "kube-dns", 53, 53, protocol="UDP", namespace="kube-system", clusterIP=DNS_VIP
        )
        options = [{"name": "timeout", "value": "1"}, {"name": "attempts", "value": "1"}]
        self._pod(self.client, self.last, ASKER, ASKED, dnsConfig={"options": options})


class DeadBackend(Incident):
    """One of three backends of a Service is silent: a firewall on its node drops what is for it."""

    def plant(self) -> None:
        backends = [self._pod(f"cart-{n}", self.first, LISTENER, "8080") for n in range(3)]
        self.dead = f"{backends[1]}:8080"
        self._on_first_node(f"ip daddr {backends[1]} tcp dport 8080 drop")
        address = self._service("cart", 80, 8080)
        self.peer = f"{address}:80"
        self._pod(self.client, self.last, SHOPPER, address, "80")


class SlowConnect(Incident):
    """The first SYN of each connection is lost, so that the kernel sends it again after 1 s."""

    def plant(self) -> None:
        backend = self._pod("api", self.first, LISTENER, "6443")
        self._on_first_node(
            f"ip daddr {backend} tcp dport 6443 tcp flags & (syn | ack) == syn "
            "ip saddr . tcp sport != @seen add @seen { ip saddr . tcp sport } drop"
        )
        address = self._service("api", 443, 6443)
        self.peer = f"{address}:443"
        self._pod(self.client, self.last, SHOPPER, address, "443")
