# SPDX-License-Identifier: Apache-2.0
"""Failed connection attempts with misleading symptoms: in loops, beside UDP, by ICMP."""

from tests.bpf.captures import Capture, Row
from tests.bpf.workers import Job
from tests.lab import jobs
from tests.lab.incidents_connect import PORT, Connects
from tests.lab.scene import Subject, expect
from tests.lab.topology import on_input


class _Loop(Connects):
    """A process for each connect, one after the other, as `until nc -z` makes them."""

    def job(self) -> Job:
        return jobs.one_process_each(
            lambda _: jobs.request(self.host, PORT, timeout_s=self.timeout_s),
            pause_s=1 / self.rate,
            times=self.count,
        )

    def run(self) -> None:
        super().run()
        self.subject = Subject(
            peer=self.subject.peer,
            netns=self.link.client.inode,
            blameless=self.subject.blameless,
        )

    def connects(self, capture: Capture) -> list[Row]:
        rows = capture.of("connect", net=self.link.client.inode)
        return [row for row in rows if row["tuple"].endswith(f"-> {self.subject.peer}")]

    def check(self, capture: Capture) -> None:
        assert len({row["tgid"] for row in self.connects(capture)}) == self.count


class RefusedLoop(_Loop):
    about = "a loop waits for a server that never starts: one process per attempt, all refused"
    expected = expect("TCP_CONNECT_REFUSED", "application")
    outcome = "ECONNREFUSED"

    def arrange(self) -> None:
        """The port stays closed."""


class SilentLoop(_Loop):
    about = "a loop around a client that waits 1 s: one process per attempt, no answer"
    expected = expect("TCP_SYN_UNANSWERED", "policy routing", also="TCP_RETRANSMITS")
    outcome = "ETIMEDOUT"
    timeout_s, count = 1.0, 5

    def arrange(self) -> None:
        self.link.server.nft(on_input(f"tcp dport {PORT} counter drop"))


class _Refused(Connects):
    expected = expect("TCP_CONNECT_REFUSED", "application")
    outcome = "ECONNREFUSED"

    def check(self, capture: Capture) -> None:
        (counters,) = [
            one["counters"]
            for one in capture.node["netns"]
            if one["netns"] == self.link.client.inode
        ]
        came = counters["snmp"]["Icmp.InDestUnreachs"]["delta"]
        assert came >= self.count, came


class RefusedBesideUdp(_Refused):
    about = "nothing listens on the port, and metrics over UDP cause ICMP port unreachable"

    def arrange(self) -> None:
        """Both ports stay closed."""

    def run(self) -> None:
        send = jobs.pace(jobs.datagrams(self.host, 8125), rate=30, seconds=1.5)
        metrics = self.link.client.start(send, comm="metrics")
        super().run()
        metrics.result()


class RejectedPort(_Refused):
    about = "a firewall rejects with ICMP port unreachable: the client gets ECONNREFUSED"
    expected = expect("TCP_CONNECT_REFUSED", "policy")

    def arrange(self) -> None:
        self.serve(jobs.server(self.host, PORT, jobs.echo()))
        rule = f"tcp dport {PORT} counter reject with icmp type port-unreachable"
        self.link.server.nft(on_input(rule))
