# SPDX-License-Identifier: Apache-2.0
"""TCP workloads: what a client and a server do, and what each can report afterwards."""

import socket
from dataclasses import dataclass
from typing import Any

from tests.bpf import syscalls
from tests.bpf.workers import Job, Line

CLIENT_STATES = (
    ("CLOSE", "SYN_SENT"),
    ("SYN_SENT", "ESTABLISHED"),
    ("ESTABLISHED", "FIN_WAIT1"),
    ("FIN_WAIT1", "FIN_WAIT2"),
    ("FIN_WAIT2", "CLOSE"),
)
"""Of a client that closes first."""
SERVER_STATES = (
    ("LISTEN", "SYN_RECV"),
    ("SYN_RECV", "ESTABLISHED"),
    ("ESTABLISHED", "CLOSE_WAIT"),
    ("CLOSE_WAIT", "LAST_ACK"),
    ("LAST_ACK", "CLOSE"),
)
"""Of the child that a listener makes for it."""
LISTENER_STATES = (("CLOSE", "LISTEN"), ("LISTEN", "CLOSE"))


@dataclass(frozen=True)
class Kind:
    """A family of sockets, as they are opened and as their addresses are shown."""

    name: str
    family: socket.AddressFamily
    client: str
    server: str
    """Addresses of the two ends as the sockets see them."""

    def shown(self, address: str, port: int) -> str:
        host = address.removeprefix("::ffff:")
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def any(self) -> str:
        return "0.0.0.0" if self.family == socket.AF_INET else "::"

    @property
    def shown_family(self) -> str:
        return "ipv6" if self.name == "v6" else "ipv4"


V4 = Kind("v4", socket.AF_INET, "10.77.0.1", "10.77.0.2")
V6 = Kind("v6", socket.AF_INET6, "fd77::1", "fd77::2")
MAPPED = Kind("mapped", socket.AF_INET6, "::ffff:10.77.0.1", "::ffff:10.77.0.2")
KINDS = (V4, V6, MAPPED)


def tcp(kind: Kind = V4) -> socket.socket:
    return socket.socket(kind.family, socket.SOCK_STREAM)


def listener(kind: Kind, port: int = 0, backlog: int = 512) -> socket.socket:
    sock = socket.socket(kind.family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if kind.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(kind is V6))
    sock.bind((kind.any, port))
    sock.listen(backlog)
    return sock


def take(sock: socket.socket, size: int) -> None:
    """Read exactly `size` bytes."""
    while size:
        got = len(sock.recv(size))
        assert got, "the peer closed early"
        size -= got


def serve(kind: Kind, port: int, count: int, request: int, reply: int) -> Job:
    """Accept `count` connections one by one; reports its port; returns ports and cookies."""

    def job(line: Line) -> list[tuple[int, int]]:
        with listener(kind, port) as server:
            line.say(server.getsockname()[1])
            seen = []
            for _ in range(count):
                connection, peer = server.accept()
                with connection:
                    take(connection, request)
                    connection.sendall(b"r" * reply)
                    assert connection.recv(1) == b""
                    seen.append((peer[1], syscalls.cookie(connection)))
            return seen

    return job


def visit(kind: Kind, port: int, count: int, request: int, reply: int) -> Job:
    """Connect `count` times and close first; returns local ports and cookies."""

    def job(line: Line) -> list[tuple[int, int]]:
        seen = []
        for _ in range(count):
            with socket.socket(kind.family, socket.SOCK_STREAM) as sock:
                sock.connect((kind.server, port))
                sock.sendall(b"q" * request)
                take(sock, reply)
                seen.append((sock.getsockname()[1], syscalls.cookie(sock)))
        return seen

    return job


def accept_all(kind: Kind, port: int) -> Job:
    """Accept and close at once, one connection after the other, for ever."""

    def job(line: Line) -> None:
        with listener(kind, port) as server:
            line.say("ready")
            while True:
                server.accept()[0].close()

    return job


def discard(port: int) -> Job:
    """Accept and read to the end, one connection after the other, for ever."""

    def job(line: Line) -> None:
        with listener(V4, port) as server:
            line.say("ready")
            while True:
                with server.accept()[0] as connection:
                    while connection.recv(100):
                        pass

    return job


def owners(rows: list[dict[str, Any]]) -> list[Any]:
    """The process of each row."""
    return [row["tgid"] for row in rows]


def local_port(row: dict[str, Any]) -> int:
    return int(row["tuple"].split(" -> ")[0].rpartition(":")[2])


def states(rows: list[dict[str, Any]]) -> tuple[tuple[str, str], ...]:
    """Old and new state of each row."""
    return tuple((row["old_state"], row["new_state"]) for row in rows)
