# SPDX-License-Identifier: Apache-2.0
"""Ids of tracepoints in a tracefs of plain files."""

from pathlib import Path

import pytest

from ktrace_agent.kernel import tracefs


def test_ids_are_read_where_tracefs_is_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    event = tmp_path / "second/events/syscalls/sys_enter_connect"
    event.mkdir(parents=True)
    (event / "id").write_text("1234\n")
    monkeypatch.setattr(tracefs, "MOUNT_POINTS", (tmp_path / "first", tmp_path / "second"))
    found = tracefs.Tracefs()
    assert found.unavailable == ""
    assert found.event_id("syscalls/sys_enter_connect") == 1234
    assert found.event_id("syscalls/sys_enter_nothing") is None
    found.close()
    found.close()
    assert found.event_id("syscalls/sys_enter_connect") is None


def test_without_a_mount_the_reason_is_kept(monkeypatch: pytest.MonkeyPatch):
    def denied() -> int:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(tracefs, "MOUNT_POINTS", ())
    monkeypatch.setattr(tracefs, "_detached_mount", denied)
    found = tracefs.Tracefs()
    assert found.unavailable == (
        "tracefs is not mounted and cannot be mounted: Operation not permitted"
    )
    assert found.event_id("syscalls/sys_enter_connect") is None
