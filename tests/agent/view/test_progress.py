# SPDX-License-Identifier: Apache-2.0
import io
import re

import pytest
from rich.console import Console
from syrupy.assertion import SnapshotAssertion

from ktrace_agent.session import Live
from ktrace_agent.view import console, progress
from ktrace_api.capture import CaptureConfig

CONFIG = CaptureConfig(node="n1", duration="60s")


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_there_is_a_line_every_ten_seconds(snapshot: SnapshotAssertion):
    out = io.StringIO()
    with progress.observer(CONFIG, out) as watch:
        watch.ready()
        for tick in range(100):
            elapsed = 0.25 * (tick + 1)
            watch.tick(Live(elapsed, 60 - elapsed, 4 * tick, 16.0, tick // 90))
        watch.sealing("writing 7 rows")
    assert out.getvalue() == snapshot


@pytest.mark.parametrize("stream", [io.StringIO, Tty])
def test_what_cannot_be_recorded_is_said_before_the_recording(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO]
):
    monkeypatch.setenv("TERM", "xterm")
    out = stream()
    with progress.observer(CONFIG, out) as watch:
        watch.warn("cannot record on this kernel: [sends]")
        watch.ready()
    first, second = out.getvalue().splitlines()[:2]
    assert first == "ktrace: warning: cannot record on this kernel: [sends]"
    assert second.startswith("ktrace: recording for 60s")


def test_on_a_terminal_a_live_line_comes_and_goes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    out = Tty()
    with progress.observer(CONFIG, out) as watch:
        watch.ready()
        watch.tick(Live(15.0, 45.0, 12_345, 1_234.0, 0))
        watch.sealing("writing 7 rows")
    shown = out.getvalue()
    assert "45s left" in shown
    assert "12,345 events" in shown
    assert "writing 7 rows ..." in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")  # the cursor is back


def test_a_failure_before_the_first_tick_leaves_the_terminal_as_it_was():
    out = Tty()
    with pytest.raises(RuntimeError), progress.observer(CONFIG, out):
        raise RuntimeError
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h")


def line(live: Live, *, color: bool) -> str:
    out = io.StringIO()
    Console(
        file=out, width=90, force_terminal=True, color_system="standard" if color else None,
        _environ={}, highlight=False,
    ).print(progress.live_line(live))  # fmt: skip
    return out.getvalue().rstrip()


def test_the_live_line_fits_and_says_all():
    shown = line(Live(15.0, 45.0, 12_345, 1_234.0, 7), color=False)
    words = re.sub(r"\x1b\[[0-9;]*m", "", shown).split()
    assert " ".join(words[-7:]) == "45s left 12,345 events 1,234/s 7 lost"


def test_losses_are_red():
    assert "\x1b[1;31m" in line(Live(1.0, 1.0, 1, 1.0, 1), color=True)
    assert "\x1b[1;31m" not in line(Live(1.0, 1.0, 1, 1.0, 0), color=True)


@pytest.mark.parametrize("no_color", [False, True])
def test_colours_of_the_result(monkeypatch: pytest.MonkeyPatch, *, no_color: bool):
    out = Tty()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    from rich.text import Text

    console.write(Text("bad", "red"))
    assert ("\x1b[31m" in out.getvalue()) is not no_color


@pytest.mark.parametrize("width", [12, 20, 30, 40, 60, 79])
def test_on_a_narrow_terminal_the_live_line_leaves_out_the_least_important(width: int):
    out = io.StringIO()
    Console(file=out, width=width, _environ={}).print(
        progress.live_line(Live(15.0, 45.0, 1_234_567, 123_456.0, 7))
    )
    shown = out.getvalue()
    assert "…" not in shown
    assert all(len(line.rstrip()) <= width for line in shown.splitlines())
    assert "1,234,567" in shown
    assert "7 lost" in " ".join(shown.split())
    if width >= 40:
        assert "45s left" in shown
        assert len(shown.splitlines()) == 1


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_live_line_by_width(width: int, snapshot: SnapshotAssertion):
    out = io.StringIO()
    for live in (Live(0.0, 60.0, 0, 0.0, 0), Live(15.0, 45.0, 1_234_567, 123_456.0, 7)):
        Console(file=out, width=width, _environ={}).print(progress.live_line(live))
    assert "\n".join(map(str.rstrip, out.getvalue().splitlines())) == snapshot
