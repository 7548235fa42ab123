# SPDX-License-Identifier: Apache-2.0
"""Notes of a summary: what was lost, what is not traced, what a reader must know."""

from dataclasses import replace
from typing import Any

import pytest

from ktrace_agent.analyze.facts import gather
from ktrace_agent.kernel.recording import Clock, Overflow
from ktrace_agent.tables.captured import Captured
from ktrace_api.capture import CaptureConfig
from ktrace_api.names import Gap, RowType
from ktrace_api.node import HookChoice, NodeInfo, Refusal
from ktrace_api.summary import Accounting, SkippedCalls
from tests.agent.conftest import OFFSET_NS, Make, make_events

ZERO = dict.fromkeys(Accounting.model_fields, 0)


def test_the_notes_of_a_capture_with_every_fault(
    make_recording: Make, config: CaptureConfig, node_info: NodeInfo, snapshot: Any
):
    refused = (Refusal(program="enter_connect", reason="tracefs shows no event"),)
    hooks = tuple(HookChoice(hook=name, chosen="-", refused=refused)
                  for name in ("connect", "accept"))  # fmt: skip
    recording = make_recording(
        make_events([]),
        overflow=Overflow(flows=1),
        ended_by="error",
        spool_lost={RowType.CONNECT: 3},
        clock=Clock(OFFSET_NS, OFFSET_NS - 120 * 10**9),
    )
    captured = Captured(
        recording,
        config.model_copy(update={"sample": 7}),
        node_info.model_copy(update={"hooks": hooks}),
    )
    accounting = {
        RowType.CONNECT: Accounting(**ZERO | {"lost_ring": 20, "lost_map": 4, "unseen": 2}),
        RowType.TCP_STATE: Accounting(**ZERO | {"capped": 5, "unseen": 11}),
    }
    facts = gather(captured, {}, accounting, ["The last 5 rows are not in the bundle: (sealing)."])
    assert not facts.complete
    assert facts.disk_full
    assert facts.hooks_missing == ("connect", "accept")
    assert "\n".join(facts.notes) == snapshot


def test_skipped_events_have_words_of_their_own(
    make_recording: Make, config: CaptureConfig, node_info: NodeInfo, snapshot: Any
):
    """No map was full, and TCP bytes are no UDP rows."""
    overflow = Overflow(skipped_tx_calls=17, skipped_rx_calls=3)
    captured = Captured(make_recording(make_events([]), overflow=overflow), config, node_info)
    accounting = {RowType.UDP_SEND: Accounting(**ZERO | {"seen": 12_000, "skipped": 10})}
    facts = gather(captured, {}, accounting)
    assert facts.gaps == (Gap.SKIPPED,)
    assert facts.skipped_calls == SkippedCalls(tx=17, rx=3)
    assert not any(facts.overflow.model_dump().values())
    assert "\n".join(facts.notes) == snapshot


def test_a_capture_without_faults_has_no_notes(
    make_recording: Make, config: CaptureConfig, node_info: NodeInfo
):
    facts = gather(Captured(make_recording(make_events([])), config, node_info), {}, {})
    assert facts.notes == ()
    assert facts.complete
    assert not facts.disk_full


@pytest.mark.parametrize("cut", [True, False])
def test_a_disk_that_was_full_is_a_fact(
    cut: bool, make_recording: Make, config: CaptureConfig, node_info: NodeInfo
):
    """While sealing, or during the capture."""
    recording = make_recording(make_events([]))
    if not cut:
        recording = replace(recording, spool_lost={RowType.UDP_SEND: 1})
    captured = Captured(recording, config, node_info)
    assert gather(captured, {}, {}, disk_full=cut).disk_full
