# SPDX-License-Identifier: Apache-2.0
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from ktrace_agent.analyze.facts import gather
from ktrace_agent.analyze.summary import summarize
from ktrace_agent.bundle.fitted_summary import fit
from ktrace_agent.kernel.recording import Clock, Overflow
from ktrace_agent.tables.captured import Captured
from ktrace_agent.tables.load import load
from ktrace_api.capture import CaptureConfig
from ktrace_api.finding import DnsSummary, Findings
from ktrace_api.names import RowType, TcpState
from ktrace_api.node import NodeInfo
from ktrace_api.summary import NO_VERDICT, SUMMARY_MAX_BYTES, Accounting, Summary
from tests.agent.conftest import OFFSET_NS, Make, make_events, make_flows

U64 = 2**64 - 1
NOTHING_FOUND = Findings(findings=(), verdict=NO_VERDICT, dns=DnsSummary())


@pytest.fixture
def summary_of(make_recording: Make, node_info: NodeInfo) -> Any:
    def summary(
        events: Any = (),
        flows: Any = (),
        config: CaptureConfig | None = None,
        accounting: Any = None,
        **changes: Any,
    ) -> Summary:
        records = events if isinstance(events, np.ndarray) else make_events([*events])
        made_flows = flows if isinstance(flows, tuple) and flows else make_flows([*flows])
        recording = make_recording(records, made_flows, **changes)
        captured = Captured(recording, config or CaptureConfig(node="etcd-1"), node_info)
        with closing(load(recording, "etcd-1")) as tables:
            facts = gather(captured, tables.types(), accounting or {})
            return fit(summarize(tables, facts, NOTHING_FOUND))

    return summary


def stock(*rows: dict[str, Any]) -> bytes:
    return make_events([{"type": 6, **row} for row in rows]).tobytes()


def test_an_empty_run_has_a_summary(summary_of: Any):
    summary = summary_of()
    assert summary.rows == 0
    assert summary.complete
    assert summary.notes == ()
    assert summary.connects.top == summary.talkers.by_bytes == ()
    assert summary.window_s == 60


def test_rows_by_type_and_process(summary_of: Any):
    summary = summary_of(
        [{"type": 0}] * 3 + [{"type": 3}] * 2 + [{"type": 1, "tgid": 7, "comm": b"dig"}]
    )
    assert summary.rows_by_type[RowType.TCP_STATE] == 3
    assert summary.rows_by_type[RowType.TCP_RETRANSMIT] == 0
    first, second = summary.processes.top
    assert (first.tgid, first.comm, first.rows) == (100, "curl", 5)
    assert first.by_type == {RowType.TCP_STATE: 3, RowType.CONNECT: 2}
    assert (second.tgid, second.comm, second.rows) == (7, "dig", 1)


def test_talkers_come_from_flows(summary_of: Any):
    summary = summary_of(
        flows=[
            {"tx_bytes": 10, "rx_bytes": 1, "tx_calls": 2, "opened": 1},
            {"tx_bytes": 5, "local_port": 40001, "opened": 1, "failed": 1},
            {"tgid": 7, "comm": b"dig", "rx_bytes": 100, "proto": 17, "remote_port": 53},
            {"tgid": 0, "known": 0, "rx_bytes": 3},
        ]
    )
    dig, curl, nobody = summary.talkers.by_bytes
    assert (dig.comm, dig.rx_bytes, dig.flows) == ("dig", 100, 1)
    assert (curl.tx_bytes, curl.rx_bytes, curl.flows, curl.opened, curl.failed) == (15, 1, 2, 2, 1)
    assert (nobody.tgid, nobody.comm, nobody.uid, nobody.cgroup_id) == ("-", "-", "-", "-")
    assert [talker.comm for talker in summary.talkers.by_connections] == ["curl"]
    peer = summary.flows.top[1]
    assert (peer.comm, peer.peer, peer.proto, peer.tx_bytes) == ("curl", "10.0.0.2:443", "tcp", 15)


def test_connects_by_destination(summary_of: Any):
    summary = summary_of(
        [{"type": 3, "result": 1, "duration": n * 10**6} for n in range(1, 101)]
        + [{"type": 3, "result": 2, "error": 111, "remote_port": 80}] * 2
        + [{"type": 3, "result": 5, "remote_port": 80}]
    )
    refused, fine = summary.connects.top
    assert refused.peer == "10.0.0.2:80"
    assert refused.results == {"failed": 2, "pending": 1}
    assert refused.errors == {"ECONNREFUSED": 2}
    assert refused.latency_us is None
    assert fine.latency_us is not None
    latency = fine.latency_us
    assert (latency.count, latency.min, latency.max) == (100, 1000, 100_000)
    assert (latency.p50, latency.p90, latency.p99) == (50_000, 90_000, 99_000)
    assert summary.connects.results == {"established": 100, "failed": 2, "pending": 1}


