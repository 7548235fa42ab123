# SPDX-License-Identifier: Apache-2.0
"""A small cluster in five network namespaces: Services as nftables translate them.

client --- router === bridge === backend 1, 2, 3

VIP 1 is translated to a backend, VIP 2 to a backend and masqueraded. What goes to port 9000 of a
backend is only masqueraded, what goes to its own ports is not translated.
"""

import select
import socket
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import count
from typing import NamedTuple

from ktrace_agent.enrich.conntrack.connection import SocketAddress
from ktrace_agent.host.inet import MAPPED, Protocol
from tests.bpf.namespaces import Namespace
from tests.bpf.workers import Crew, Line, Worker, wait_until

VIPS = {4: ("10.78.96.1", "10.78.96.2"), 6: ("fd78:96::1", "fd78:96::2")}
VIP_PORT, PORT, MASQUERADED_PORT = 80, 8080, 9000
CLIENT = {4: "10.78.1.2", 6: "fd78:1::2"}
BACKENDS = {4: [f"10.78.2.1{n}" for n in (1, 2, 3)], 6: [f"fd78:2::1{n}" for n in (1, 2, 3)]}
PROTOS: dict[Protocol, int] = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

Address = tuple[str, int]


class Asked(NamedTuple):
    """A flow from the client's point of view."""

    token: int
    proto: Protocol
    local: Address
    remote: Address


class Answered(NamedTuple):
    """A flow from the backend's point of view."""

    token: int
    proto: Protocol
    local: Address
    remote: Address


def packed(address: Address) -> SocketAddress:
    """An address as lookup() takes it."""
    host, port = address
    binary = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    return SocketAddress(binary if len(binary) == 16 else MAPPED + binary, port)


def _rules(version: int) -> str:
    family = "ip" if version == 4 else "ip6"
    lines = [f"add table {family} nat"]
    for chain, hook in (("pre", "prerouting"), ("out", "output")):
        priority = "dstnat" if chain == "pre" else "-100"
        lines.append(
            f"add chain {family} nat {chain} {{ type nat hook {hook} priority {priority}; }}"
        )
    lines.append(f"add chain {family} nat post {{ type nat hook postrouting priority srcnat; }}")
    picks = ("jhash {0} saddr . {1} sport mod 3", "numgen random mod 3")
    backends = ", ".join(f"{n} : {address}" for n, address in enumerate(BACKENDS[version]))
    for proto in PROTOS:
        for vip, pick in zip(VIPS[version], picks, strict=True):
            chosen = f"{pick.format(family, proto)} map {{ {backends} }}"
            lines.append(
                f"add rule {family} nat pre {family} daddr {vip} {proto} dport {VIP_PORT} "
                f"dnat to {chosen} : {PORT}"
            )
        lines.append(f"add rule {family} nat post {proto} dport {MASQUERADED_PORT} masquerade")
    lines.append(
        f"add rule {family} nat post ct original {family} daddr {VIPS[version][1]} masquerade"
    )
    return "\n".join(lines) + "\n"


class Cluster:
    """The namespaces, connected; `namespaces()` is what a Watch asks for."""

    def __init__(self, crew: Crew) -> None:
        self.client, self.router = Namespace(crew), Namespace(crew)
        self.backends = [Namespace(crew) for _ in range(3)]
        router = self.router
        router.ip("link add br0 type bridge", "link set br0 up")
        for number, namespace in enumerate((self.client, *self.backends)):
            far = f"v{number}"
            router.ip(f"link add {far} type veth peer name eth0 netns {namespace.pid}")
            if number:
                # Bridged packets are translated on the bridge (br_netfilter), also back to where
                # they came from.
                router.ip(
                    f"link set {far} master br0", f"link set {far} type bridge_slave hairpin on"
                )
            router.ip(f"link set {far} up")
        for device, net in (("v0", 1), ("br0", 2)):
            router.ip(
                f"addr add 10.78.{net}.1/24 dev {device}",
                f"addr add fd78:{net}::1/64 dev {device} nodad",
            )
        for name in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
            router.sysctl(f"net.{name}", "1")
        self._join(self.client, 1, CLIENT[4], CLIENT[6])
        for namespace, v4, v6 in zip(self.backends, BACKENDS[4], BACKENDS[6], strict=True):
            self._join(namespace, 2, v4, v6)
        router.nft(_rules(4) + _rules(6))

    def _join(self, namespace: Namespace, net: int, v4: str, v6: str) -> None:
        for version in ("ipv4", "ipv6"):  # a redirect would lead past the router, and its NAT
            for device in ("all", "eth0"):
                namespace.sysctl(f"net.{version}.conf.{device}.accept_redirects", "0")
        namespace.ip(
            f"addr add {v4}/24 dev eth0",
            f"addr add {v6}/64 dev eth0 nodad",
            "link set eth0 up",
            f"route add default via 10.78.{net}.1",
            f"route add ::/0 via fd78:{net}::1",
        )

    @property
    def all(self) -> list[Namespace]:
        return [self.client, self.router, *self.backends]

    def namespaces(self) -> dict[int, int]:
        return {namespace.inode: namespace.pid for namespace in self.all}

    def serve(self) -> list[Worker]:
        """A server on each backend; any message stops it, and its result is what it answered."""
        servers = []
        for number, namespace in enumerate(self.backends):
            hosts = {version: BACKENDS[version][number] for version in (4, 6)}
            servers.append(namespace.start(partial(serve, hosts=hosts)))
        for server in servers:
            assert server.hear() == "serving"
        return servers


