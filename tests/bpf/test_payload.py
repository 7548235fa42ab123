# SPDX-License-Identifier: Apache-2.0
"""Metadata only: a canary that is sent in every way is not in the spool, bundle or maps."""

import os
import secrets
import socket
import tarfile
from pathlib import Path

import pytest

from tests.bpf.captures import Capture
from tests.bpf.conftest import Begin
from tests.bpf.namespaces import Pair
from tests.bpf.tcp_jobs import KINDS, V4, Kind, listener, take
from tests.bpf.udp_sends import SENDS, Ends
from tests.bpf.workers import Job, Line, wait_until

pytestmark = pytest.mark.world("bpf")

CANARY = secrets.token_hex(32).encode()
"""64 bytes; what every payload is made of."""
PORT = 7701
RECORD = 152
"""Bytes of a record in the spool."""


def canaries(size: int) -> bytes:
    return (CANARY * (size // len(CANARY) + 1))[: max(size, len(CANARY))]


def udp_sends(kind: Kind, ports: list[int]) -> Job:
    """Every way to send that there is, each payload a canary."""

    def job(line: Line) -> None:
        import tests.bpf.udp_sends as jobs

        jobs.x = canaries
        for send in SENDS:
            if send.__name__ in ("send_refused", "sendmmsg_partly", "too_long"):
                continue
            with socket.socket(kind.family, socket.SOCK_DGRAM) as sock:
                send(Ends(kind, sock, ports))

    return job


def udp_sink(kind: Kind) -> Job:
    """Receives in several ways until the test sends "stop"; returns the number of canaries."""

    def job(line: Line) -> int:
        socks = [socket.socket(kind.family, socket.SOCK_DGRAM) for _ in range(3)]
        for sock in socks:
            sock.bind((kind.any, 0))
            sock.settimeout(0.01)
        line.say([sock.getsockname()[1] for sock in socks])
        found = turn = 0
        while not line.spoken_to() or turn % 8:
            for sock in socks:
                turn += 1
                try:
                    match turn % 4:
                        case 0:
                            data = sock.recv(65536)
                        case 1:
                            data = sock.recvfrom(65536)[0]
                        case 2:
                            data = sock.recvmsg(65536)[0]
                        case _:
                            data = sock.recv(65536, socket.MSG_PEEK)
                except TimeoutError:
                    continue
                found += CANARY in data
        return found

    return job


def tcp_echo(kind: Kind) -> Job:
    def job(line: Line) -> None:
        with listener(kind, PORT) as server:
            line.say("ready")
            with server.accept()[0] as connection:
                text = connection.recv(64, socket.MSG_PEEK)
                take(connection, 64)
                assert text == CANARY
                connection.sendall(CANARY)
                connection.recv(1)

    return job


def tcp_ask(kind: Kind) -> Job:
    def job(line: Line) -> None:
        with socket.socket(kind.family, socket.SOCK_STREAM) as sock:
            sock.connect((kind.server, PORT))
            sock.sendmsg([CANARY[:32], CANARY[32:]])
            assert sock.recvmsg(64)[0] == CANARY

    return job


def spool_of(capture: Capture) -> Path:
    """The unnamed file that the records go to."""
    folder = Path(f"/proc/{capture.process.pid}/fd")
    inside = f"{capture.out}/"
    spools = [fd for fd in folder.iterdir() if os.readlink(fd).startswith(inside)]
    assert len(spools) == 1
    return spools[0]


def test_canary(capture: Begin, pair: Pair) -> None:
    with capture() as one:
        received = 0
        for kind in KINDS:
            sink = pair.server.start(udp_sink(kind))
            pair.client.call(udp_sends(kind, sink.hear()))
            sink.say("stop")
            received += sink.result()
            server = pair.server.start(tcp_echo(kind))
            server.hear()
            pair.client.call(tcp_ask(kind), comm="kt canary")
            server.result()
        pair.wait_quiet()
        spool = spool_of(one)
        # The marker comes last: once it is in the spool everything before is too.
        marker = f"kt {secrets.token_hex(5)}".encode()
        pair.client.call(_mark, comm=marker.decode())
        wait_until(lambda: marker in spool.read_bytes(), "the spool to hold the marker")
        records = spool.read_bytes()
    assert received > 50
    assert len(records) > 200 * RECORD
    assert b"kt canary" in records
    texts = {path.name: path.read_bytes() for path in one.out.iterdir()}
    with tarfile.open(one.file("bundle.tgz")) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            assert file
            texts[f"tgz/{member.name}"] = file.read()
    texts |= {"spool": records, "stdout": one.stdout.encode(), "stderr": one.stderr.encode()}
    assert any(b"kt canary" in text for name, text in texts.items() if name != "spool")
    for name, text in texts.items():
        for part in (CANARY, CANARY[:16], CANARY[-16:]):
            assert part not in text, name


def _mark(line: Line) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"", (V4.server, 9))
