# SPDX-License-Identifier: Apache-2.0
"""A capture in a time namespace: events carry the kernel's clock, not the namespace's."""

import os
import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.bpf.captures import READY, Capture
from tests.bpf.conftest import Begin
from tests.bpf.namespaces import Namespace
from tests.bpf.tcp_jobs import V4, listener
from tests.bpf.workers import Job, Line

pytestmark = pytest.mark.world("bpf")

QUERY = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04quiz\x04test\x00\x00\x01\x00\x01"
QUERIES = 3
CONNECTS = 50
NEAR = timedelta(seconds=1)
"""Rows and the worker's own clock are this close; a wrong clock is off by hours."""


@pytest.fixture(scope="module", params=[86_400, -3_600], ids=["a day ahead", "an hour behind"])
def captured(
    request: pytest.FixtureRequest, capture: Begin, alone: Namespace
) -> tuple[Capture, int, datetime]:
    """A capture of one connection and of unanswered queries: by which process, and when."""
    if not Path("/proc/self/ns/time").exists():
        pytest.skip("this kernel has no time namespaces")
    if request.param < -time.clock_gettime(time.CLOCK_BOOTTIME):
        pytest.skip("this machine runs for less than an hour: no clock may be before 0")
    shifted = ("unshare", "-T", "--fork", "--boottime", str(request.param))
    one = capture(prefix=shifted, duration="8s").start()
    one.wait_for(READY)
    began = datetime.now(UTC)
    tgid = alone.call(_traffic())
    assert one.wait() == 0, one.stderr
    one.read()
    return one, tgid, began


def _traffic() -> Job:
    def job(line: Line) -> int:
        with (
            listener(V4) as server,
            socket.socket(type=socket.SOCK_DGRAM) as mute,
            socket.socket(type=socket.SOCK_DGRAM) as asking,
        ):
            for _ in range(CONNECTS):
                with socket.create_connection(server.getsockname()[:2]):
                    server.accept()[0].close()
            mute.bind(("127.0.0.1", 53))
            for _ in range(QUERIES):
                asking.sendto(QUERY, ("127.0.0.1", 53))
        return os.getpid()

    return job


def test_rows_have_the_time_at_which_it_happened(captured: tuple[Capture, int, datetime]):
    one, tgid, began = captured
    rows = one.of(tgid=tgid)
    assert {row["type"] for row in rows} >= {"tcp_state", "connect", "udp_send"}
    for row in rows:
        assert abs(datetime.fromisoformat(row["ts"]) - began) < NEAR, row
    started, ended = (datetime.fromisoformat(one.summary[name]) for name in ("started", "ended"))
    assert started - NEAR < began < ended + NEAR


def test_queries_without_an_answer_are_counted(captured: tuple[Capture, int, datetime]):
    """What is still to be answered is judged by the end of the capture, on the same clock."""
    one, _, _ = captured
    assert one.summary["dns"]["unanswered"] >= QUERIES


def test_no_row_is_taken_for_unseen(captured: tuple[Capture, int, datetime]):
    """The kernel's counters rose within the window: on the same clock as the rows."""
    one, _, _ = captured
    # The host's own tasks may be exempt from tracing: a few of theirs prove nothing.
    assert one.summary["accounting"]["connect"]["unseen"] < CONNECTS


def test_the_node_says_the_clock_of_the_kernel(captured: tuple[Capture, int, datetime]):
    one, _, _ = captured
    uptime = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert uptime - 120 < one.node["uptime_s"] <= uptime
