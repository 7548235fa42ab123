# SPDX-License-Identifier: Apache-2.0
"""Incidents of NAT and connection tracking, on a node between clients and backends."""

import socket
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

from tests.bpf.captures import Capture
from tests.bpf.namespaces import Namespace
from tests.lab import jobs
from tests.lab.conntrack_fill import fill
from tests.lab.impossible import Impossible
from tests.lab.scene import Scene, Subject, expect
from tests.lab.topology import Routed, on_input

PORT = 8080
MOST_ENTRIES = 600_000
TRACKING = """table ip lab {
    chain forward {
        type filter hook forward priority 0
        ct state new counter
    }
}"""


def conntrack_stat(namespace: Namespace, name: str) -> int:
    """A counter of all CPUs, e.g. insert_failed."""
    head, *lines = Path(f"/proc/{namespace.pid}/net/stat/nf_conntrack").read_text().splitlines()
    place = head.split().index(name)
    return sum(int(line.split()[place], 16) for line in lines)


class _OnNode(Scene):
    backends = 1
    listed = True
    """Whether the node's connection tracking table is short enough to be read."""

    def build(self) -> None:
        self.net = Routed(self.crew, self.backends)
        for backend, address in zip(self.net.backends, self.net.addresses, strict=True):
            self.ready(backend.start(jobs.server(address, PORT, jobs.echo()), comm="web"))
        self.arrange()

    @abstractmethod
    def arrange(self) -> None: ...

    def enter(self) -> Sequence[str]:
        return self.net.enter

    def settle(self) -> None:
        super().settle()
        lines = self.net.node.run("conntrack", "-L").splitlines() if self.listed else []
        self.unreplied = [line for line in lines if "UNREPLIED" in line]

    def shop(self, host: str, port: int, *, rate: float, seconds: float, timeout_s: float) -> None:
        job = jobs.pace(
            lambda _: jobs.request(host, port, timeout_s=timeout_s), rate=rate, seconds=seconds
        )
        worker = self.net.client.start(job, comm="shop")
        self.subject = Subject(worker.tgid, jobs.shown(host, port))
        self.tally: jobs.Tally = worker.result()


class UnrepliedSyn(_OnNode):
    about = "conntrack records SYNs that the peer never answers"
    expected = expect(
        "TCP_SYN_UNANSWERED", "policy routing", also="CONNTRACK_UNREPLIED TCP_RETRANSMITS"
    )

    def arrange(self) -> None:
        self.net.node.nft(TRACKING)
        self.net.backends[0].nft(on_input(f"tcp dport {PORT} counter drop"))

    def run(self) -> None:
        self.shop(self.net.addresses[0], PORT, rate=10, seconds=1.5, timeout_s=1.6)

    def prove(self, capture: Capture) -> None:
        assert self.tally == {"timeout": 15}, self.tally
        assert len(self.unreplied) == 15


class ConntrackUnreplied(_OnNode):
    about = (
        "a UDP Service of three backends, one of which is down: its conntrack entries are unreplied"
    )
    backends = 3
    expected = expect("CONNTRACK_UNREPLIED", "nat")

    def arrange(self) -> None:
        for backend, address in zip(self.net.backends, self.net.addresses, strict=True):
            self.ready(backend.start(jobs.answer_datagrams(address, 5060), comm="sip"))
        self.net.service("udp dport 5060", self.net.addresses)
        self.net.backends[2].nft(on_input("udp dport 5060 counter drop"))

    def run(self) -> None:
        def call(_: int) -> str:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(1.0)
                sock.connect((Routed.VIP, 5060))
                sock.send(b"OPTIONS")
                return "ok" if sock.recv(100) == b"OPTIONS" else "short"

        worker = self.net.client.start(jobs.pace(call, rate=20, seconds=1.5), comm="shop")
        self.subject = Subject(worker.tgid, jobs.shown(Routed.VIP, 5060))
        self.tally = worker.result()

    def prove(self, capture: Capture) -> None:
        assert self.tally == {"ok": 20, "timeout": 10}, self.tally
        assert len(self.unreplied) == 10


