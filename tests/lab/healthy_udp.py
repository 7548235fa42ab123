# SPDX-License-Identifier: Apache-2.0
"""Healthy UDP: DNS in its forms, one-way protocols, time."""

import random
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from tests.bpf.captures import Capture
from tests.bpf.workers import Job
from tests.lab import jobs
from tests.lab.scene import Healthy, Linked
from tests.lab.topology import on_input

GROUP = "239.77.0.1"


class _Udp(Linked, Healthy):
    comm = "named"

    def ask(self, *resolvers: str, rate: float, parallel: int = 16, **how: Any) -> None:
        how = {"timeout_s": 2.0, "connected": True, **how}

        def one(number: int) -> str:
            found = jobs.lookup(resolvers, number, **how)
            return "ok" if found in resolvers else found

        self.client(self.link.client, jobs.pace(one, rate=rate, parallel=parallel))


class DnsThousand(_Udp):
    about = "1,000 DNS queries per second"

    def arrange(self) -> None:
        self.serve(jobs.resolver(self.host))
        self.ask(self.host, rate=500)
        self.ask(self.host, rate=500, connected=False)

    def prove(self, capture: Capture) -> None:
        tallies = self.tallies
        assert all(set(tally) == {"ok"} for tally in tallies), tallies
        sent = len(capture.of("udp_send", net=self.link.client.inode))
        assert sent >= 800 * capture.summary["window_s"], sent


class DnsPairs(_Udp):
    about = "A and AAAA queries at once on one socket, as the C library sends them"

    def arrange(self) -> None:
        self.serve(jobs.resolver(self.host))
        self.client(self.link.client, jobs.pace(self._pair, rate=60))

    def _pair(self, number: int) -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(2.0)
            sock.connect((self.host, 53))
            for offset in (0, 1):
                sock.send(jobs.question(2 * number + offset))
            for _ in range(2):
                sock.recv(512)
        return "ok"


class DnsRace(_Udp):
    about = "two resolvers are queried at once, the first answer is used, the second is never read"

    def arrange(self) -> None:
        self.second = self.link.second_address()
        self.serve(jobs.resolver(self.host))
        self.serve(jobs.resolver(self.second, delay_s=0.02))
        self.client(self.link.client, jobs.pace(self._race, rate=30))

    def _race(self, number: int) -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(2.0)
            for host in (self.host, self.second):
                sock.sendto(jobs.question(number), (host, 53))
            sock.recvfrom(512)
        return "ok"


class DnsCacheMisses(_Udp):
    about = "most answers arrive at once, one in ten takes 250 ms (not in the cache)"

    def arrange(self) -> None:
        self.serve(jobs.resolver(self.host, delay_s=0.25, every=20))
        self.ask(self.host, rate=40)


class DnsForwarder(_Udp):
    about = "a node-local cache: it receives a query, queries another server, and answers"

    def arrange(self) -> None:
        self.serve(jobs.resolver(self.host, delay_s=0.005))
        cache = self.link.client.start(self._forward("127.0.0.1"), comm="dnscache")
        self.ready(cache)
        self.ask("127.0.0.1", rate=80)

    def _forward(self, host: str) -> Job:
        def job(line: Any) -> None:
            front = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            front.bind((host, 53))
            back = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            back.connect((self.host, 53))
            line.say("ready")
            while True:
                query, peer = front.recvfrom(512)
                back.send(query)
                front.sendto(back.recv(512), peer)

        return job


class DnsOverTcp(_Udp):
    about = "truncated answers: the query is repeated over TCP"

    def arrange(self) -> None:
        self.serve(jobs.resolver(self.host))
        self.serve(jobs.server(self.host, 53, jobs.echo(reply=1800)))

        def one(number: int) -> str:
            jobs.lookup([self.host], number, timeout_s=2.0, connected=True)
            return jobs.request(self.host, 53, reply=1800)

        self.client(self.link.client, jobs.pace(one, rate=15))


class DnsOneLost(Linked):
    about = "one query in fifty is lost and repeated: the second attempt is answered"
    alone = False

    def arrange(self) -> None:
        self.serve(jobs.resolver(self.host), "named")
        self.link.server.nft(on_input("udp dport 53 numgen inc mod 50 == 30 counter drop"))

    def run(self) -> None:
        job = jobs.stub(self.host, rate=40, seconds=2.0, timeout_s=0.5, tries=2)
        self.tally = self.link.client.call(job, comm="client")

    def prove(self, capture: Capture) -> None:
        assert self.tally == {self.host: 80}, self.tally


class Syslog(_Udp):
    about = "syslog over UDP: datagrams in one direction, never an answer"

    def arrange(self) -> None:
        self.serve(jobs.take_datagrams(self.host, 514), "syslogd")
        self.client(self.link.client, jobs.pace(jobs.datagrams(self.host, 514), rate=200))


class StatsdToNobody(_Udp):
    about = "metrics over UDP to a collector that drops them: no answer is expected"

    def arrange(self) -> None:
        self.serve(jobs.take_datagrams(self.host, 8125), "statsd")
        for _ in range(3):
            self.client(self.link.client, jobs.pace(jobs.datagrams(self.host, 8125), rate=30))


class Ntp(_Udp):
    about = "NTP: one datagram per second to each of four servers, answered after 20 to 40 ms"

    def arrange(self) -> None:
        for port in (1230, 1231, 1232, 1233):
            self.serve(jobs.answer_datagrams(self.host, port, 0.02 + 0.005 * (port - 1230)), "ntpd")

        def poll(number: int) -> str:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(2.0)
                sock.sendto(b"\x23" + bytes(47), (self.host, 1230 + number % 4))
                return "ok" if len(sock.recv(100)) == 48 else "short"

        self.client(self.link.client, jobs.pace(poll, rate=4))


class Multicast(_Udp):
    about = "multicast discovery: announcements with few answers"

    def arrange(self) -> None:
        self.link.client.ip("route add 239.0.0.0/8 dev eth0")
        self.link.server.ip("route add 239.0.0.0/8 dev eth0")
        self.serve(self._member(), "discovery")

        def announce(_: int) -> str:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"announce", (GROUP, 5353))
            return "ok"

        self.client(self.link.client, jobs.pace(announce, rate=5))

    @staticmethod
    def _member() -> Job:
        def job(line: Any) -> None:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind((GROUP, 5353))
            member = socket.inet_aton(GROUP) + struct.pack("=I", socket.INADDR_ANY)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
            line.say("ready")
            while True:
                sock.recvfrom(1500)

        return job


class VoiceCall(_Udp):
    about = "two streams of 50 datagrams per second in both directions, with jitter"

    def arrange(self) -> None:
        self.serve(jobs.answer_datagrams(self.host, 4000), "voice")
        self.client(self.link.client, jobs.pace(self._speak(), rate=50, parallel=1))

    def _speak(self) -> Callable[[int], str]:
        chance = random.Random(7)  # the same jitter in every run

        def speak(_: int) -> str:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(1.0)
                sock.connect((self.host, 4000))
                sock.send(b"v" * 160)
                time.sleep(0.002 * chance.random())
                return "ok" if sock.recv(1000) else "short"

        return speak


class UdpNobodyListens(_Udp):
    about = "traces to a collector that is not installed: port unreachable, without consequences"

    def arrange(self) -> None:
        self.client(self.link.client, jobs.pace(jobs.datagrams(self.host, 6831), rate=5))
