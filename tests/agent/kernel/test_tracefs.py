# SPDX-License-Identifier: Apache-2.0
"""Where tracefs is read, and where it is never mounted."""

import os
from pathlib import Path

import pytest

from ktrace_agent.kernel import lockdown, tracefs
from ktrace_agent.kernel.tracefs import Tracefs, mount_point

LINE = "36 25 0:{0} / {1} rw,nosuid - {2} {2} rw\n"


def mounts(folder: Path, *points: tuple[str, str]) -> Path:
    file = folder / "mountinfo"
    file.write_text("".join(LINE.format(i, *point) for i, point in enumerate(points)))
    return file


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Private mounts that were made; each gives a descriptor of an empty file."""
    made: list[str] = []

    def mount() -> int:
        made.append("tracefs")
        return os.open("/dev/null", os.O_RDONLY)

    monkeypatch.setattr(tracefs, "_detached_mount", mount)
    return made


@pytest.mark.parametrize(
    ("points", "wanted"),
    [
        ([], None),
        ([("/sys/kernel/debug", "debugfs")], None),
        ([("/sys/kernel/tracing", "tmpfs")], None),
        ([("/mnt", "tracefs")], None),
        ([("/sys/kernel/debug/tracing", "tracefs")], "/sys/kernel/debug/tracing"),
        (
            [("/sys/kernel/debug/tracing", "tracefs"), ("/sys/kernel/tracing", "tracefs")],
            "/sys/kernel/tracing",
        ),
    ],
)
def test_the_mount_point_is_read_from_mountinfo(
    tmp_path: Path, points: list[tuple[str, str]], wanted: str | None
):
    found = mount_point(mounts(tmp_path, *points))
    assert found == (Path(wanted) if wanted else None)


def test_without_mountinfo_it_is_mounted_nowhere(tmp_path: Path):
    assert mount_point(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("[none] integrity confidentiality", ""),
        ("none [integrity] confidentiality", ""),
        ("none integrity [confidentiality]", "under kernel lockdown `confidentiality`"),
    ],
)
def test_it_is_not_mounted_under_confidentiality(
    tmp_path: Path, mounted: list[str], mode: str, reason: str
):
    (tmp_path / "lockdown").write_text(mode)
    found = Tracefs(tmp_path / "lockdown", mounts(tmp_path))
    assert reason in found.unavailable
    assert bool(found.unavailable) == bool(reason)
    assert bool(mounted) == (not reason)
    found.close()


def test_it_is_not_mounted_while_the_lockdown_is_unknown(
    tmp_path: Path, mounted: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lockdown, "_loads", lambda _: False)
    found = Tracefs(tmp_path / "none", mounts(tmp_path))
    assert "lockdown is unknown" in found.unavailable
    assert found.event_id("syscalls/sys_enter_connect") is None
    assert mounted == []


def test_a_mounted_one_is_opened_under_any_lockdown(
    tmp_path: Path, mounted: list[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "lockdown").write_text("none integrity [confidentiality]")
    event = tmp_path / "events/syscalls/sys_enter_connect"
    event.mkdir(parents=True)
    (event / "id").write_text("17\n")
    monkeypatch.setattr(tracefs, "MOUNT_POINTS", (tmp_path,))
    found = Tracefs(tmp_path / "lockdown", mounts(tmp_path, (str(tmp_path), "tracefs")))
    assert found.event_id("syscalls/sys_enter_connect") == 17
    assert found.event_id("syscalls/none") is None
    assert (found.unavailable, mounted) == ("", [])
    found.close()