class ConntrackFull(_OnNode):
    about = "the node's conntrack table is full"
    listed = False
    expected = expect(
        "CONNTRACK_FULL",
        "nat",
        also="TCP_SYN_UNANSWERED TCP_RETRANSMITS CONNTRACK_UNREPLIED CONNTRACK_INSERT_FAILED",
    )

    def arrange(self) -> None:
        most = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
        if most > MOST_ENTRIES:
            raise Impossible(f"nf_conntrack_max is {most}: filling it would take too long")
        self.net.node.nft(TRACKING)
        self.net.node.call(fill(most + 64))
        held = int(self.net.node.run("cat", "/proc/sys/net/netfilter/nf_conntrack_count"))
        assert held == most, (held, most)

    def run(self) -> None:
        before = conntrack_stat(self.net.node, "drop")
        self.shop(self.net.addresses[0], PORT, rate=10, seconds=1.5, timeout_s=1.6)
        self.dropped = conntrack_stat(self.net.node, "drop") - before
        self.subject = Subject(netns=self.net.node.inode)

    def prove(self, capture: Capture) -> None:
        assert self.tally == {"timeout": 15}, self.tally
        assert self.dropped >= 30, self.dropped


class DnatDeadBackend(_OnNode):
    about = "a Service of three backends, one of which is down and does not answer"
    backends = 3
    expected = expect("TCP_SYN_UNANSWERED", "nat", also="TCP_RETRANSMITS CONNTRACK_UNREPLIED")

    def arrange(self) -> None:
        self.net.service("tcp dport 80", [f"{one} . {PORT}" for one in self.net.addresses])
        self.net.backends[2].nft(on_input(f"tcp dport {PORT} counter drop"))

    def run(self) -> None:
        self.shop(Routed.VIP, 80, rate=20, seconds=1.5, timeout_s=1.3)

    def prove(self, capture: Capture) -> None:
        assert self.tally == {"ok": 20, "timeout": 10}, self.tally
        dead = self.net.addresses[2]
        assert len(self.unreplied) == 10
        assert all(f"src={dead} dst={self.net.client_address}" in line for line in self.unreplied)


class SnatCollision(_OnNode):
    about = "source NAT with 16 ports for 40 connections to one destination"
    expected = expect(
        "CONNTRACK_INSERT_FAILED", "nat", also="TCP_SYN_UNANSWERED TCP_RETRANSMITS TCP_CONNECT_SLOW"
    )

    def arrange(self) -> None:
        gateway = self.net.addresses[0].removesuffix("2") + "1"
        self.net.node.nft(f"""table ip lab {{
            chain postrouting {{
                type nat hook postrouting priority srcnat
                tcp dport {PORT} counter snat to {gateway}:20000-20015
            }}
        }}""")

    def run(self) -> None:
        held = []
        host = self.net.addresses[0]

        def hold(_: int) -> str:
            held.append(jobs.connect(host, PORT, timeout_s=1.3))
            return jobs.ask(held[-1])

        before = {name: conntrack_stat(self.net.node, name) for name in ("insert_failed", "drop")}
        worker = self.net.client.start(jobs.pace(hold, rate=40, seconds=1.0, parallel=40))
        self.tally: jobs.Tally = worker.result()
        self.subject = Subject(netns=self.net.node.inode)
        self.failed = {
            name: conntrack_stat(self.net.node, name) - old for name, old in before.items()
        }

    def prove(self, capture: Capture) -> None:
        assert self.tally == {"ok": 16, "timeout": 24}, (self.tally, self.failed)
        assert self.failed["insert_failed"] + self.failed["drop"] >= 24, self.failed


class DnatRefused(_OnNode):
    about = "a Service of three backends, the process of one has ended: its port refuses"
    backends = 3
    expected = expect("TCP_CONNECT_REFUSED", "nat application")

    def arrange(self) -> None:
        first, second, third = self.net.addresses
        targets = [f"{first} . {PORT}", f"{second} . {PORT}", f"{third} . 9"]
        self.net.service("tcp dport 80", targets)

    def run(self) -> None:
        self.shop(Routed.VIP, 80, rate=20, seconds=1.5, timeout_s=1.3)

    def prove(self, capture: Capture) -> None:
        assert self.tally == {"ok": 20, "ECONNREFUSED": 10}, self.tally
        assert self.matched(self.net.node) == 30
