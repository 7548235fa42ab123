# SPDX-License-Identifier: Apache-2.0
"""The parts of the collector that need no kernel; tests/bpf has the rest."""

import os
from pathlib import Path

import pytest

from ktrace_agent.errors import AgentError
from ktrace_agent.kernel import built_files, collector
from ktrace_agent.kernel.probes import Choice, Refusal
from ktrace_agent.kernel.recording import ROW_TYPES
from ktrace_api.capture import CaptureConfig
from ktrace_api.names import EventKind, RowType


def test_ports_are_bits_and_kinds_are_types():
    config = CaptureConfig(
        node="n", ports=(53, 64, 65535), events=(EventKind.UDP, EventKind.RETRANSMIT)
    )
    found = collector.KernelConfig.of(config, cgroup_v1=True)
    bits = [
        place * 64 + bit
        for place, word in enumerate(found.ports)
        for bit in range(64)
        if word >> bit & 1
    ]
    assert bits == [53, 64, 65535]
    wanted = {RowType.UDP_SEND, RowType.UDP_RECV, RowType.TCP_RETRANSMIT}
    assert {row for n, row in enumerate(ROW_TYPES) if found.types >> n & 1} == wanted
    assert (found.ports_only, found.cgroup_v1, found.pods_only) == (1, 1, 0)


@pytest.mark.parametrize("wanted", [1, 4096, 4097, 2**20, 2**20 + 1])
def test_a_ring_is_a_power_of_two_of_whole_pages(wanted: int):
    size = collector._ring_size(wanted)
    assert size & (size - 1) == 0
    assert size >= max(wanted, os.sysconf("SC_PAGESIZE"))
    assert size < 2 * max(wanted, os.sysconf("SC_PAGESIZE"))


def test_a_path_of_a_cgroup_begins_with_the_highest_level():
    names = collector.CgroupNames()
    for level, name in enumerate((b"leaf", b"pod", b"kubepods")):
        names.name[level].value = name
    assert collector._cgroup_path(names) == "/kubepods/pod/leaf"
    assert collector._cgroup_path(collector.CgroupNames()) == "/"


def test_an_object_is_searched_in_the_chosen_folder_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KTRACE_BPF_DIR", str(tmp_path))
    with pytest.raises(AgentError, match=r"x\.o is not built: run `make build`"):
        built_files.object_path("x.o")
    (tmp_path / "x.o").touch()
    assert built_files.object_path("x.o") == tmp_path / "x.o"


def test_a_refused_hook_names_every_program():
    choice = Choice("h", (), (Refusal("a", "no BTF"), Refusal("b", "EINVAL")), "UDP sends", True)
    assert collector._refusal(choice) == (
        "this kernel cannot report UDP sends (a: no BTF; b: EINVAL): see `ktrace doctor`"
    )
