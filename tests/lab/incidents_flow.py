# SPDX-License-Identifier: Apache-2.0
"""Incidents of connections that exist, and of datagrams."""

import socket
import time
from contextlib import suppress

from tests.bpf.captures import Capture
from tests.bpf.workers import Job, Line
from tests.lab import jobs
from tests.lab.scene import Linked, Scene, Subject, expect
from tests.lab.topology import Tunnel, Wire, on_input

PORT = 8080


class CloseWaitLeak(Linked):
    about = "a server never closes connections that its clients have closed"
    expected = expect("CLOSE_WAIT_GROWING", "application")

    def arrange(self) -> None:
        self.web = self.serve(self._leaky(self.host))

    @staticmethod
    def _leaky(host: str) -> Job:
        def job(line: Line) -> None:
            kept = []
            with jobs.listening(host, PORT) as sock:
                line.say("ready")
                while True:
                    kept.append(sock.accept()[0])
                    kept[-1].recv(1000)
                    kept[-1].sendall(b"r" * 200)

        return job

    def run(self) -> None:
        job = jobs.pace(lambda _: jobs.request(self.host, PORT), rate=32, seconds=1.5625)
        self.tally = self.link.client.call(job, comm="shop")
        self.subject = Subject(self.web.tgid)
        self.waiting = self.link.server.tcp_states().count("08")

    def prove(self, capture: Capture) -> None:
        assert self.tally == {"ok": 50}
        assert self.waiting == 50


