# SPDX-License-Identifier: Apache-2.0
"""Every result of connect(): what a process does, and the row that must follow."""

import errno
import select
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.bpf import syscalls
from tests.bpf.tcp_jobs import KINDS, MAPPED, V4, V6, Kind, tcp
from tests.bpf.workers import Line, Worker

OPEN, CLOSED, SILENT, SLOW = 7100, 7101, 7102, 7103
RESET, PORT_ICMP, HOST_ICMP, NET_ICMP, ADMIN_ICMP = 7110, 7111, 7112, 7113, 7114
MUTE = "10.77.0.3"
"""An address of the server that answers nothing."""
ROUTES = ("prohibit 192.0.2.2", "blackhole 192.0.2.3", "unreachable 192.0.2.4")
ROUTES6 = ("prohibit 2001:db8::2", "blackhole 2001:db8::3", "unreachable 2001:db8::4")
RULES = f"""
table inet reply {{
  chain input {{
    type filter hook input priority 0;
    tcp dport {{ {SILENT}, {SLOW} }} drop
    ip daddr {MUTE} drop
    tcp dport {RESET} reject with tcp reset
    tcp dport {PORT_ICMP} reject with icmpx type port-unreachable
    tcp dport {HOST_ICMP} reject with icmpx type host-unreachable
    meta nfproto ipv4 tcp dport {NET_ICMP} reject with icmp type net-unreachable
    tcp dport {ADMIN_ICMP} reject with icmpx type admin-prohibited
  }}
}}
"""


@dataclass
class Case:
    """What a process does, and the one row that must come of it."""

    name: str
    job: Callable[[Line], Any]
    peer: str
    result: str
    error: int = 0
    rows: int = 1
    early: bool = False
    """Begins before the capture."""
    opens_later: bool = False
    """Goes on when the rule for SLOW is lifted."""
    kill: bool = False
    known_duration: bool = True
    ran: list[Worker] = field(default_factory=list)


def blocking(kind: Kind, host: str, port: int, expected: int) -> Callable[[Line], Any]:
    def job(line: Line) -> None:
        with tcp(kind) as sock:
            assert syscalls.connect(sock, (host, port)) == expected

    return job


def finished(sock: socket.socket) -> int:
    """SO_ERROR once a connect in progress has ended."""
    select.select([], [sock], [])
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def repeated_ok(line: Line) -> None:
    with tcp() as sock:
        sock.setblocking(False)
        assert syscalls.connect(sock, (V4.server, OPEN)) == errno.EINPROGRESS
        select.select([], [sock], [])
        assert syscalls.connect(sock, (V4.server, OPEN)) == 0
        assert syscalls.connect(sock, (V4.server, OPEN)) == errno.EISCONN
        assert syscalls.connect(sock, (V4.server, OPEN)) == errno.EISCONN


def repeated_silent(line: Line) -> None:
    with tcp() as sock:
        sock.setblocking(False)
        assert syscalls.connect(sock, (V4.server, SILENT)) == errno.EINPROGRESS
        for _ in range(3):
            assert syscalls.connect(sock, (V4.server, SILENT)) == errno.EALREADY
        line.say("pending")
        line.hear()


def nonblocking_refused(line: Line) -> None:
    with tcp() as sock:
        sock.setblocking(False)
        assert syscalls.connect(sock, (V4.server, CLOSED)) == errno.EINPROGRESS
        assert finished(sock) == errno.ECONNREFUSED


def refused_twice(line: Line) -> None:
    """Two attempts on one socket: two rows."""
    with tcp() as sock:
        for _ in range(2):
            assert syscalls.connect(sock, (V4.server, CLOSED)) == errno.ECONNREFUSED


def asked_after_failure(line: Line) -> None:
    """The second call reads the error of the first attempt, it makes no new one."""
    with tcp() as sock:
        sock.setblocking(False)
        assert syscalls.connect(sock, (V4.server, CLOSED)) == errno.EINPROGRESS
        select.select([], [sock], [])
        assert syscalls.connect(sock, (V4.server, CLOSED)) == errno.ECONNREFUSED


