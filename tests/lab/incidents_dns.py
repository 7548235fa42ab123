# SPDX-License-Identifier: Apache-2.0
"""Incidents of name resolution."""

import time
from collections import Counter

from tests.bpf.captures import Capture, Row
from tests.bpf.workers import Worker
from tests.lab import jobs
from tests.lab.scene import Linked, Scene, Subject, expect
from tests.lab.topology import Routed, on_input


class _Dns(Linked):
    """A client that resolves names, twelve by default."""

    comm = "named"
    count = 12
    timeout_s = 1.0

    def ask(self, *resolvers: str, connected: bool = True) -> None:
        job = jobs.stub(
            *resolvers,
            rate=8,
            seconds=self.count / 8,
            timeout_s=self.timeout_s,
            connected=connected,
        )
        self.shop: Worker = self.link.client.start(job, comm="shop")
        self.tally: jobs.Tally = self.shop.result()

    def run(self) -> None:
        self.ask(self.host)
        self.subject = Subject(self.shop.tgid, jobs.shown(self.host, 53))

    def rows(self, capture: Capture, kind: str) -> list[Row]:
        return capture.of(kind, tgid=self.shop.tgid)


class DnsSilent(_Dns):
    about = "a DNS server that receives queries and never answers"
    expected = expect("DNS_NO_REPLY", "dns")

    def arrange(self) -> None:
        self.serve(jobs.resolver(self.host, silent=True))

    def prove(self, capture: Capture) -> None:
        assert self.tally == {"timeout": self.count}, self.tally
        assert len(self.rows(capture, "udp_send")) == self.count
        assert not self.rows(capture, "udp_recv")
        assert len(capture.of("udp_recv", net=self.link.server.inode)) == self.count


class DnsSilentBesideStatsd(DnsSilent):
    about = "as dns-silent, and metrics in that namespace go to a closed local port"

    def arrange(self) -> None:
        super().arrange()
        beat = jobs.pace(jobs.datagrams("127.0.0.1", 8125), rate=20)
        self.metrics = self.link.client.start(beat, comm="app")

    def settle(self) -> None:
        self.refused = self.link.client.snmp("Udp.NoPorts")
        super().settle()

    def prove(self, capture: Capture) -> None:
        assert self.tally == {"timeout": self.count}, self.tally
        assert len(self.rows(capture, "udp_send")) == self.count
        assert self.refused >= self.count, self.refused


class _OneEach(_Dns):
    """A loop around a tool: a process for each of the lookups."""

    def run(self) -> None:
        self.tally: jobs.Tally = Counter()
        tools = []
        for _ in range(self.count):
            job = jobs.stub(self.host, rate=1, seconds=0.5, timeout_s=self.timeout_s)
            tools.append(self.link.client.start(job, comm="curl"))
            time.sleep(0.05)
        for tool in tools:
            self.tally.update(tool.result())
        self.tools = {tool.tgid for tool in tools}
        self.point_out(tools[-1].tgid)

    def point_out(self, last: int) -> None:
        self.subject = Subject(last, jobs.shown(self.host, 53))

    def asked(self, capture: Capture) -> Counter[int]:
        return Counter(row["tgid"] for row in capture.of("udp_send", net=self.link.client.inode))


class DnsSilentOneEach(_OneEach):
    about = "a DNS server that never answers, and one process per lookup"
    expected = expect("DNS_NO_REPLY", "dns")

    def arrange(self) -> None:
        self.serve(jobs.resolver(self.host, silent=True))

    def prove(self, capture: Capture) -> None:
        assert self.tally == {"timeout": self.count}, self.tally
        assert self.asked(capture) == dict.fromkeys(self.tools, 1)


class DnsSlowOneEach(_OneEach):
    about = "a DNS server that answers after 700 ms, and one process per lookup"
    expected = expect("DNS_SLOW", "dns")

    def arrange(self) -> None:
        self.serve(jobs.resolver(self.host, delay_s=0.7))

    def point_out(self, last: int) -> None:
        """The process that waited longest."""
        self.subject = Subject(peer=jobs.shown(self.host, 53), netns=self.link.client.inode)

    def prove(self, capture: Capture) -> None:
        assert self.tally == {self.host: self.count}, self.tally
        assert self.asked(capture) == dict.fromkeys(self.tools, 1)


class DnsSlow(_Dns):
    about = "a DNS server that answers after 400 ms"
    expected = expect("DNS_SLOW", "dns")
    delay_s = 0.4

    def arrange(self) -> None:
        self.serve(jobs.resolver(self.host, delay_s=self.delay_s))

    def prove(self, capture: Capture) -> None:
        assert self.tally == {self.host: self.count}, self.tally
        assert len(self.rows(capture, "udp_recv")) == self.count