class Resets(Linked):
    about = "the server resets connections in the middle of its answer"
    expected = expect("TCP_RESETS", "application")

    def arrange(self) -> None:
        self.serve(jobs.server(self.host, PORT, self._half))

    @staticmethod
    def _half(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(b"r" * 100)
        time.sleep(0.05)
        jobs.reset(connection)

    def run(self) -> None:
        before = self.link.client.snmp("Tcp.EstabResets")
        shop = self.link.client.start(
            jobs.pace(lambda _: jobs.request(self.host, PORT), rate=20, seconds=1.5), comm="shop"
        )
        self.tally = shop.result()
        self.resets = self.link.client.snmp("Tcp.EstabResets") - before
        self.subject = Subject(peer=jobs.shown(self.host, PORT), perhaps=shop.tgid)

    def prove(self, capture: Capture) -> None:
        assert self.tally == {"ECONNRESET": 30}, self.tally
        assert self.resets == 30


class _Loss(Linked):
    percent: int
    blocks: int

    def arrange(self) -> None:
        self.link.single_segments()
        self.serve(jobs.server(self.host, PORT, jobs.sink))
        self.link.server.nft(
            on_input(f"tcp dport {PORT} numgen random mod 100 < {self.percent} counter drop")
        )

    def run(self) -> None:
        size = self.blocks * 1000
        begin = self.link.client.snmp("Tcp.OutSegs"), self.link.client.snmp("Tcp.RetransSegs")
        job = jobs.pace(lambda _: jobs.upload(self.host, PORT, size), rate=25, seconds=2.0)
        shop = self.link.client.start(job, comm="shop")
        self.subject = Subject(shop.tgid, jobs.shown(self.host, PORT))
        self.tally = shop.result()
        self.sent = self.link.client.snmp("Tcp.OutSegs") - begin[0]
        self.again = self.link.client.snmp("Tcp.RetransSegs") - begin[1]

    def prove(self, capture: Capture) -> None:
        lost = self.matched(self.link.server)
        assert self.sent >= 1000, self.sent
        assert 0.5 * self.percent <= 100 * lost / self.sent <= 1.6 * self.percent, (lost, self.sent)
        assert self.again >= 0.8 * lost, (lost, self.again)
        rows = capture.of("tcp_retransmit", net=self.link.client.inode)
        told = sum(row["segs"] for row in rows)
        unseen = capture.summary["accounting"]["tcp_retransmit"]["unseen"]
        assert told <= self.again <= told + unseen, (told, self.again, unseen)


class LossTwo(_Loss):
    about = "2 % of the packets to the server are lost"
    expected = expect("TCP_RETRANSMITS", "routing unknown", also="TCP_CONNECT_SLOW")
    percent, blocks = 2, 60


class LossTen(_Loss):
    about = "10 % of the packets to the server are lost"
    expected = expect(
        "TCP_RETRANSMITS", "routing unknown", also="TCP_CONNECT_SLOW TCP_SYN_UNANSWERED"
    )
    percent, blocks = 10, 60


class UdpBufferSmall(Linked):
    about = "a receive buffer of 4 KiB, a slow reader, and bursts of datagrams"
    expected = expect("UDP_RCVBUF_DROPS", "application host")

    def arrange(self) -> None:
        job = jobs.take_datagrams(self.host, 9514, pause_s=0.02, rcvbuf=4096)
        self.sink = self.serve(job, "collector")

    def run(self) -> None:
        before = self.link.server.snmp("Udp.RcvbufErrors")
        job = jobs.pace(jobs.datagrams(self.host, 9514), rate=400, seconds=2, parallel=1)
        self.tally = self.link.client.call(job, comm="shop")
        self.drops = self.link.server.snmp("Udp.RcvbufErrors") - before
        self.subject = Subject(netns=self.link.server.inode, perhaps=self.sink.tgid)

    def prove(self, capture: Capture) -> None:
        assert self.tally == {"ok": 800}
        assert self.drops >= 500, self.drops


class MtuBlackHole(Scene):
    about = "the path drops packets of more than 1,000 bytes without an ICMP message"
    expected = expect("TCP_RETRANSMITS", "routing unknown")
    seconds = 3.5

    def build(self) -> None:
        narrow = Wire(lambda packet: None if len(packet) > 1000 else 0.0)
        self.path = Tunnel(self.crew, to_server=narrow, to_client=Wire())
        job = jobs.server(self.path.there, PORT, jobs.sink)
        self.ready(self.path.server.start(job, comm="web"))

    def run(self) -> None:
        host = self.path.there
        job = jobs.pace(
            lambda number: jobs.upload(host, PORT, 20_000 if number % 2 else 300, timeout_s=2.5),
            rate=20,
            seconds=0.6,
        )
        shop = self.path.client.start(job, comm="shop")
        self.subject = Subject(shop.tgid, jobs.shown(host, PORT))
        self.tally = shop.result()

    def settle(self) -> None:
        super().settle()
        self.packets = self.path.tally()

    def prove(self, capture: Capture) -> None:
        assert self.tally == {"ok": 6, "timeout": 6}, self.tally
        assert self.packets["lost"] >= 12


class HalfOpen(Linked):
    about = "the peer disappears while connections are in use, without FIN or RST"
    expected = expect("TCP_RETRANSMITS", "routing unknown policy", also="TCP_SYN_UNANSWERED")
    seconds = 4.0

    def arrange(self) -> None:
        self.serve(jobs.server(self.host, PORT, jobs.echo()))

    def run(self) -> None:
        worker = self.link.client.start(self._talk(self.host), comm="shop")
        self.subject = Subject(worker.tgid, jobs.shown(self.host, PORT))
        assert worker.hear() == "talking"
        self.link.server.nft(on_input("counter drop"))
        time.sleep(3.0)
        worker.say("stop")
        self.answers = worker.result()

    @staticmethod
    def _talk(host: str) -> Job:
        def job(line: Line) -> int:
            socks = [jobs.connect(host, PORT) for _ in range(6)]
            answers = sum(jobs.ask(sock) == "ok" for sock in socks)
            line.say("talking")
            time.sleep(0.2)
            while not line.spoken_to():
                for sock in socks:
                    sock.setblocking(False)
                    with suppress(BlockingIOError):
                        sock.send(b"GET / HTTP/1.1\r\n\r\n")
                    with suppress(BlockingIOError):
                        answers += bool(sock.recv(1000))
                time.sleep(0.1)
            return answers

        return job

    def prove(self, capture: Capture) -> None:
        assert self.answers == 6
        rows = capture.of("tcp_retransmit", tgid=self.subject.tgid)
        assert len({row["tuple"] for row in rows}) == 6
        assert sum(row["segs"] for row in rows) >= 18


class SlowApplication(Linked):
    about = "connections are established at once, the application answers after 900 ms"
    expected = expect("", "application healthy unknown", also="APPLICATION_SLOW")

    def arrange(self) -> None:
        self.serve(jobs.server(self.host, PORT, jobs.echo(delay_s=0.9)))

    def run(self) -> None:
        begin = time.monotonic()
        job = jobs.pace(lambda _: jobs.request(self.host, PORT), rate=8, seconds=1.6)
        self.tally = self.link.client.call(job, comm="shop")
        self.took = time.monotonic() - begin

    def prove(self, capture: Capture) -> None:
        assert sum(self.tally.values()) == self.tally["ok"] >= 12, self.tally
        assert self.took >= 2.3
        took = [row["duration_us"] for row in capture.of("connect", net=self.link.client.inode)]
        assert max(took) < 50_000, took