def given_up(line: Line) -> None:
    with tcp() as sock:
        sock.setblocking(False)
        assert syscalls.connect(sock, (V4.server, SILENT)) == errno.EINPROGRESS


def unspecified(line: Line) -> None:
    """connect(AF_UNSPEC) ends the attempt."""
    with tcp() as sock:
        sock.setblocking(False)
        assert syscalls.connect(sock, (V4.server, SILENT)) == errno.EINPROGRESS
        assert syscalls.disconnect(sock) == 0


def pending(port: int) -> Callable[[Line], Any]:
    def job(line: Line) -> None:
        with tcp() as sock:
            sock.setblocking(False)
            assert syscalls.connect(sock, (V4.server, port)) == errno.EINPROGRESS
            line.say("pending")
            line.hear()

    return job


def dies_connecting(line: Line) -> None:
    line.say("connecting")
    with tcp() as sock:
        syscalls.connect(sock, (V4.server, SILENT))


def times_out(option: int, value: int) -> Callable[[Line], Any]:
    def job(line: Line) -> None:
        with tcp() as sock:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
            assert syscalls.connect(sock, (V4.server, SILENT)) == errno.ETIMEDOUT

    return job


def no_local_port(line: Line) -> None:
    """The range has one port and that is taken."""
    with tcp() as first, tcp() as second:
        for sock in (first, second):
            value = struct.pack("=I", 41001 << 16 | 41001)
            sock.setsockopt(socket.IPPROTO_IP, syscalls.IP_LOCAL_PORT_RANGE, value)
        first.bind((V4.client, 41001))
        assert syscalls.connect(second, (V4.server, OPEN)) == errno.EADDRNOTAVAIL


def wrong_family(line: Line) -> None:
    with tcp(V4) as sock:
        assert syscalls.connect(sock, (V6.server, OPEN)) == errno.EAFNOSUPPORT


def denied(line: Line) -> None:
    syscalls.deny_connect(errno.EACCES)
    with tcp() as sock:
        assert syscalls.connect(sock, (V4.server, OPEN)) == errno.EACCES


def fast_open(line: Line) -> None:
    """No connect() at all: the handshake begins in sendto()."""
    with tcp() as sock:
        sock.sendto(b"x", syscalls.MSG_FASTOPEN, (V4.server, OPEN))


def interrupt_once(restart: bool) -> None:
    """A signal in 100 ms, and every 100 ms until one arrived."""

    def arrived(number: int, frame: Any) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    signal.signal(signal.SIGALRM, arrived)
    signal.siginterrupt(signal.SIGALRM, not restart)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)


def interrupted(line: Line) -> None:
    interrupt_once(restart=False)
    with tcp() as sock:
        assert syscalls.connect(sock, (V4.server, SILENT)) == errno.EINTR


def interrupted_then_open(line: Line) -> None:
    interrupt_once(restart=False)
    with tcp() as sock:
        assert syscalls.connect(sock, (V4.server, SLOW)) == errno.EINTR
        line.say("pending")
        assert finished(sock) == 0


def interrupted_then_pending(line: Line) -> None:
    interrupt_once(restart=False)
    with tcp() as sock:
        assert syscalls.connect(sock, (V4.server, SILENT)) == errno.EINTR
        line.say("pending")
        line.hear()


def restarted(line: Line) -> None:
    """SA_RESTART: the kernel calls again and the caller sees only the end."""
    interrupt_once(restart=True)
    with tcp() as sock:
        line.say("pending")
        assert syscalls.connect(sock, (V4.server, SLOW)) == 0


def open_later(line: Line) -> None:
    with tcp() as sock:
        sock.setblocking(False)
        assert syscalls.connect(sock, (V4.server, SLOW)) == errno.EINPROGRESS
        line.say("pending")
        assert finished(sock) == 0


def to(kind: Kind, port: int) -> str:
    return kind.shown(kind.server, port)


