# SPDX-License-Identifier: Apache-2.0
"""Incidents of connections that do not come about, or late."""

import time
from contextlib import suppress

from tests.bpf.captures import Capture, Row
from tests.bpf.workers import Job
from tests.lab import jobs
from tests.lab.scene import Linked, Scene, Subject, expect
from tests.lab.topology import SYN_ACK, Tunnel, Wire, on_input, tcp_flags

PORT, OTHER = 8080, 8081


class Connects(Linked):
    """A client that connects to PORT again and again, beside a port that is well."""

    rate, count, timeout_s = 10.0, 12, 1.5
    outcome = "timeout"

    def prepare(self) -> None:
        self.serve(jobs.server(self.host, OTHER, jobs.echo()))

    def target(self) -> str:
        return self.host

    def job(self) -> Job:
        return jobs.pace(
            lambda _: jobs.request(self.target(), PORT, timeout_s=self.timeout_s),
            rate=self.rate,
            seconds=self.count / self.rate,
        )

    def run(self) -> None:
        well = self.link.client.start(
            jobs.pace(lambda _: jobs.request(self.host, OTHER), rate=20, seconds=1), comm="shop"
        )
        shop = self.link.client.start(self.job(), comm="shop")
        self.subject = Subject(
            shop.tgid,
            jobs.shown(self.target(), PORT),
            blameless=(jobs.shown(self.host, OTHER),),
        )
        self.tally, self.well = shop.result(), well.result()

    def prove(self, capture: Capture) -> None:
        assert self.tally == {self.outcome: self.count}, self.tally
        assert self.well == {"ok": 20}, self.well
        assert len(self.connects(capture)) == self.count
        self.check(capture)

    def check(self, capture: Capture) -> None:
        """The part that differs by scene."""

    def connects(self, capture: Capture) -> list[Row]:
        return capture.of("connect", tgid=self.subject.tgid)


class Refused(Connects):
    about = "nothing listens on the port"
    expected = expect("TCP_CONNECT_REFUSED", "application")
    outcome = "ECONNREFUSED"

    def arrange(self) -> None:
        """The port stays closed."""

    def check(self, capture: Capture) -> None:
        assert {row["error"] for row in self.connects(capture)} == {"ECONNREFUSED"}


class BlackHole(Connects):
    about = "the server's side drops every SYN to the port"
    expected = expect("TCP_SYN_UNANSWERED", "policy routing", also="TCP_RETRANSMITS")

    def arrange(self) -> None:
        self.serve(jobs.server(self.host, PORT, jobs.echo()))
        self.link.server.nft(on_input(f"tcp dport {PORT} counter drop"))

    def check(self, capture: Capture) -> None:
        assert self.matched(self.link.server) >= 2 * self.count, "each SYN was sent again"


class BlackHoleSix(Linked):
    about = "SYNs over IPv6 are dropped, IPv4 to the same port works"
    expected = expect("TCP_SYN_UNANSWERED", "policy routing", also="TCP_RETRANSMITS")

    def arrange(self) -> None:
        for host in (self.host, self.link.V6[1]):
            self.serve(jobs.server(host, PORT, jobs.echo()))
        self.link.server.nft(on_input(f"ip6 nexthdr tcp tcp dport {PORT} counter drop"))

    def run(self) -> None:
        four, six = self.host, self.link.V6[1]

        def visit(number: int) -> str:
            return jobs.request(six if number % 2 else four, PORT, timeout_s=1.3)

        shop = self.link.client.start(jobs.pace(visit, rate=20, seconds=1.2), comm="shop")
        self.subject = Subject(
            shop.tgid, jobs.shown(six, PORT), blameless=(jobs.shown(four, PORT),)
        )
        self.tally = shop.result()

    def prove(self, capture: Capture) -> None:
        assert self.tally == {"ok": 12, "timeout": 12}, self.tally


class BlockedForever(BlackHole):
    about = "as black-hole, and the clients block in connect(): pending when the capture ends"
    expected = expect("TCP_SYN_UNANSWERED", "policy routing", also="TCP_RETRANSMITS")

    def run(self) -> None:
        job = jobs.pace(
            lambda _: jobs.request(self.host, PORT, timeout_s=60.0), rate=20, seconds=0.6
        )
        shop = self.link.client.start(job, comm="shop")
        self.subject = Subject(shop.tgid, jobs.shown(self.host, PORT))

    def prove(self, capture: Capture) -> None:
        assert [row["result"] for row in self.connects(capture)] == ["pending"] * 12
        assert self.matched(self.link.server) >= 24


class Rejected(Connects):
    about = "a firewall rejects with ICMP administratively prohibited"
    expected = expect("TCP_CONNECT_UNREACHABLE", "policy routing")
    outcome = "EHOSTUNREACH"

    def arrange(self) -> None:
        rule = f"tcp dport {PORT} counter reject with icmp type admin-prohibited"
        self.link.server.nft(on_input(rule))

    def check(self, capture: Capture) -> None:
        assert self.matched(self.link.server) == self.count


