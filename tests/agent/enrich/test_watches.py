# SPDX-License-Identifier: Apache-2.0
"""Both watches run between enter and exit, and the last poll happens once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ktrace_agent.enrich import watches
from ktrace_agent.enrich.conntrack import watch as conntrack
from ktrace_agent.enrich.pods import watch as pods
from ktrace_agent.host.netns import inode_of
from ktrace_api.capture import CaptureConfig


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of both watches, which start no thread and find only their own name."""
    made: list[str] = []

    def replaced(call: str, name: str) -> Callable[[object], str]:
        def method(_: object) -> str:
            made.append(f"{call} {name}")
            return f"found by {name}"

        return method

    for name, kind in (("pods", pods.Watch), ("conntrack", conntrack.Watch)):
        for call in ("start", "stop"):
            monkeypatch.setattr(kind, call, replaced(call, name))
    return made


def test_both_are_stopped_once_and_the_entries_are_kept(calls: list[str], tmp_path: Path):
    with watches.Watches(CaptureConfig(node="n"), tmp_path) as one:
        assert calls == ["start pods", "start conntrack"]
        one.stop()
    assert calls[2:] == ["stop pods", "stop conntrack"]
    assert str(one.tracked) == "found by conntrack"


def test_conntrack_is_left_out_if_it_is_disabled(calls: list[str], tmp_path: Path):
    with watches.Watches(CaptureConfig(node="n", conntrack=False), tmp_path) as one:
        pass
    assert calls == ["start pods", "stop pods"]
    assert one.tracked is None


def test_the_own_namespace_has_a_process():
    found = watches._netns_pids()
    own = inode_of("/proc/self/ns/net")
    assert own is not None
    assert inode_of(f"/proc/{found[own]}/ns/net") == own
