# SPDX-License-Identifier: Apache-2.0
"""What the processes of the scenes do: servers until they are killed, clients that count."""

import errno
import heapq
import os
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from typing import Any

from tests.bpf.workers import Job, Line

Address = tuple[str, int]
Tally = Counter[str]


def family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def shown(host: str, port: int) -> str:
    """An address as ktrace writes it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def question(number: int) -> bytes:
    """A DNS query for web.shop.svc.cluster.local, type A."""
    labels = (b"web", b"shop", b"svc", b"cluster", b"local")
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return struct.pack(">HHHHHH", number & 0xFFFF, 0x0100, 1, 0, 0, 0) + name + b"\0\1\0\1"


def answer(query: bytes) -> bytes:
    head = query[:2] + struct.pack(">HHHHH", 0x8180, 1, 1, 0, 0)
    return head + query[12:] + b"\xc0\x0c\0\1\0\1\0\0\0\x1e\0\4\x0a\0\0\1"


def resolver(
    host: str, *, delay_s: float = 0.0, every: int = 1, silent: bool = False, via: str = ""
) -> Job:
    """A DNS server at port 53, that answers from its address `host` or from `via`.

    One answer in `every` comes after `delay_s`, the others at once; none where it is `silent`.
    """

    def job(line: Line) -> None:
        sock = socket.socket(family(host), socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind((host, 53))
        out = sock
        if via:
            out = socket.socket(family(via), socket.SOCK_DGRAM)
            out.bind((via, 53))
        line.say("ready")
        waiting: list[tuple[float, bytes, Any]] = []
        for number in count():
            pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
            if select.select([sock], [], [], pause)[0]:
                query, peer = sock.recvfrom(512)
                if not silent:
                    due = time.monotonic() + (0.0 if number % every else delay_s)
                    heapq.heappush(waiting, (due, answer(query), peer))
            while waiting and waiting[0][0] <= time.monotonic():
                _, reply, peer = heapq.heappop(waiting)
                out.sendto(reply, peer)

    return job


def lookup(
    resolvers: Sequence[str], number: int, *, timeout_s: float, connected: bool, tries: int = 1
) -> str:
    """Resolve one name like a stub resolver, server by server; return which one answered."""
    for host in list(resolvers) * tries:
        with socket.socket(family(host), socket.SOCK_DGRAM) as sock:
            sock.settimeout(timeout_s)
            end = time.monotonic() + timeout_s
            if connected:
                sock.connect((host, 53))
                sock.send(question(number))
            else:
                sock.sendto(question(number), (host, 53))
            while (left := end - time.monotonic()) > 0:
                sock.settimeout(left)
                try:
                    _, peer = sock.recvfrom(512)
                except TimeoutError:
                    break
                except OSError as problem:
                    return errno.errorcode[problem.errno or 0]
                if peer[0] == host:
                    return host
    return "timeout"


def pace(
    action: Callable[[int], str], *, rate: float, seconds: float | None = None, parallel: int = 16
) -> Job:
    """Run `action(number)` `rate` times per second until stopped or timed out; count results."""

    def job(line: Line) -> Tally:
        tally: Tally = Counter()
        lock = threading.Lock()

        def one(number: int) -> None:
            try:
                said = action(number)
            except OSError as problem:
                name = errno.errorcode.get(problem.errno or 0, type(problem).__name__)
                said = "timeout" if isinstance(problem, TimeoutError) else name
            with lock:
                tally[said] += 1

        begin = time.monotonic()
        with ThreadPoolExecutor(parallel) as pool:
            for number in range(100_000):
                due = begin + number / rate
                if line.spoken_to() or (seconds is not None and due >= begin + seconds):
                    break
                time.sleep(max(0.0, due - time.monotonic()))
                pool.submit(one, number)
        return tally

    return job


def one_process_each(
    action: Callable[[int], str], *, pause_s: float, times: int | None = None
) -> Job:
    """Run `action(number)` in a child, `times` times or until stopped, with pauses."""

    def child(number: int) -> int:
        try:
            return 0 if action(number) == "ok" else 255
        except TimeoutError:
            return errno.ETIMEDOUT
        except OSError as problem:
            return problem.errno or 255

    def job(line: Line) -> Tally:
        tally: Tally = Counter()
        for number in range(100_000 if times is None else times):
            if line.spoken_to():
                break
            process = os.fork()
            if process == 0:
                with suppress(BaseException):
                    os._exit(child(number))
                os._exit(255)
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            tally["ok" if code == 0 else errno.errorcode.get(code, "failed")] += 1
            time.sleep(pause_s)
        return tally

    return job


def stub(
    *resolvers: str, rate: float, seconds: float | None, timeout_s: float = 1.0, **how: Any
) -> Job:
    """A process that resolves names."""
    how = {"connected": True, **how}
    return pace(
        lambda number: lookup(resolvers, number, timeout_s=timeout_s, **how),
        rate=rate,
        seconds=seconds,
    )


def server(host: str, port: int, speak: Callable[[socket.socket], None], backlog: int = 512) -> Job:
    """A TCP server: `speak(connection)` for each one, in a thread of its own."""

    def talk(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            speak(connection)

    def job(line: Line) -> None:
        with listening(host, port, backlog) as sock:
            line.say("ready")
            while True:
                connection, _ = sock.accept()
                threading.Thread(target=talk, args=(connection,), daemon=True).start()

    return job


def listening(host: str, port: int, backlog: int = 512) -> socket.socket:
    sock = socket.socket(family(host), socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.listen(backlog)
    return sock


def echo(reply: int = 200, delay_s: float = 0.0) -> Callable[[socket.socket], None]:
    """Answers each request of a connection with `reply` bytes, until the client closes."""

    def speak(connection: socket.socket) -> None:
        while connection.recv(65536):
            time.sleep(delay_s)
            connection.sendall(b"r" * reply)

    return speak


def sink(connection: socket.socket) -> None:
    """Receive everything, then confirm it."""
    while connection.recv(1 << 17):
        pass
    connection.sendall(b"done")


def request(host: str, port: int, *, reply: int = 200, timeout_s: float = 5.0) -> str:
    """A connection, a request, its reply, an orderly end."""
    with connect(host, port, timeout_s) as sock:
        return ask(sock, reply)


def connect(host: str, port: int, timeout_s: float = 5.0) -> socket.socket:
    sock = socket.socket(family(host), socket.SOCK_STREAM)
    sock.settimeout(timeout_s)
    try:
        sock.connect((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def ask(sock: socket.socket, reply: int = 200) -> str:
    sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
    while reply > 0:
        got = len(sock.recv(65536))
        if not got:
            return "closed early"
        reply -= got
    return "ok"


def upload(host: str, port: int, size: int, timeout_s: float = 30.0) -> str:
    """Send `size` bytes and wait until the server confirms them."""
    with connect(host, port, timeout_s) as sock:
        block = b"x" * 65536
        while size > 0:
            size -= sock.send(block[: min(size, len(block))])
        sock.shutdown(socket.SHUT_WR)
        return "ok" if sock.recv(16) == b"done" else "closed early"


def datagrams(host: str, port: int) -> Callable[[int], str]:
    """One datagram a call, to which no answer is expected; one socket for all."""
    socks: list[socket.socket] = []

    def send(number: int) -> str:
        if not socks:
            socks.append(socket.socket(family(host), socket.SOCK_DGRAM))
        socks[0].sendto(b"<13>" + b"m" * (80 + number % 200), (host, port))
        return "ok"

    return send


def take_datagrams(host: str, port: int, *, pause_s: float = 0.0, rcvbuf: int = 1 << 20) -> Job:
    """Receives and forgets."""

    def job(line: Line) -> None:
        sock = socket.socket(family(host), socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        sock.bind((host, port))
        line.say("ready")
        while True:
            sock.recvfrom(2048)
            time.sleep(pause_s)

    return job


def answer_datagrams(host: str, port: int, delay_s: float = 0.0) -> Job:
    """Sends each datagram back."""

    def job(line: Line) -> None:
        sock = socket.socket(family(host), socket.SOCK_DGRAM)
        sock.bind((host, port))
        line.say("ready")
        while True:
            data, peer = sock.recvfrom(2048)
            time.sleep(delay_s)
            sock.sendto(data, peer)

    return job


def reset(sock: socket.socket) -> None:
    """Close with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def forking(host: str, port: int) -> Job:
    """A server that forks for each connection, as inetd and old web servers do."""

    def job(line: Line) -> None:
        with listening(host, port) as sock:
            line.say("ready")
            while True:
                connection, _ = sock.accept()
                if os.fork() == 0:
                    with suppress(OSError):
                        echo()(connection)
                    os._exit(0)
                connection.close()
                with suppress(ChildProcessError):
                    while os.waitpid(-1, os.WNOHANG)[0]:
                        pass

    return job
