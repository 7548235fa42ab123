# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from ktrace_agent.kernel.bcc import backend
from ktrace_agent.kernel.bcc.compiler import PROGRAMS
from ktrace_agent.kernel.hooks import TARGETS
from ktrace_agent.kernel.probes import choose
from ktrace_agent.kernel.targets import Kprobe

FUNCTIONS = {target.name for target in TARGETS.values() if isinstance(target, Kprobe)}


class Tracefs:
    """One in which every event exists."""

    def event_id(self, _: str) -> int:
        return 1

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "type").touch()
    monkeypatch.setattr(backend, "Tracefs", Tracefs)
    monkeypatch.setattr(backend, "KPROBE_EVENTS", tmp_path / "type")


def features(folder: Path, functions: set[str]) -> backend.HeaderFeatures:
    lines = [f"0000000000000000 T {name}\n" for name in sorted(functions)]
    (folder / "kallsyms").write_text("".join((*lines, "0000000000000000 d tcp_prot\t[a]\n")))
    return backend.HeaderFeatures(folder / "kallsyms")


def test_a_kernel_with_every_function_is_served_by_kprobes(tmp_path: Path):
    refused = dict.fromkeys(TARGETS.keys() - set(PROGRAMS), "needs BTF")
    choices = choose(features(tmp_path, FUNCTIONS), refused=refused)
    served = {choice.hook: choice.programs for choice in choices if choice.programs}
    assert {name for programs in served.values() for name in programs} == set(PROGRAMS)
    assert {choice.hook for choice in choices} - served.keys() == {
        "tcp_retransmit",
        "tcp_retransmit_synack",
        "inventory",
    }


def test_a_function_that_is_not_in_the_kernel_is_missing(tmp_path: Path):
    found = features(tmp_path, FUNCTIONS - {"udpv6_sendmsg"})
    assert found.function_args("udp_sendmsg") is not None
    assert found.function_args("udpv6_sendmsg") is None
    assert found.function_args("tcp_prot") is None