def serve(line: Line, hosts: dict[int, str]) -> list[Answered]:
    """Answer every token on both ports; who asked."""
    answered: list[Answered] = []
    with ExitStack() as stack:
        sockets: dict[socket.socket, Protocol] = {}
        listening = set()
        for version, host in hosts.items():
            for proto, kind in PROTOS.items():
                for port in (PORT, MASQUERADED_PORT):
                    sock = stack.enter_context(socket.socket(FAMILIES[version], kind))
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    wait_until(partial(_bound, sock, host, port), "a free address")
                    if proto == "tcp":
                        sock.listen(128)
                        listening.add(sock)
                    sockets[sock] = proto
        line.say("serving")
        while not line.spoken_to():
            for sock in select.select(list(sockets), [], [], 0.01)[0]:
                if sock in listening:
                    sockets[stack.enter_context(sock.accept()[0])] = "tcp"
                    continue
                proto = sockets[sock]
                data, peer = _receive(sock, proto)
                if not data:
                    del sockets[sock]
                    sock.close()
                    continue
                answered.append(Answered(int(data), proto, sock.getsockname()[:2], peer[:2]))
                sock.sendto(data, peer) if proto == "udp" else sock.send(data)
    return answered


def _receive(sock: socket.socket, proto: Protocol) -> tuple[bytes, Address]:
    try:
        if proto == "udp":
            return sock.recvfrom(64)
        return sock.recv(64), sock.getpeername()
    except OSError:  # reset by the client
        return b"", ("", 0)


def _bound(sock: socket.socket, host: str, port: int) -> bool:
    try:
        sock.bind((host, port))
    except OSError:  # an IPv6 address takes a moment
        return False
    return True


def ask(line: Line, targets: list[tuple[int, Protocol, Address]]) -> list[Asked]:
    """One flow to each target (token, proto, address), kept open until the line speaks."""
    asked: list[Asked] = []
    with ExitStack() as stack:
        for token, proto, target in targets:
            family = FAMILIES[6 if ":" in target[0] else 4]
            sock = stack.enter_context(socket.socket(family, PROTOS[proto]))
            sock.settimeout(10)
            sock.connect(target)
            sock.send(b"%d" % token)
            assert int(sock.recv(64)) == token
            asked.append(Asked(token, proto, sock.getsockname()[:2], target))
        line.say("open")
        line.hear()
    return asked


FLOWS = 24
"""Of each kind, protocol and family: enough for each of three backends."""
KINDS = {"dnat": 0, "both": 1}


class Flow(NamedTuple):
    """Both ends' word on one flow."""

    kind: str
    asked: Asked
    answered: Answered
    client_netns: int
    server_netns: int

    @property
    def truth(self) -> str:
        """What was translated; a source port also where another flow has the tuple already."""
        dnat = self.answered.local != self.asked.remote
        snat = self.answered.remote != self.asked.local
        return {(True, True): "both", (True, False): "dnat", (False, True): "snat"}.get(
            (dnat, snat), "none"
        )


def talk(cluster: Cluster, while_open: Callable[[], None]) -> list[Flow]:
    """Flows of every kind, also from a backend to itself, all open at once."""
    tokens, kinds = count(), dict[int, str]()

    def targets(places: dict[str, Address]) -> list[tuple[int, Protocol, Address]]:
        made: list[tuple[int, Protocol, Address]] = []
        for kind, place in places.items():
            for proto in PROTOS:
                for _ in range(FLOWS):
                    token = next(tokens)
                    kinds[token] = kind
                    made.append((token, proto, place))
        return made

    from_client = []
    for version in (4, 6):
        backend = BACKENDS[version][0]
        places = {kind: (VIPS[version][n], VIP_PORT) for kind, n in KINDS.items()}
        from_client += targets(
            places | {"snat": (backend, MASQUERADED_PORT), "none": (backend, PORT)}
        )
    hairpin = [one for version in (4, 6) for one in targets({"both": (VIPS[version][1], VIP_PORT)})]
    servers = cluster.serve()
    askers = {
        cluster.client: cluster.client.start(partial(ask, targets=from_client)),
        cluster.backends[0]: cluster.backends[0].start(partial(ask, targets=hairpin)),
    }
    for asker in askers.values():
        assert asker.hear() == "open"
    while_open()
    asked = []
    for namespace, asker in askers.items():
        asker.say("close")
        asked += [(namespace.inode, one) for one in asker.result()]
    answered: dict[int, tuple[int, Answered]] = {}
    for namespace, server in zip(cluster.backends, servers, strict=True):
        server.say("stop")
        answered |= {one.token: (namespace.inode, one) for one in server.result()}
    flows = []
    for client_netns, one in asked:
        server_netns, other = answered[one.token]
        flows.append(Flow(kinds[one.token], one, other, client_netns, server_netns))
    assert len(flows) == FLOWS * 2 * 2 * 5
    return flows
