# SPDX-License-Identifier: Apache-2.0
"""Incidents that this node itself makes: full backlogs, no ports, connect() denied."""

import socket

from tests.bpf import syscalls
from tests.bpf.captures import Capture
from tests.bpf.workers import Job, Line
from tests.lab import cgroup, jobs
from tests.lab.incidents_connect import PORT, Connects
from tests.lab.scene import Linked, Subject, expect


class BacklogFull(Linked):
    about = "a server stopped accepting: its accept queue of 4 is full"
    expected = expect(
        "LISTEN_OVERFLOW", "application", also="TCP_SYN_UNANSWERED TCP_CONNECT_SLOW TCP_RETRANSMITS"
    )

    def arrange(self) -> None:
        self.web = self.serve(self._stuck(self.host))

    @staticmethod
    def _stuck(host: str) -> Job:
        def job(line: Line) -> None:
            with jobs.listening(host, PORT, backlog=4):
                line.say("ready")
                line.hear()

        return job

    def run(self) -> None:
        before = self.link.server.snmp("TcpExt.ListenOverflows")
        job = jobs.pace(
            lambda _: jobs.request(self.host, PORT, timeout_s=1.6), rate=12, seconds=1.5
        )
        self.tally = self.link.client.call(job, comm="shop")
        self.overflows = self.link.server.snmp("TcpExt.ListenOverflows") - before
        self.subject = Subject(self.web.tgid)

    def prove(self, capture: Capture) -> None:
        assert self.tally == {"timeout": 18}, self.tally
        assert self.overflows >= 13
        states = {row["result"] for row in capture.of("connect", net=self.link.client.inode)}
        assert states == {"established", "abandoned"}


class PortsExhausted(Linked):
    about = "all 50 ephemeral ports to one destination are in use"
    expected = expect("EPHEMERAL_PORTS_EXHAUSTED", "host")

    def arrange(self) -> None:
        self.link.client.sysctl("net.ipv4.ip_local_port_range", "'40000 40049'")
        self.serve(jobs.server(self.host, PORT, jobs.echo()))

    def run(self) -> None:
        held: list[socket.socket] = []

        def hold(_: int) -> str:
            held.append(jobs.connect(self.host, PORT))
            return jobs.ask(held[-1])

        job = jobs.pace(hold, rate=35, seconds=2, parallel=1)
        shop = self.link.client.start(job, comm="shop")
        self.subject = Subject(shop.tgid)
        self.tally = shop.result()

    def prove(self, capture: Capture) -> None:
        assert self.tally == {"ok": 50, "EADDRNOTAVAIL": 20}, self.tally
        failed = capture.of("connect", tgid=self.subject.tgid)
        assert [row["error"] for row in failed].count("EADDRNOTAVAIL") == 20


class _Denied(Connects):
    def arrange(self) -> None:
        self.serve(jobs.server(self.host, PORT, jobs.echo()))


class DeniedBySeccomp(_Denied):
    about = "a seccomp filter rejects connect() with EACCES"
    expected = expect("CONNECT_DENIED", "policy")
    outcome = "EACCES"

    def job(self) -> Job:
        work = super().job()

        def denied(line: Line) -> jobs.Tally:
            syscalls.deny_connect()
            return work(line)

        return denied


class DeniedByCgroup(_Denied):
    about = "a BPF program of the cgroup rejects connect() with EPERM"
    expected = expect("CONNECT_DENIED", "policy")
    outcome = "EPERM"

    def arrange(self) -> None:
        cgroup.mounted()
        super().arrange()

    def job(self) -> Job:
        work = super().job()

        def denied(line: Line) -> jobs.Tally:
            with cgroup.denied_connects():
                return work(line)

        return denied