def test_states_stock_and_retransmits(summary_of: Any):
    summary = summary_of(
        [
            {"old_state": 7, "new_state": 2},
            {"old_state": 7, "new_state": 2},
            {"old_state": 2, "new_state": 1},
            {"type": 4, "segs": 3, "new_state": 1},
            {"type": 4, "segs": 2, "new_state": 1},
        ],
        flows=[{"retrans_segs": 9}],
        stock_start=stock({"new_state": 8}, {"new_state": 8}, {"new_state": 10, "known": 0}),
        stock_end=stock({"new_state": 8}),
    )
    assert summary.tcp_states == {
        TcpState.CLOSE: {TcpState.SYN_SENT: 2},
        TcpState.SYN_SENT: {TcpState.ESTABLISHED: 1},
    }
    assert summary.stock_start.states == {"CLOSE_WAIT": 2, "LISTEN": 1}
    assert [(o.comm, o.sockets) for o in summary.stock_start.owners] == [("curl", 2), ("-", 1)]
    assert summary.stock_end.states == {"CLOSE_WAIT": 1}
    assert (summary.retransmits.segs, summary.retransmits.flow_segs) == (5, 9)
    assert [(r.peer, r.segs) for r in summary.retransmits.top] == [("10.0.0.2:443", 5)]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"overflow": Overflow(flows=1)}, "flow counts"),
        ({"ended_by": "error"}, "error"),
        ({"accounting": {"lost_ring": 1}}, "ring"),
        ({"accounting": {"lost_map": 1}}, "BPF map"),
        ({"accounting": {"capped": 1}}, "max_events"),
    ],
)
def test_every_loss_makes_it_incomplete(summary_of: Any, changes: dict[str, Any], word: str):
    if counts := changes.get("accounting"):
        zero = dict.fromkeys(Accounting.model_fields, 0)
        changes = {"accounting": {RowType.CONNECT: Accounting(**{**zero, **counts})}}
    summary = summary_of(**changes)
    assert not summary.complete
    assert any(word in note for note in summary.notes)


def test_what_was_asked_for_is_no_loss(summary_of: Any):
    zero = dict.fromkeys(Accounting.model_fields, 0)
    account = Accounting(**{**zero, "seen": 9, "sampled": 4, "filtered": 5})
    summary = summary_of(
        config=CaptureConfig(node="n", sample=7), accounting={RowType.CONNECT: account}
    )
    assert summary.complete
    assert any("one event in 7" in note for note in summary.notes)


def test_a_clock_that_jumped_is_told(summary_of: Any):
    summary = summary_of(clock=Clock(OFFSET_NS, OFFSET_NS + 3_600 * 10**9))
    assert any("+3600.0 s" in note for note in summary.notes)


def test_the_worst_run_stays_within_the_size(summary_of: Any):
    """Every list full, every name and number as long as they can be."""
    longest = bytes(range(1, 16))  # control characters: six bytes each in JSON
    events, flows, sockets = [], [], []
    for number in range(400):
        far = bytes.fromhex("fdff") + bytes([255] * 12) + number.to_bytes(2, "big")
        who = {
            "tgid": 2**32 - 1 - number % 200,
            "uid": 2**32 - 1,
            "comm": longest,
            "remote_addr": far,
            "remote_port": 65535,
            "family": 6,
        }
        for result in range(1, 7):
            errors = [{"error": 100 + number % 20 + result, "duration": U64 - 1}]
            events += [{"type": 3, "result": result, **who, **error} for error in errors]
        events += [{"type": kind, **who, "segs": 65535} for kind in (0, 1, 2, 4)]
        flows.append(
            {
                "tx_bytes": 2**56,
                "rx_bytes": 2**56,
                "tx_calls": 2**56,
                "rx_calls": 2**56,
                "opened": 2**32 - 1,
                "failed": 2**32 - 1,
                "cgroup_id": U64,
                **who,
            }
        )
        sockets += [{"new_state": state, **who} for state in range(1, 14)]
    matrix = [{"old_state": old, "new_state": new} for old in range(1, 14) for new in range(1, 14)]
    summary = summary_of(
        events + matrix,
        flows,
        config=CaptureConfig(node="n" * 253),
        stock_start=stock(*sockets),
        stock_end=stock(*sockets),
        accounting={
            kind: Accounting(**dict.fromkeys(Accounting.model_fields, U64)) for kind in RowType
        },
        overflow=Overflow(*[U64] * 8),
        spool_lost=dict.fromkeys(RowType, U64),
    )
    size = len(summary.to_bytes())
    assert size <= SUMMARY_MAX_BYTES
    assert summary.talkers.left_out > 0
    assert len(summary.talkers.by_bytes) >= 5
