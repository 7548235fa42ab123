# SPDX-License-Identifier: Apache-2.0
import os
from datetime import UTC, datetime
from pathlib import Path

from ktrace_agent.kernel.recording import HookCounters, Overflow, wall_clock
from ktrace_api.names import RowType
from tests.agent.conftest import Make, make_events


def test_a_time_of_the_boot_clock_becomes_wall_clock_in_microseconds():
    assert wall_clock(1_999, 10**18) == datetime(2001, 9, 9, 1, 46, 40, 1, UTC)


def test_any_full_map_is_an_overflow():
    assert not Overflow().any()
    assert Overflow(flow_rx_calls=1).any()


def test_lost_events_are_those_of_the_ring_and_of_maps(make_recording: Make):
    counters = {RowType.CONNECT: HookCounters(seen=9, written=2, lost_ring=3, lost_map=4)}
    recording = make_recording(make_events([]), counters=counters)
    assert recording.lost(RowType.CONNECT, RowType.UDP_SEND) == 7
    assert recording.lost(RowType.UDP_SEND) == 0


def test_a_forgotten_recording_takes_no_space(make_recording: Make, tmp_path: Path):
    recording = make_recording(make_events([{}]), (b"k", b"v"), stock_end=b"s")
    assert os.fstat(recording.spool_fd).st_size > 0
    recording.forget()
    assert os.fstat(recording.spool_fd).st_size == 0
    kept = (recording.stock_start, recording.stock_end, recording.flow_keys, recording.flow_values)
    assert kept == (b"", b"", b"", b"")
