# SPDX-License-Identifier: Apache-2.0
"""Who watches a session: a live line on a terminal, else a plain line now and then.

Both go to standard error; the result goes to standard output.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from ktrace_agent.session import Live, Observer
from ktrace_api.capture import CaptureConfig, format_duration

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.text import Text


PLAIN_EVERY_S = 10.0
_BAR, _GAP = 24, 2
"""Columns of the live line: its bar, and blanks between facts."""


@contextmanager
def observer(config: CaptureConfig, stream: TextIO | None = None) -> Iterator[Observer]:
    """An observer that fits `stream` (standard error where none is given)."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield PlainLines(config, stream)
        return
    from rich.console import Console

    line = LiveLine(config, Console(file=stream))
    try:
        yield line
    finally:
        line.close()


def starting(config: CaptureConfig) -> str:
    """What begins now, in words."""
    duration = format_duration(config.duration)
    return f"recording {duration} on {config.node}, Ctrl-C ends it early"


class PlainLines:
    """For logs: one line every ten seconds."""

    def __init__(self, config: CaptureConfig, stream: TextIO) -> None:
        self._config = config
        self._stream = stream
        self._due = PLAIN_EVERY_S

    def ready(self) -> None:
        self._say(starting(self._config))

    def tick(self, live: Live) -> None:
        if live.elapsed_s < self._due:
            return
        self._due += PLAIN_EVERY_S
        self._say(
            f"{live.elapsed_s:.0f} s gone, {live.remaining_s:.0f} s left,"
            f" {live.events} events, {live.rate_per_s:.0f}/s, {live.lost} lost"
        )

    def sealing(self, text: str) -> None:
        self._say(text)

    def _say(self, text: str) -> None:
        self._stream.write(f"ktrace: {text}\n")
        self._stream.flush()


class LiveLine:
    """For eyes: one line that is drawn again and is gone when the capture ends."""

    def __init__(self, config: CaptureConfig, console: "Console") -> None:
        from rich.live import Live as Screen

        self._config = config
        self._console = console
        self._screen = Screen(console=console, auto_refresh=False, transient=True)

    def ready(self) -> None:
        self._console.print(f"ktrace: {starting(self._config)}", highlight=False, markup=False)
        self._screen.start()

    def tick(self, live: Live) -> None:
        self._screen.update(live_line(live), refresh=True)

    def sealing(self, text: str) -> None:
        from rich.text import Text

        self._screen.update(Text(f"  {text} ...", "dim"), refresh=True)

    def close(self) -> None:
        self._screen.stop()


def live_line(live: Live) -> "RenderableType":
    """Time left as a bar and in seconds, events, rate, lost; as many of them as fit."""
    from rich.text import Text

    return _Line(
        live,
        {
            "left": Text(f"{live.remaining_s:4.0f} s left"),
            "events": Text(f"{live.events:>9,} events"),
            "rate": Text(f"{live.rate_per_s:>8,.0f}/s", "dim"),
            "lost": Text(f"{live.lost:,} lost", "bold red" if live.lost else "dim"),
        },
    )


class _Line:
    """Facts in one line; on a narrow terminal without those that tell least, never cut."""

    def __init__(self, live: Live, facts: "dict[str, Text]") -> None:
        self._live, self._facts = live, facts

    def __rich_console__(
        self, console: "Console", options: "ConsoleOptions"
    ) -> "Iterator[RenderableType]":
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        shown, room = dict(self._facts), options.max_width
        for spare in ("rate", "left"):
            if _width(shown.values()) > room:
                del shown[spare]
        if _width(shown.values()) > room:
            yield Text(" ").join(Text(one.plain.strip(), one.style) for one in shown.values())
            return
        line = Table.grid(padding=(0, _GAP))
        cells: list[RenderableType] = list(shown.values())
        if _BAR + _GAP + _width(shown.values()) <= room:
            total = max(self._live.elapsed_s + self._live.remaining_s, 1e-9)
            done = self._live.elapsed_s
            cells.insert(0, ProgressBar(total, done, width=_BAR, complete_style="cyan"))
        line.add_row(*cells)
        yield line


def _width(facts: "Iterable[Text]") -> int:
    """Of these side by side."""
    return sum(one.cell_len + _GAP for one in facts) - _GAP