def simple(name: str, kind: Kind, host: str, port: int, error: int) -> Case:
    result = "failed" if error else "established"
    return Case(name, blocking(kind, host, port, error), kind.shown(host, port), result, error)


def make_cases() -> list[Case]:
    cases = []
    for kind in KINDS:
        cases += [
            simple(f"ok-{kind.name}", kind, kind.server, OPEN, 0),
            simple(f"refused-{kind.name}", kind, kind.server, CLOSED, errno.ECONNREFUSED),
            simple(f"reset-{kind.name}", kind, kind.server, RESET, errno.ECONNREFUSED),
            simple(f"port-icmp-{kind.name}", kind, kind.server, PORT_ICMP, errno.ECONNREFUSED),
        ]
    unreachable = errno.EHOSTUNREACH
    for kind, stem in ((V4, "192.0.2."), (V6, "2001:db8::"), (MAPPED, "::ffff:192.0.2.")):
        cases += [
            simple(f"no-route-{kind.name}", kind, f"{stem}1", OPEN, errno.ENETUNREACH),
            simple(f"prohibit-{kind.name}", kind, f"{stem}2", OPEN, errno.EACCES),
            simple(f"blackhole-{kind.name}", kind, f"{stem}3", OPEN, errno.EINVAL),
            simple(f"unreachable-{kind.name}", kind, f"{stem}4", OPEN, unreachable),
        ]
    silent, slow, opened, closed = (to(V4, port) for port in (SILENT, SLOW, OPEN, CLOSED))
    admin = {V4: unreachable, V6: errno.EACCES}
    return [
        *cases,
        simple("host-icmp-v4", V4, V4.server, HOST_ICMP, unreachable),
        simple("net-icmp-v4", V4, V4.server, NET_ICMP, errno.ENETUNREACH),
        *(
            simple(f"admin-icmp-{kind.name}", kind, kind.server, ADMIN_ICMP, error)
            for kind, error in admin.items()
        ),
        Case("repeated-ok", repeated_ok, opened, "established"),
        Case("repeated-silent", repeated_silent, silent, "pending"),
        Case("nonblocking-refused", nonblocking_refused, closed, "failed", errno.ECONNREFUSED),
        Case("refused-twice", refused_twice, closed, "failed", errno.ECONNREFUSED, rows=2),
        Case("asked-after-failure", asked_after_failure, closed, "failed", errno.ECONNREFUSED),
        Case("given-up", given_up, silent, "abandoned"),
        Case("unspecified", unspecified, silent, "abandoned"),
        Case("pending", pending(SILENT), silent, "pending"),
        Case("killed", dies_connecting, silent, "interrupted", errno.EINTR, kill=True),
        Case("syn-count", times_out(syscalls.TCP_SYNCNT, 1), silent, "failed", errno.ETIMEDOUT),
        Case(
            "user-timeout",
            times_out(syscalls.TCP_USER_TIMEOUT, 500),
            silent,
            "failed",
            errno.ETIMEDOUT,
        ),
        Case("no-local-port", no_local_port, opened, "failed", errno.EADDRNOTAVAIL),
        Case("wrong-family", wrong_family, to(V6, OPEN), "failed", errno.EAFNOSUPPORT),
        Case("denied", denied, opened, "denied", errno.EACCES, known_duration=False),
        Case("fast-open", fast_open, opened, "established"),
        Case("interrupted", interrupted, silent, "interrupted", errno.EINTR),
        Case("interrupted-pending", interrupted_then_pending, silent, "pending"),
        Case(
            "interrupted-open", interrupted_then_open, to(V4, SLOW), "established", opens_later=True
        ),
        Case("restarted", restarted, slow, "established", opens_later=True),
        Case("open-later", open_later, slow, "established", opens_later=True),
        Case("early-pending", pending(SILENT), silent, "pending", early=True, known_duration=False),
        Case(
            "early-open",
            open_later,
            slow,
            "established",
            early=True,
            opens_later=True,
            known_duration=False,
        ),
    ]


CASES = {case.name: case for case in make_cases()}
