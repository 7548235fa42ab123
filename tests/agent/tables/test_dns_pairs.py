# SPDX-License-Identifier: Apache-2.0
"""The round trip on rows of DNS answers: measured, ambiguous, or not known."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ktrace_agent.bundle.seal import seal
from ktrace_agent.kernel.recording import HookCounters
from ktrace_agent.tables.captured import Captured
from ktrace_api.capture import CaptureConfig
from ktrace_api.names import RowType
from ktrace_api.node import NodeInfo
from tests.agent.conftest import BOOT_NS, Make, make_events

SEND, RECV, CONNECT = 1, 2, 3
MS = 10**6
Sealed = Callable[..., list[tuple[Any, Any]]]


def message(kind: int, at_ms: float, sock: int = 1, **fields: Any) -> dict[str, Any]:
    usual = {"type": kind, "ts": BOOT_NS + round(at_ms * MS), "sock": sock, "remote_port": 53}
    return {**usual, "local_port": 50_000 + sock, "bytes": 60, **fields}


@pytest.fixture
def answers(
    make_recording: Make, config: CaptureConfig, node_info: NodeInfo, tmp_path: Path
) -> Sealed:
    """What the rows that received say, in order; no other row says anything."""

    def answers(*events: dict[str, Any], lost: int = 0, **changes: Any) -> list[tuple[Any, Any]]:
        made = make_events([*events])
        hooks = {
            row: HookCounters(
                seen=len(events) + lost, written=sum(made["type"] == number), lost_ring=lost
            )
            for number, row in enumerate(RowType)
        }
        asked = config.model_copy(update=changes)
        sealed = seal(Captured(make_recording(made, counters=hooks), asked, node_info), tmp_path)
        rows = [json.loads(line) for line in sealed.paths[0].read_text().splitlines()]
        for row in rows:
            assert ("dns_rtt_us" in row) == (row["type"] == "udp_recv")
        return [(row["dns_rtt_us"], row["dns_rtt_source"]) for row in rows
                if row["type"] == "udp_recv"]  # fmt: skip

    return answers


def test_an_answer_has_the_time_since_its_query(answers: Sealed):
    found = answers(message(SEND, 0), message(SEND, 1, 2), message(RECV, 4.25), message(RECV, 9, 2))
    assert found == [(4250, "heuristic"), (8000, "heuristic")]


def test_two_in_flight_on_one_socket_are_ambiguous(answers: Sealed):
    found = answers(message(SEND, 0), message(SEND, 1), message(RECV, 5), message(RECV, 6))
    assert [source for _, source in found] == ["ambiguous", "ambiguous"]


def test_the_first_answer_after_an_unanswered_try_is_ambiguous(answers: Sealed):
    (found,) = answers(message(SEND, 0), message(SEND, 1000), message(RECV, 1005))
    assert found == (5000, "ambiguous")


@pytest.mark.parametrize(
    "event",
    [
        message(RECV, 5, remote_port=5353),
        message(RECV, 5, local_port=53, remote_port=40_000),
        message(RECV, 5, remote_addr=bytes(15) + b"\7"),
        message(RECV, 5, sock=2),
        message(RECV, 5, peer_source=0, remote_port=0),
        message(RECV, 5, error=111),
        message(RECV, 5, flags=2),
    ],
    ids=["port", "server", "address", "socket", "nameless", "failed", "peek"],
)
def test_what_answers_no_known_query_has_no_time(answers: Sealed, event: dict[str, Any]):
    assert answers(message(SEND, 0), event) == [("-", "-")]


def test_where_events_were_lost_nothing_is_certain(answers: Sealed):
    assert answers(message(SEND, 0), message(RECV, 5), lost=3) == [(5000, "ambiguous")]


def test_a_sampled_capture_has_no_times(answers: Sealed):
    assert answers(message(SEND, 0), message(RECV, 5), sample=2) == [("-", "-")]
