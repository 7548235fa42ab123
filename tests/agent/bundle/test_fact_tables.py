# SPDX-License-Identifier: Apache-2.0
"""What the counters did, from the facts of a node to the findings that judge by it."""

from pathlib import Path

import pytest

from ktrace_agent.bundle.seal import seal
from ktrace_agent.tables.captured import Captured
from ktrace_api.capture import CaptureConfig
from ktrace_api.names import Gap
from ktrace_api.node import ConntrackFacts, ConntrackNetns, Delta, HookChoice, NodeInfo, Refusal
from tests.agent.conftest import Make, make_events

NET = 4026531840


def tracked(node_info: NodeInfo, peak: int) -> NodeInfo:
    """Connection tracking with 10 of 1000 entries at both ends."""
    counters = {"max": (1000, 1000), "count": (10, 10)}
    table = ConntrackNetns(
        netns=NET, source="ctnetlink", entries=70, peak=peak,
        counters={name: Delta(before=was, after=now, delta=now - was)
                  for name, (was, now) in counters.items()},
    )  # fmt: skip
    facts = ConntrackFacts(host_netns=NET, entries=70, left_out=0, seconds=0.1, netns=(table,))
    return node_info.model_copy(update={"conntrack": facts})


@pytest.mark.parametrize(("peak", "found"), [(1000, ["CONNTRACK_FULL"]), (700, [])])
def test_what_the_looks_at_connection_tracking_found_is_judged(
    peak: int, found: list[str], make_recording: Make, config: CaptureConfig, node_info: NodeInfo,
    tmp_path: Path,
):  # fmt: skip
    recording = make_recording(make_events([{}]))
    summary = seal(Captured(recording, config, tracked(node_info, peak)), tmp_path).summary
    assert [one.id for one in summary.findings] == found


def test_what_no_program_serves_is_said_alike_everywhere(
    make_recording: Make, config: CaptureConfig, node_info: NodeInfo, tmp_path: Path
):
    refused = (Refusal(program="exit_accept", reason="tracefs shows no event"),)
    hooks = (
        HookChoice(hook="tcp_state", chosen="tcp_state"),
        HookChoice(hook="accept", chosen="-", refused=refused),
        HookChoice(hook="connect", chosen="-"),
    )
    lacking = node_info.model_copy(update={"hooks": hooks})
    summary = seal(Captured(make_recording(make_events([{}])), config, lacking), tmp_path).summary
    assert not summary.complete
    assert summary.gaps == (Gap.NOT_TRACED,)
    assert summary.hooks_missing == ("accept",)
    assert summary.notes[-1] == (
        "Not traced on this node: accept. Missing: which process accepted a connection."
        " See `ktrace doctor`."
    )
    (found,) = summary.findings
    assert found.title == (
        "accept was not traced (no eBPF program available); nothing else is missing"
    )
    assert found.title in summary.verdict.why
