# SPDX-License-Identifier: Apache-2.0
"""One `connect` row for each connect(), with its result, for every possible result."""

import errno
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from tests.bpf import syscalls
from tests.bpf.captures import Capture, Row
from tests.bpf.conftest import Begin
from tests.bpf.connect_cases import (
    CASES,
    CLOSED,
    MUTE,
    OPEN,
    ROUTES,
    ROUTES6,
    RULES,
    SLOW,
    Case,
)
from tests.bpf.namespaces import Pair
from tests.bpf.tcp_jobs import V4, V6, accept_all, tcp
from tests.bpf.workers import Line, wait_until

pytestmark = pytest.mark.world("bpf")

OTHER_PORT = 7199
SYN_SENT = "02"
"""As /proc/net/tcp shows it."""


@pytest.fixture(scope="module")
def net(pair: Pair) -> Pair:
    for route in (*ROUTES, *ROUTES6):
        pair.client.ip(f"route add {route}")
    pair.server.ip(f"addr add {MUTE}/24 dev eth0")
    pair.server.nft(RULES)
    ready = [pair.server.start(accept_all(kind, port)) for kind, port in _LISTENERS]
    for worker in ready:
        worker.hear()
    return pair


_LISTENERS = ((V4, OPEN), (V6, OPEN), (V4, SLOW))


@pytest.fixture(scope="module")
def captured(capture: Begin, net: Pair) -> Capture:
    """All cases in one capture; independent ones run in parallel."""

    def start(case: Case) -> None:
        case.ran.append(net.client.start(case.job))

    def held(case: Case) -> bool:
        return case.opens_later or case.kill or case.result == "pending"

    for case in CASES.values():
        if case.early:
            start(case)
            case.ran[0].hear()
    with capture("--with-retransmits=false") as one:
        for case in CASES.values():
            if not case.early:
                start(case)
        for case in CASES.values():
            if held(case) and not case.early:
                case.ran[0].hear()
        wait_until(lambda: not _in_handshake(CASES["killed"], net), "the SYN of `killed`")
        CASES["killed"].ran[0].kill()
        for case in CASES.values():
            if not held(case):
                case.ran[0].result()
        # Interrupted ones are in their second call by now; let the SYNs through.
        _lift(net)
        for case in CASES.values():
            if case.opens_later:
                case.ran[0].result()
    return one


def _in_handshake(case: Case, net: Pair) -> bool:
    """True while process `case` has not sent its SYN."""
    with suppress(OSError):
        for fd in os.listdir(f"/proc/{case.ran[0].tgid}/fd"):
            link = os.readlink(f"/proc/{case.ran[0].tgid}/fd/{fd}")
            inode = link.removeprefix("socket:[").removesuffix("]")
            for line in Path(f"/proc/{net.client.pid}/net/tcp").read_text().splitlines():
                if line.split()[9] == inode and line.split()[3] == SYN_SENT:
                    return False
    return True


def _lift(net: Pair) -> None:
    net.server.nft("flush table inet reply\n" + RULES.replace(f", {SLOW}", ""))


@pytest.mark.parametrize("name", CASES)
def test_one_row(captured: Capture, net: Pair, name: str) -> None:
    case = CASES[name]
    rows = captured.of("connect", tgid=case.ran[0].tgid)
    assert [outcome(row) for row in rows] == [
        (case.peer, case.result, case.error, errno.errorcode.get(case.error, "-"))
    ] * case.rows
    for row in rows:
        assert row["role"] == "client"
        assert row["ns"]["net"] == net.client.inode
        assert isinstance(row["duration_us"], int) == case.known_duration


def outcome(row: Row) -> tuple[str, str, int, str]:
    return row["tuple"].split(" -> ")[1], row["result"], row["errno"], row["error"]


def test_no_other_row(captured: Capture, net: Pair) -> None:
    rows = captured.of("connect", net=net.client.inode)
    assert len(rows) == sum(case.rows for case in CASES.values())
    assert not captured.of("connect", net=net.server.inode)
    assert not captured.of("tcp_retransmit")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((f"--ports={CLOSED}",), {CLOSED}),
        ((f"--ports={OTHER_PORT}",), set()),
        (("--dns-only",), {53}),
        (("--with-connect-latency=false",), set()),
    ],
    ids=["matching", "other", "dns", "off"],
)
def test_filters(capture: Begin, net: Pair, flags: tuple[str, ...], expected: set[int]) -> None:
    """Refused, unreachable and pending connects obey the filter too."""
    ports = (CLOSED, 53)

    def job(line: Line) -> None:
        held = []
        for port in ports:
            for _ in range(11):
                with tcp() as sock:
                    assert syscalls.connect(sock, (V4.server, port)) == errno.ECONNREFUSED
            for _ in range(5):
                with tcp() as sock:
                    assert syscalls.connect(sock, ("192.0.2.1", port)) == errno.ENETUNREACH
            for _ in range(3):
                held.append(tcp())
                held[-1].setblocking(False)
                assert syscalls.connect(held[-1], (MUTE, port)) == errno.EINPROGRESS
        line.say("done")
        line.hear()

    with capture(*flags) as one:
        worker = net.client.start(job)
        worker.hear()
    worker.kill()
    found = Counter(
        (int(row["tuple"].rpartition(":")[2]), row["result"], row["error"])
        for row in one.of("connect", tgid=worker.tgid)
    )
    assert found == {
        (port, *end): count
        for port in expected
        for end, count in (
            (("failed", "ECONNREFUSED"), 11),
            (("failed", "ENETUNREACH"), 5),
            (("pending", "-"), 3),
        )
    }
