# SPDX-License-Identifier: Apache-2.0
"""Network namespaces without names: each lives in a process that sleeps in it."""

import errno
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bpf import syscalls
from tests.bpf.workers import Crew, Job, Line, Worker, wait_until

TIME_WAIT, LISTEN = "06", "0A"


def _hold(line: Line) -> None:
    syscalls.unshare(syscalls.CLONE_NEWNET)
    line.say("made")
    while True:
        signal.pause()


class Namespace:
    """A network namespace with `lo` up."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        holder = crew.start(_hold)
        assert holder.hear() == "made"
        self.pid = holder.tgid
        self.inode = Path(f"/proc/{self.pid}/ns/net").stat().st_ino
        self.ip("link set lo up")

    def run(self, *command: str, stdin: str = "") -> str:
        """A command in this namespace; its output."""
        done = subprocess.run(
            ["nsenter", f"--net=/proc/{self.pid}/ns/net", *command],
            input=stdin,
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def ip(self, *commands: str) -> None:
        self.run("ip", "-batch", "-", stdin="\n".join(commands) + "\n")

    def nft(self, rules: str) -> None:
        self.run("nft", "-f", "-", stdin=rules)

    def mute(self, *ports: int) -> None:
        """Let no segment to these ports arrive."""
        self.nft(
            "table inet mute {\n chain input {\n  type filter hook input priority 0;\n"
            f"  tcp dport {{ {', '.join(map(str, ports))} }} drop\n }}\n}}\n"
        )

    @contextmanager
    def muted(self, *ports: int) -> Iterator[None]:
        """Inside, no segment to these ports arrives."""
        self.mute(*ports)
        try:
            yield
        finally:
            self.nft("delete table inet mute\n")

    def sysctl(self, name: str, value: str) -> None:
        path = f"/proc/sys/{name.replace('.', '/')}"
        self.run("sh", "-c", f"echo {value} > {path}")

    def start(self, job: Job, **how: Any) -> Worker:
        """A worker in this namespace."""
        return self._crew.start(job, netns=self.pid, **how)

    def call(self, job: Job, **how: Any) -> Any:
        """The result of a worker in this namespace."""
        return self.start(job, **how).result()

    def snmp(self, name: str) -> int:
        """A counter such as Tcp.RetransSegs of /proc/net/{snmp,netstat}."""
        group, field = name.split(".")
        for file in ("snmp", "netstat"):
            lines = Path(f"/proc/{self.pid}/net/{file}").read_text().splitlines()
            for names, values in zip(lines[::2], lines[1::2], strict=True):
                if names.startswith(f"{group}:") and field in names.split():
                    return int(values.split()[names.split().index(field)])
        raise KeyError(name)

    def wait_resends(self, before: int, count: int) -> None:
        """Until it has sent `count` segments again; `before` is Tcp.RetransSegs of then."""
        wait_until(
            lambda: self.snmp("Tcp.RetransSegs") - before >= count,
            f"{count} retransmitted segments",
        )

    def tcp_states(self) -> list[str]:
        """State (hexadecimal) of every TCP socket here, timewait and request sockets too."""
        lines: list[str] = []
        for file in ("tcp", "tcp6"):
            lines += Path(f"/proc/{self.pid}/net/{file}").read_text().splitlines()[1:]
        return [line.split()[3] for line in lines]

    def wait_quiet(self) -> None:
        """Until no TCP socket but listeners and those in TIME_WAIT is left."""
        wait_until(
            lambda: all(state in (TIME_WAIT, LISTEN) for state in self.tcp_states()),
            "the end of all connections",
        )


class Pair:
    """Two namespaces and a veth between them; addresses of the two ends."""

    V4 = ("10.77.0.1", "10.77.0.2")
    V6 = ("fd77::1", "fd77::2")

    def __init__(self, crew: Crew) -> None:
        self.client, self.server = Namespace(crew), Namespace(crew)
        self.client.ip(f"link add eth0 type veth peer name eth0 netns {self.server.pid}")
        for namespace, v4, v6 in zip((self.client, self.server), self.V4, self.V6, strict=True):
            namespace.sysctl("net.ipv6.conf.eth0.accept_dad", "0")
            namespace.sysctl("net.ipv4.tcp_no_metrics_save", "1")  # no test slows the next
            namespace.sysctl("net.ipv4.icmp_ratelimit", "0")
            namespace.sysctl("net.ipv6.icmp.ratelimit", "0")
            namespace.ip(
                f"addr add {v4}/24 dev eth0", f"addr add {v6}/64 dev eth0 nodad", "link set eth0 up"
            )
        self.client.call(self._warm_up)

    def _warm_up(self, line: Line) -> None:
        """Until both ends have found each other: nothing waits for a neighbour later."""
        for family, host in ((socket.AF_INET, self.V4[1]), (socket.AF_INET6, self.V6[1])):

            def answered(family: int = family, host: str = host) -> bool:
                with socket.socket(family, socket.SOCK_STREAM) as sock:
                    return sock.connect_ex((host, 1)) == errno.ECONNREFUSED

            wait_until(answered, f"an answer of {host}")

    def wait_quiet(self) -> None:
        self.client.wait_quiet()
        self.server.wait_quiet()
