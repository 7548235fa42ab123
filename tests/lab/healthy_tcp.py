# SPDX-License-Identifier: Apache-2.0
"""Healthy TCP: busy, odd, idle; nothing in it is anybody's trouble."""

import socket
import threading
import time
from contextlib import suppress
from typing import Any

from tests.bpf.workers import Job
from tests.lab import jobs
from tests.lab.scene import Healthy, Linked

PORT = 8080


class Web(Linked, Healthy):
    """A web server at PORT, and its visitors."""

    def prepare(self) -> None:
        self.serve(self.server())

    def server(self) -> Job:
        return jobs.server(self.host, PORT, jobs.echo())

    def visit(self, action: Any, *, rate: float, parallel: int = 16) -> None:
        self.client(self.link.client, jobs.pace(action, rate=rate, parallel=parallel))


class BusyWebServer(Web):
    about = "12 persistent connections with 1,000 requests per second, and 50 short ones"

    def arrange(self) -> None:
        pool = threading.local()

        def kept(_: int) -> str:
            if not hasattr(pool, "sock"):
                pool.sock = jobs.connect(self.host, PORT)
            return jobs.ask(pool.sock)

        self.visit(kept, rate=1000, parallel=12)
        self.visit(lambda _: jobs.request(self.host, PORT), rate=50)


class ManyShortConnections(Web):
    about = "300 connections per second, one request each"

    def arrange(self) -> None:
        self.visit(lambda _: jobs.request(self.host, PORT), rate=300)


class PortScan(Web):
    about = "a health checker probes 60 ports, of which one is open"

    def arrange(self) -> None:
        self.visit(self.check, rate=20, parallel=1)

    def check(self, number: int) -> str:
        with suppress(ConnectionRefusedError):
            jobs.connect(self.host, PORT - 30 + number % 60).close()
        return "ok"


class TcpProbes(Web):
    about = "a kubelet's TCP probes: connect, then close with a RST"

    def arrange(self) -> None:
        def probe(_: int) -> str:
            jobs.reset(jobs.connect(self.host, PORT))
            return "ok"

        self.visit(probe, rate=10)


class GracefulShutdowns(Web):
    about = "both sides shut down one direction first and the other later"

    def server(self) -> Job:
        return jobs.server(self.host, PORT, jobs.sink)

    def arrange(self) -> None:
        self.visit(lambda _: jobs.upload(self.host, PORT, 5_000), rate=40)

        def lingering(_: int) -> str:
            with jobs.connect(self.host, PORT) as sock:
                sock.shutdown(socket.SHUT_WR)
                time.sleep(0.2)
                return "ok" if sock.recv(10) == b"done" else "closed early"

        self.visit(lingering, rate=10)


class ServerClosesFirst(Web):
    about = "HTTP/1.0: the server answers and closes; a slow reader leaves CLOSE_WAIT for 300 ms"

    def server(self) -> Job:
        def once(connection: socket.socket) -> None:
            connection.recv(1000)
            connection.sendall(b"r" * 200)

        return jobs.server(self.host, PORT, once)

    def arrange(self) -> None:
        def read(number: int) -> str:
            with jobs.connect(self.host, PORT) as sock:
                said = jobs.ask(sock)
                time.sleep(0.3 if number % 4 == 0 else 0.0)
                return said

        self.visit(read, rate=40)


class PoolLeftBehind(Web):
    about = "a pool of 8 connections that the server closed long ago: CLOSE_WAIT that does not grow"

    def server(self) -> Job:
        return jobs.server(self.host, PORT, lambda connection: connection.sendall(b"r" * 200))

    def arrange(self) -> None:
        self.serve(jobs.server(self.host, PORT + 1, jobs.echo()))
        pool: list[socket.socket] = []

        def work(_: int) -> str:
            while len(pool) < 8:
                pool.append(jobs.connect(self.host, PORT))
            return jobs.request(self.host, PORT + 1)

        self.visit(work, rate=20, parallel=1)
        time.sleep(0.5)


class IpSixOnly(Web):
    about = "IPv6 only: web and DNS"

    def prepare(self) -> None:
        for end, own in ((self.link.client, self.link.V4[0]), (self.link.server, self.link.V4[1])):
            end.ip(f"addr del {own}/24 dev eth0")
        self.host = self.link.V6[1]
        super().prepare()

    def arrange(self) -> None:
        self.serve(jobs.resolver(self.host))
        self.visit(lambda _: jobs.request(self.host, PORT), rate=50)

        def ask(number: int) -> str:
            found = jobs.lookup([self.host], number, timeout_s=2.0, connected=True)
            return "ok" if found == self.host else found

        self.visit(ask, rate=50)


class DualStack(Web):
    about = "happy eyeballs: IPv4 and IPv6 race, the loser is closed while it connects"

    def arrange(self) -> None:
        self.serve(jobs.server(self.link.V6[1], PORT, jobs.echo()))

        def race(number: int) -> str:
            six = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
            six.setblocking(False)
            with six, suppress(BlockingIOError):
                six.connect((self.link.V6[1], PORT))
            return jobs.request(self.host, PORT)

        self.visit(race, rate=20)


class LongIdle(Web):
    about = "30 idle connections with keepalive, and a heartbeat on one of them"

    def arrange(self) -> None:
        kept: list[socket.socket] = []

        def beat(_: int) -> str:
            while len(kept) < 30:
                kept.append(jobs.connect(self.host, PORT))
                kept[-1].setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                kept[-1].setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
            return jobs.ask(kept[0])

        self.visit(beat, rate=2, parallel=1)
        time.sleep(0.3)


class KeepalivePool(Web):
    about = "a pool of 8 connections, each renewed after 20 requests"

    def arrange(self) -> None:
        pool = threading.local()

        def work(_: int) -> str:
            if not hasattr(pool, "sock") or pool.used >= 20:
                if hasattr(pool, "sock"):
                    pool.sock.close()
                pool.sock, pool.used = jobs.connect(self.host, PORT), 0
            pool.used += 1
            return jobs.ask(pool.sock)

        self.visit(work, rate=400, parallel=8)
