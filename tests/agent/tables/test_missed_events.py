# SPDX-License-Identifier: Apache-2.0
"""Events that the kernel counted but for which no program ran."""

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ktrace_agent.bundle.seal import seal
from ktrace_agent.host.counters import Files, Missing, Snapshot
from ktrace_agent.host.tcp_counts import TcpCounts, TcpCountsRise, rise
from ktrace_agent.kernel.recording import HookCounters
from ktrace_agent.tables.captured import Captured
from ktrace_agent.tables.load import load
from ktrace_agent.tables.missed_events import count
from ktrace_api.capture import CaptureConfig
from ktrace_api.finding import FindingId, Severity
from ktrace_api.names import EventKind, RowType
from ktrace_api.node import NodeInfo
from tests.agent.conftest import BOOT_NS, Make, make_events, make_flows

NET, OTHER = 4026531840, 4026532001
CLOSE, LISTEN, SYN_RECV, SYN_SENT, ESTABLISHED = 7, 10, 3, 2, 1
OPEN = {"type": 0, "old_state": CLOSE, "new_state": SYN_SENT}
BIRTH = {"type": 0, "old_state": LISTEN, "new_state": SYN_RECV}
AGAIN = {"type": 4, "segs": 1}
LATER_NS = 10**10


def counted(netns: dict[int, TcpCounts]) -> TcpCountsRise:
    return TcpCountsRise(BOOT_NS, BOOT_NS + LATER_NS, netns)


@pytest.fixture
def unseen(make_recording: Make) -> Any:
    def missed(
        rows: Iterable[dict[str, Any]],
        netns: dict[int, TcpCounts],
        config: CaptureConfig | None = None,
        **changes: Any,
    ) -> dict[RowType, int]:
        recording = make_recording(
            make_events([*rows]), make_flows([]), tcp_counts=counted(netns), **changes
        )
        with closing(load(recording, "n")) as tables:
            found = count(tables.con, recording, config or CaptureConfig(node="n"))
        return {row: number for row, number in found.items() if number}

    return missed


def test_a_healthy_capture_misses_nothing(unseen: Any):
    rows = [OPEN, BIRTH, {**AGAIN, "segs": 11}]
    assert unseen(rows, {NET: TcpCounts(1, 1, 11)}) == {}
    assert unseen(rows, {NET: TcpCounts(0, 1, 7)}) == {}


def test_what_the_kernel_counted_beyond_the_rows(unseen: Any):
    rows = [OPEN, BIRTH, BIRTH, {**AGAIN, "segs": 793}]
    assert unseen(rows, {NET: TcpCounts(5, 3, 808)}) == {
        RowType.TCP_STATE: 3 + 2,
        RowType.CONNECT: 2,
        RowType.TCP_RETRANSMIT: 15,
    }


def test_a_namespace_does_not_pay_for_another(unseen: Any):
    rows = [BIRTH] * 7
    assert unseen(rows, {NET: TcpCounts(5, 0, 0), OTHER: TcpCounts(3, 0, 0)}) == {
        RowType.TCP_STATE: 3
    }


def test_rows_from_before_the_first_reading_hide_nothing(unseen: Any):
    rows = [{**BIRTH, "ts": BOOT_NS - 10**6}, {**BIRTH, "ts": BOOT_NS + 10**6}]
    assert unseen(rows, {NET: TcpCounts(2, 0, 0)}) == {RowType.TCP_STATE: 1}
    late = {**BIRTH, "ts": BOOT_NS + LATER_NS + 10**9}
    assert unseen([late, rows[1]], {NET: TcpCounts(2, 0, 0)}) == {RowType.TCP_STATE: 1}


@pytest.mark.parametrize("part", ["filtered", "sampled", "capped", "lost_ring", "lost_map"])
def test_nothing_is_compared_where_events_are_no_rows(part: str, unseen: Any):
    counters = dict.fromkeys(RowType, HookCounters(seen=1, **{part: 1}))
    assert unseen([], {NET: TcpCounts(5, 5, 5)}, counters=counters) == {}


