# SPDX-License-Identifier: Apache-2.0
"""Unusual but healthy TCP: distant, uneven, restarted, closed early, translated."""

import errno
import random
import select
import socket
import time
from abc import abstractmethod
from contextlib import suppress

from tests.bpf.captures import Capture
from tests.bpf.workers import Job, Line
from tests.lab import jobs
from tests.lab.healthy_tcp import PORT, PortScan, Web
from tests.lab.scene import Healthy, Linked
from tests.lab.topology import Routed, Tunnel, Wire, on_input


class ManyListeners(Web):
    about = "a process listens on 64 ports, and clients connect to all of them"

    def server(self) -> Job:
        def job(line: Line) -> None:
            socks = {}
            for number in range(64):
                sock = jobs.listening(self.host, PORT + number)
                socks[sock.fileno()] = sock
            line.say("ready")
            while True:
                for fd in select.select(list(socks), [], [])[0]:
                    connection, _ = socks[fd].accept()
                    with connection:
                        connection.recv(1000)
                        connection.sendall(b"r" * 200)

        return job

    def arrange(self) -> None:
        self.visit(lambda n: jobs.request(self.host, PORT + n % 64), rate=60)


class ForkServer(Web):
    about = "a server that forks for every connection"

    def server(self) -> Job:
        return jobs.forking(self.host, PORT)

    def arrange(self) -> None:
        self.visit(lambda _: jobs.request(self.host, PORT), rate=25)


class BigUpload(Web):
    about = "uploads of 16 MiB, one after the other"

    def server(self) -> Job:
        return jobs.server(self.host, PORT, jobs.sink)

    def arrange(self) -> None:
        self.visit(lambda _: jobs.upload(self.host, PORT, 16 << 20), rate=10, parallel=1)


class SlowReader(Web):
    about = "a client that reads slower than the server writes: the window closes, nothing is lost"

    def server(self) -> Job:
        def pour(connection: socket.socket) -> None:
            while connection.recv(1000):
                connection.sendall(b"r" * 2_000_000)

        return jobs.server(self.host, PORT, pour)

    def arrange(self) -> None:
        def sip(_: int) -> str:
            left = 2_000_000
            with jobs.connect(self.host, PORT) as sock:
                sock.sendall(b"GET")
                while left:
                    got = len(sock.recv(65536))
                    if not got:
                        return "closed early"
                    left -= got
                    time.sleep(0.005)
            return "ok"

        self.visit(sip, rate=4)


class LongPoll(Web):
    about = "requests that the server answers after 2 s on purpose"

    def server(self) -> Job:
        return jobs.server(self.host, PORT, jobs.echo(delay_s=2.0))

    def arrange(self) -> None:
        self.visit(lambda _: jobs.request(self.host, PORT), rate=4, parallel=32)


class ConnectingAsync(Web):
    about = "an event loop that starts 20 connections at once and waits for all of them"

    def arrange(self) -> None:
        def burst(_: int) -> str:
            socks = [socket.socket() for _ in range(20)]
            poll = select.poll()
            for sock in socks:
                sock.setblocking(False)
                assert sock.connect_ex((self.host, PORT)) in (0, errno.EINPROGRESS)
                poll.register(sock, select.POLLOUT)
            poll.poll(2000)
            for sock in socks:
                sock.close()
            return "ok"

        self.visit(burst, rate=5, parallel=1)


class _Path(Healthy):
    """A web server at the other end of a path that is the same both ways."""

    rate: float

    @abstractmethod
    def wire(self) -> Wire: ...

    def build(self) -> None:
        wire = self.wire()
        self.path = Tunnel(self.crew, to_server=wire, to_client=wire)
        host = self.path.there
        self.ready(self.path.server.start(jobs.server(host, PORT, jobs.echo()), comm="web"))
        work = jobs.pace(lambda _: jobs.request(host, PORT), rate=self.rate)
        self.client(self.path.client, work)


class FarAway(_Path):
    about = "a server on another continent (90 ms): slow to connect, but healthy"
    rate = 10

    def wire(self) -> Wire:
        return Wire(lambda packet: 0.045)


class Jitter(_Path):
    about = "a path with a delay of 5 to 25 ms: packets arrive out of order"
    rate = 20

    def wire(self) -> Wire:
        chance = random.Random(4)  # the same disorder in every run
        return Wire(lambda packet: 0.005 + 0.020 * chance.random())