class RejectedFar(Scene):
    about = "as rejected, and the ICMP message takes 30 ms"
    expected = expect("TCP_CONNECT_UNREACHABLE", "policy routing")

    def build(self) -> None:
        self.path = Tunnel(self.crew, to_server=Wire(), to_client=Wire(lambda packet: 0.03))
        rule = f"tcp dport {PORT} counter reject with icmp type admin-prohibited"
        self.path.server.nft(on_input(rule))

    def run(self) -> None:
        job = jobs.pace(lambda _: jobs.request(self.path.there, PORT), rate=10, seconds=1.2)
        shop = self.path.client.start(job, comm="shop")
        self.subject = Subject(shop.tgid, jobs.shown(self.path.there, PORT))
        self.tally = shop.result()

    def prove(self, capture: Capture) -> None:
        assert self.tally == {"EHOSTUNREACH": 12}, self.tally
        errors = {row["error"] for row in capture.of("connect", tgid=self.subject.tgid)}
        assert errors == {"EHOSTUNREACH"}


class NoRoute(Connects):
    about = "no route to the destination's network"
    expected = expect("TCP_CONNECT_UNREACHABLE", "routing")
    outcome = "ENETUNREACH"

    def target(self) -> str:
        return "192.0.2.80"

    def arrange(self) -> None:
        assert "default" not in self.link.client.run("ip", "route")


class HostGone(Connects):
    about = "no host on the link has the destination's address"
    expected = expect("TCP_CONNECT_UNREACHABLE", "routing", also="TCP_SYN_UNANSWERED")
    outcome = "EHOSTUNREACH"
    timeout_s = 6.0

    def target(self) -> str:
        return self.host.removesuffix("2") + "77"

    def arrange(self) -> None:
        self.link.client.sysctl("net.ipv4.neigh.eth0.retrans_time_ms", "250")


class OneWayDrop(Connects):
    about = "a policy drops the SYN-ACKs on the return path"
    expected = expect("TCP_SYN_UNANSWERED", "policy", also="TCP_RETRANSMITS")

    def arrange(self) -> None:
        self.serve(jobs.server(self.host, PORT, jobs.echo()))
        rule = f"tcp sport {PORT} tcp flags & (syn | ack) == syn | ack counter drop"
        self.link.client.nft(on_input(rule))

    def check(self, capture: Capture) -> None:
        assert self.matched(self.link.client) >= self.count
        again = capture.of("tcp_retransmit", net=self.link.server.inode)
        assert any(row["synack"] for row in again)


def synack_late(seconds: float) -> Wire:
    return Wire(lambda packet: seconds if tcp_flags(packet) & SYN_ACK == SYN_ACK else 0.0)


class SynLate(Scene):
    about = "the path delays every SYN-ACK by 600 ms"
    expected = expect("TCP_CONNECT_SLOW", "routing unknown")
    late_s = 0.6

    def build(self) -> None:
        self.path = Tunnel(self.crew, to_server=Wire(), to_client=synack_late(self.late_s))
        job = jobs.server(self.path.there, PORT, jobs.echo())
        self.ready(self.path.server.start(job, comm="web"))

    def run(self) -> None:
        job = jobs.pace(lambda _: jobs.request(self.path.there, PORT), rate=16, seconds=1)
        shop = self.path.client.start(job, comm="shop")
        self.subject = Subject(shop.tgid, jobs.shown(self.path.there, PORT))
        self.tally = shop.result()

    def settle(self) -> None:
        super().settle()
        self.packets = self.path.tally()

    def prove(self, capture: Capture) -> None:
        assert self.tally == {"ok": 16}, self.tally
        assert self.packets["held"] == 16
        took = [row["duration_us"] for row in capture.of("connect", tgid=self.subject.tgid)]
        assert len(took) == 16
        assert 600_000 <= min(took) <= max(took) < 700_000, took


class RefusedLater(Connects):
    about = "the server process ends during the capture: from then on the port is closed"
    expected = expect("TCP_CONNECT_REFUSED", "application")
    count, rate = 40, 16.0

    def arrange(self) -> None:
        self.web = self.serve(jobs.server(self.host, PORT, jobs.echo()))

    def run(self) -> None:
        shop = self.link.client.start(self.job(), comm="shop")
        self.subject = Subject(shop.tgid, jobs.shown(self.host, PORT))
        time.sleep(1.0)
        self.web.kill()
        self.tally = shop.result()

    def prove(self, capture: Capture) -> None:
        with suppress(KeyError):
            self.tally["ok"] += self.tally.pop("ECONNRESET")
        assert set(self.tally) == {"ok", "ECONNREFUSED"}, self.tally
        assert self.tally["ECONNREFUSED"] >= 15