def test_nothing_is_compared_that_was_not_asked_for(unseen: Any):
    counts = {NET: TcpCounts(5, 5, 5)}
    only = CaptureConfig(node="n", events=(EventKind.RETRANSMIT,))
    assert unseen([], counts, only) == {RowType.TCP_RETRANSMIT: 5}
    only = CaptureConfig(node="n", events=(EventKind.TCP,))
    assert unseen([], counts, only) == {RowType.TCP_STATE: 10}
    only = CaptureConfig(node="n", events=(EventKind.UDP,))
    assert unseen([], counts, only) == {}


def test_gaps_between_states_are_counted_by_the_kernel_side(unseen: Any):
    counters = dict.fromkeys(RowType, HookCounters()) | {
        RowType.TCP_STATE: HookCounters(seen=2, written=2, unseen=3)
    }
    found = unseen([BIRTH, OPEN], {NET: TcpCounts(2, 0, 0)}, counters=counters)
    assert found == {RowType.TCP_STATE: 3 + 1}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(births=st.integers(0, 5), opens=st.integers(0, 5), rise=st.integers(-5, 5))
def test_counters_that_fell_add_no_missed_events(births: int, opens: int, rise: int, unseen: Any):
    rows = [BIRTH] * births + [OPEN] * opens
    found = unseen(rows, {NET: TcpCounts(rise, rise, rise)})
    wanted = max(0, rise - births) + max(0, rise - opens)
    assert found.get(RowType.TCP_STATE, 0) == wanted
    assert found.get(RowType.TCP_RETRANSMIT, 0) == max(0, rise)


def files(passive: int, again: int, failed: int = 0) -> Files:
    return {
        "snmp": f"Tcp: ActiveOpens PassiveOpens RetransSegs\nTcp: 2 {passive} {again}\n".encode(),
        "netstat": f"TcpExt: TCPRetransFail\nTcpExt: {failed}\n".encode(),
    }


def snap(netns: dict[int, Files | Missing], begun: int = 5, ended: int = 7) -> Snapshot:
    return Snapshot({}, netns, 0, whole=True, begun_ns=begun, ended_ns=ended)


def test_only_namespaces_read_twice_are_compared():
    before = snap({1: files(3, 10, 1), 2: files(1, 1), 3: Missing.DENIED})
    after = snap({1: files(8, 30, 6), 3: files(1, 1), 4: files(9, 9), 2: Missing.VANISHED}, 70, 90)
    found = rise(before, after)
    assert (found.since_ns, found.until_ns) == (5, 90)
    assert found.netns == {1: TcpCounts(passive_opens=5, active_opens=0, retransmitted=15)}


def test_a_kernel_without_the_counters_gives_none():
    bare: Files = {"snmp": b"Tcp: RetransSegs\nTcp: 5\n", "netstat": b""}
    half: Files = {"snmp": files(1, 1)["snmp"], "netstat": Missing.ABSENT}
    assert rise(snap({1: bare, 2: half}), snap({1: bare, 2: half})).netns == {}


@pytest.mark.parametrize(("rows", "severity"), [(10, Severity.WARNING), (1500, Severity.INFO)])
def test_missed_events_are_reported(
    rows: int,
    severity: Severity,
    make_recording: Make,
    config: CaptureConfig,
    node_info: NodeInfo,
    tmp_path: Path,
):
    recording = make_recording(
        make_events([BIRTH] * rows), tcp_counts=counted({NET: TcpCounts(rows + 13, 0, 0)})
    )
    summary = seal(Captured(recording, config, node_info), tmp_path).summary
    assert not summary.complete
    assert summary.counted[RowType.TCP_STATE].unseen == 13
    assert any("13 tcp_state" in note for note in summary.notes)
    (found,) = [one for one in summary.findings if one.id == FindingId.CAPTURE_INCOMPLETE]
    assert found.severity == severity
    assert "13 events missed" in found.title
    assert found.counts["unseen"] == 13
