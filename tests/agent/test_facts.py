# SPDX-License-Identifier: Apache-2.0
"""What the counters did, from the facts of a node to the findings that judge by it."""

from pathlib import Path

import pytest

from ktrace_agent.bundle import seal
from ktrace_api.capture import CaptureConfig
from ktrace_api.node import ConntrackFacts, Delta, NodeInfo, TrackedNetns

from .conftest import Make, make_events

NET = 4026531840


def tracked(node_info: NodeInfo, peak: int) -> NodeInfo:
    """Connection tracking with 10 of 1000 entries at both ends."""
    counters = {"max": (1000, 1000), "count": (10, 10)}
    table = TrackedNetns(
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
    summary = seal(recording, config, tracked(node_info, peak), tmp_path).summary
    assert [one.id for one in summary.findings] == found
