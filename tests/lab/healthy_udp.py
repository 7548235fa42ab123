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
    tells = "1,000 DNS queries a second"

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
    tells = "A and AAAA at once on one socket, as the C library asks"

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
    tells = "two resolvers are asked at once, the first answer wins, the second is never read"

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
    tells = "most answers come at once, one in ten takes 250 ms: the resolver had to ask"

    def arrange(self) -> None:
        self.serve(jobs.resolver(self.host, delay_s=0.25, every=20))
        self.ask(self.host, rate=40)


class DnsForwarder(_Udp):
    tells = "a node-local cache: it is asked, asks another server, and answers"

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
    tells = "truncated answers: the same question again over TCP"

    def arrange(self) -> None:
        self.serve(jobs.resolver(self.host))
        self.serve(jobs.server(self.host, 53, jobs.echo(reply=1800)))

        def one(number: int) -> str:
            jobs.lookup([self.host], number, timeout_s=2.0, connected=True)
            return jobs.request(self.host, 53, reply=1800)

        self.client(self.link.client, jobs.pace(one, rate=15))


class DnsOneLost(Linked):
    tells = "one query in fifty is lost and asked again: the second try is answered"
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
    tells = "syslog over UDP: datagrams in one direction, no answer ever"

    def arrange(self) -> None:
        self.serve(jobs.take_datagrams(self.host, 514), "syslogd")
        self.client(self.link.client, jobs.pace(jobs.datagrams(self.host, 514), rate=200))


class StatsdToNobody(_Udp):
    tells = "metrics over UDP to a collector that drops them: nobody expects an answer"

    def arrange(self) -> None:
        self.serve(jobs.take_datagrams(self.host, 8125), "statsd")
        for _ in range(3):
            self.client(self.link.client, jobs.pace(jobs.datagrams(self.host, 8125), rate=30))


class Ntp(_Udp):
    tells = "time: one datagram a second to each of four servers, answered after 20 to 40 ms"

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
    tells = "discovery by multicast: announcements that few answer"

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
    tells = "two streams of 50 datagrams a second in both directions, with jitter"

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
    tells = "traces to a collector that is not installed: port unreachable, and nobody minds"

    def arrange(self) -> None:
        self.client(self.link.client, jobs.pace(jobs.datagrams(self.host, 6831), rate=5))
