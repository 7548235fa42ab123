# SPDX-License-Identifier: Apache-2.0
"""Retransmitted segments on other kernels, beside the kernel's own count."""

from pathlib import Path

from ktrace_agent.tables.records import TYPE
from ktrace_api.names import RowType
from tests.kernels import results
from tests.kernels.guest import guest
from tests.kernels.loader import GuestFeatures, compiled, files, record
from tests.kernels.packages import Kernel
from tests.kernels.series import on


@on()
def test_the_segments_are_those_of_the_kernel(kernel: Kernel, tmp_path: Path):
    """The sum of the rows and the sum of the flows are within 1 % of RetransSegs."""
    tools = files(kernel.arch, tmp_path)
    tools["bin/loss"] = compiled(kernel.arch, "loss.c", tmp_path)
    with guest(kernel, tools, "panic_on_warn=1") as one:
        chosen = record(one, GuestFeatures(one), "loss")
    wanted, recording = int(chosen.truth), chosen.recording
    rows = recording.events[recording.events["type"] == TYPE[RowType.TCP_RETRANSMIT]]
    counters = recording.counters()[RowType.TCP_RETRANSMIT]
    found = int(rows["segs"].sum())
    results.write(kernel, "retransmits", chosen, found=found, counted=wanted)
    assert wanted > 0
    assert abs(found - wanted) <= wanted / 100, (found, wanted)
    assert sum(int(flow["retrans_segs"]) for _, flow in recording.flows()) == found
    assert counters.seen == counters.written == len(rows), counters