class DnsOneDead(_Dns):
    about = "the first of two resolvers is down, the second answers"
    expected = expect("DNS_NO_REPLY", "dns")
    timeout_s = 0.5

    def arrange(self) -> None:
        self.alive = self.link.second_address()
        self.serve(jobs.resolver(self.alive))
        self.link.server.nft(on_input(f"ip daddr {self.host} udp dport 53 counter drop"))

    def run(self) -> None:
        self.ask(self.host, self.alive)
        self.subject = Subject(
            self.shop.tgid, jobs.shown(self.host, 53), blameless=(jobs.shown(self.alive, 53),)
        )

    def prove(self, capture: Capture) -> None:
        assert self.tally == {self.alive: self.count}, self.tally
        assert self.matched(self.link.server) == self.count
        assert len(self.rows(capture, "udp_send")) == 2 * self.count
        assert len(self.rows(capture, "udp_recv")) == self.count


class DnsReplyDropped(_Dns):
    about = "the server answers, and the reply is dropped on the return path"
    expected = expect("DNS_NO_REPLY", "dns policy")

    def arrange(self) -> None:
        self.serve(jobs.resolver(self.host))
        self.link.client.nft(on_input("udp sport 53 counter drop"))

    def prove(self, capture: Capture) -> None:
        assert self.tally == {"timeout": self.count}, self.tally
        assert self.matched(self.link.client) == self.count
        assert len(capture.of("udp_send", net=self.link.server.inode)) == self.count


class DnsOtherAddress(_Dns):
    about = "a resolver that answers from another of its addresses"
    expected = expect("DNS_NO_REPLY", "dns")

    def arrange(self) -> None:
        self.serve(jobs.resolver(self.host, via=self.link.second_address()))

    def run(self) -> None:
        self.ask(self.host, connected=False)
        self.subject = Subject(self.shop.tgid, jobs.shown(self.host, 53))

    def prove(self, capture: Capture) -> None:
        assert self.tally == {"timeout": self.count}, self.tally
        peers = {row["tuple"].split(" -> ")[1] for row in self.rows(capture, "udp_recv")}
        assert len(peers) == 1
        assert jobs.shown(self.host, 53) not in peers


class DnsRefused(_Dns):
    about = "nothing listens on the resolver's port: ICMP port unreachable"
    expected = expect("DNS_NO_REPLY", "dns")

    def arrange(self) -> None:
        """Port 53 stays closed."""

    def prove(self, capture: Capture) -> None:
        assert self.tally == {"ECONNREFUSED": self.count}, self.tally
        errors = [row["error"] for row in self.rows(capture, "udp_recv")]
        assert errors == ["ECONNREFUSED"] * self.count, errors


class DnsServiceHalfDead(Scene):
    about = "cluster DNS behind a Service address: one of its two backends is down"
    expected = expect("DNS_NO_REPLY", "dns nat", also="CONNTRACK_UNREPLIED")

    def build(self) -> None:
        self.net = Routed(self.crew, 2)
        for backend, address in zip(self.net.backends, self.net.addresses, strict=True):
            self.ready(backend.start(jobs.resolver(address), comm="coredns"))
        self.net.service("udp dport 53", self.net.addresses)
        self.net.backends[1].nft(on_input("udp dport 53 counter drop"))

    def enter(self) -> list[str]:
        return self.net.enter

    def run(self) -> None:
        job = jobs.stub(Routed.VIP, rate=12, seconds=1.5)
        shop = self.net.client.start(job, comm="shop")
        self.subject = Subject(shop.tgid, jobs.shown(Routed.VIP, 53))
        self.tally = shop.result()

    def prove(self, capture: Capture) -> None:
        assert self.tally == {Routed.VIP: 9, "timeout": 9}, self.tally
        assert self.matched(self.net.backends[1]) == 9


class DnsOneSlow(_Dns):
    about = "two resolvers in use, one of which answers after 700 ms"
    expected = expect("DNS_SLOW", "dns")

    def arrange(self) -> None:
        self.slow = self.link.second_address()
        self.serve(jobs.resolver(self.host))
        self.serve(jobs.resolver(self.slow, delay_s=0.7))

    def run(self) -> None:
        fast = self.link.client.start(jobs.stub(self.host, rate=20, seconds=1.5), comm="shop")
        self.ask(self.slow)
        self.fast = fast.result()
        self.subject = Subject(
            self.shop.tgid, jobs.shown(self.slow, 53), blameless=(jobs.shown(self.host, 53),)
        )

    def prove(self, capture: Capture) -> None:
        assert self.tally == {self.slow: self.count}, self.tally
        assert self.fast == {self.host: 30}, self.fast