class RefusedThenReady(Linked):
    about = "a client that starts before its server: refused twice, then connected"
    alone = False
    seconds = 3.5

    def arrange(self) -> None:
        """The port is closed at first."""

    def run(self) -> None:
        def insist(_: int) -> str:
            for pause in (0.4, 0.8, 1.6):
                with suppress(ConnectionRefusedError):
                    return jobs.request(self.host, PORT)
                time.sleep(pause)
            return "refused"

        client = self.link.client.start(jobs.pace(insist, rate=4, seconds=0.25), comm="client")
        time.sleep(0.9)
        self.serve(jobs.server(self.host, PORT, jobs.echo()))
        busy = jobs.pace(lambda _: jobs.request(self.host, PORT), rate=20, seconds=2.0)
        self.later = self.link.client.call(busy, comm="client")
        self.first = client.result()

    def prove(self, capture: Capture) -> None:
        assert self.first == {"ok": 1}, self.first
        assert self.later == {"ok": 40}, self.later
        errors = [row["error"] for row in capture.of("connect", net=self.link.client.inode)]
        assert errors.count("ECONNREFUSED") == 2


class RollingRestart(Linked):
    about = "a server is restarted: a few refusals within 200 ms, then none"
    alone = False
    seconds = 3.5

    def arrange(self) -> None:
        self.job = jobs.server(self.host, PORT, jobs.echo())
        self.web = self.serve(self.job)

    def run(self) -> None:
        client = self.link.client.start(
            jobs.pace(lambda _: jobs.request(self.host, PORT), rate=50, seconds=3.0), comm="client"
        )
        time.sleep(1.2)
        self.web.kill()
        time.sleep(0.15)
        self.serve(self.job)
        self.tally = client.result()

    def prove(self, capture: Capture) -> None:
        assert set(self.tally) <= {"ok", "ECONNREFUSED", "ECONNRESET", "closed early"}, self.tally
        assert 1 <= self.tally["ECONNREFUSED"] <= 20, self.tally
        assert self.tally["ok"] >= 120, self.tally


class ExecRush(Web):
    about = "20 processes per second that live a few milliseconds and connect once"

    def arrange(self) -> None:
        job = jobs.one_process_each(lambda _: jobs.request(self.host, PORT), pause_s=0.05)
        self.client(self.link.client, job)


class ScanByProcesses(PortScan):
    about = "a script probes 60 ports with one process each; one port is open"

    def arrange(self) -> None:
        self.client(self.link.client, jobs.one_process_each(self.check, pause_s=0.03))


class ServiceVip(Healthy):
    about = "a Service of three backends through DNAT, masqueraded, and hairpin to its own client"
    alone = True

    def build(self) -> None:
        self.net = Routed(self.crew, 3)
        for backend, address in zip(self.net.backends, self.net.addresses, strict=True):
            self.ready(backend.start(jobs.server(address, PORT, jobs.echo()), comm="web"))
        self.net.service("tcp dport 80", [f"{one} . {PORT}" for one in self.net.addresses])
        self.net.node.nft("""table ip lab {
            chain postrouting {
                type nat hook postrouting priority srcnat
                ct status dnat masquerade
            }
        }""")
        work = jobs.pace(lambda _: jobs.request(Routed.VIP, 80), rate=60)
        self.client(self.net.client, work)
        self.client(self.net.backends[0], work, comm="hairpin")

    def enter(self) -> list[str]:
        return self.net.enter


class ImpatientReaders(Web):
    about = "clients that abort downloads: they reset the connections themselves"

    def server(self) -> Job:
        return jobs.server(self.host, PORT, jobs.echo(reply=300_000))

    def arrange(self) -> None:
        def leave(_: int) -> str:
            with jobs.connect(self.host, PORT) as sock:
                sock.sendall(b"GET")
                return "ok" if sock.recv(1000) else "closed early"

        self.visit(leave, rate=20)


class LocalhostTwice(Linked, Healthy):
    about = (
        "`localhost` is first ::1, where nothing listens, then 127.0.0.1: refused, then connected"
    )

    def arrange(self) -> None:
        end = self.link.client
        self.ready(end.start(jobs.server("127.0.0.1", PORT, jobs.echo()), comm="web"))

        def visit(_: int) -> str:
            with suppress(ConnectionRefusedError):
                return jobs.request("::1", PORT)
            return jobs.request("127.0.0.1", PORT)

        self.client(end, jobs.pace(visit, rate=10))

    def prove(self, capture: Capture) -> None:
        super().prove(capture)
        errors = [row["error"] for row in capture.of("connect", net=self.link.client.inode)]
        assert errors.count("ECONNREFUSED") >= 20


class TinyLoss(Web):
    about = "one packet in 2,000 is lost, as on any long path"

    def server(self) -> Job:
        return jobs.server(self.host, PORT, jobs.sink)

    def arrange(self) -> None:
        self.link.single_segments()
        self.link.server.nft(on_input(f"tcp dport {PORT} numgen random mod 2000 < 1 counter drop"))
        self.visit(lambda _: jobs.upload(self.host, PORT, 200_000), rate=20)
