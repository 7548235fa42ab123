# SPDX-License-Identifier: Apache-2.0
"""What sockets and calls say is read before anything else is waited for: they go on meanwhile."""

import os
from datetime import timedelta
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from ktrace_agent import session
from ktrace_agent.kernel.hooks import LEFT
from ktrace_agent.kernel.recording import HookCounters
from ktrace_agent.signals import Stop
from ktrace_api.capture import CaptureConfig
from ktrace_api.names import RowType


def test_open_calls_and_connects_are_read_at_once(
    monkeypatch: pytest.MonkeyPatch, config: CaptureConfig, tmp_path: Path
):
    with (tmp_path / "spool").open("wb") as file:
        world = MagicMock()
        world.collector.iterate.return_value = b""
        world.collector.counters.return_value = {row: HookCounters() for row in RowType}
        world.collector.flows.return_value = (b"", b"")
        world.spool.fd, world.spool.lost, world.spool.records = file.fileno(), {}, 0
        monkeypatch.setattr(session, "Collector", lambda *_, **__: world.collector)
        monkeypatch.setattr(session, "Spool", lambda *_: world.spool)
        monkeypatch.setattr(session, "_inventory", world.inventory)
        made = session.record(
            config.model_copy(update={"duration": timedelta(milliseconds=1)}),
            tmp_path,
            cgroup_v1=False,
            observer=MagicMock(),
            stop=Stop(),
            watches=world.watches,
        )
    os.close(made.recording.spool_fd)
    steps = [f"{name}{args}" for name, args, _ in world.mock_calls if "__" not in name]
    last = steps[steps.index("collector.detach()") :]
    assert last[: len(LEFT) + 2] == [
        "collector.detach()",
        *(f"collector.iterate('{name}',)" for name in LEFT),
        "spool.finish()",
    ]
    assert last.index("inventory" + str((world.collector,))) > len(LEFT) + 1
    assert last.index("watches.stop()") > len(LEFT) + 1
