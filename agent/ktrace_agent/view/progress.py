# SPDX-License-Identifier: Apache-2.0
"""Progress of a session: a live line on a terminal, otherwise a plain line every ten seconds.

Both are written to standard error. The result is written to standard output.
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
"""Columns of the live line: the bar, and blanks between values."""


@contextmanager
def observer(config: CaptureConfig, stream: TextIO | None = None) -> Iterator[Observer]:
    """Provide an observer that writes to `stream` (default: standard error)."""
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
    """The line that announces the start of a capture."""
    duration = format_duration(config.duration)
    return f"recording for {duration} on {config.node}; press Ctrl-C to stop early"


class PlainLines:
    """Progress for logs: one line every ten seconds."""

    def __init__(self, config: CaptureConfig, stream: TextIO) -> None:
        self._config = config
        self._stream = stream
        self._due = PLAIN_EVERY_S

    def warn(self, text: str) -> None:
        self._write(f"warning: {text}")

    def ready(self) -> None:
        self._write(starting(self._config))

    def tick(self, live: Live) -> None:
        if live.elapsed_s < self._due:
            return
        self._due += PLAIN_EVERY_S
        self._write(
            f"{live.elapsed_s:.0f}s elapsed, {live.remaining_s:.0f}s left:"
            f" {live.events} events ({live.rate_per_s:.0f}/s), {live.lost} lost"
        )

    def sealing(self, text: str) -> None:
        self._write(text)

    def _write(self, text: str) -> None:
        self._stream.write(f"ktrace: {text}\n")
        self._stream.flush()


class LiveLine:
    """Progress for people: one line that is redrawn and removed when the capture ends."""

    def __init__(self, config: CaptureConfig, console: "Console") -> None:
        from rich.live import Live as Screen

        self._config = config
        self._console = console
        self._screen = Screen(console=console, auto_refresh=False, transient=True)

    def warn(self, text: str) -> None:
        self._print(f"warning: {text}")

    def ready(self) -> None:
        self._print(starting(self._config))
        self._screen.start()

    def tick(self, live: Live) -> None:
        self._screen.update(live_line(live), refresh=True)

    def sealing(self, text: str) -> None:
        from rich.text import Text

        self._screen.update(Text(f"  {text} ...", "dim"), refresh=True)

    def close(self) -> None:
        self._screen.stop()

    def _print(self, text: str) -> None:
        self._console.print(f"ktrace: {text}", highlight=False, markup=False)


def live_line(live: Live) -> "RenderableType":
    """Time left as a bar and in seconds, events, rate and losses, as far as they fit."""
    from rich.text import Text

    return _Line(
        live,
        {
            "left": Text(f"{live.remaining_s:4.0f}s left"),
            "events": Text(f"{live.events:>9,} events"),
            "rate": Text(f"{live.rate_per_s:>8,.0f}/s", "dim"),
            "lost": Text(f"{live.lost:,} lost", "bold red" if live.lost else "dim"),
        },
    )


class _Line:
    """Values in one line; a narrow terminal gets fewer values, but none is cut."""

    def __init__(self, live: Live, values: "dict[str, Text]") -> None:
        self._live, self._values = live, values

    def __rich_console__(
        self, console: "Console", options: "ConsoleOptions"
    ) -> "Iterator[RenderableType]":
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        shown, width = dict(self._values), options.max_width
        for spare in ("rate", "left"):
            if _width(shown.values()) > width:
                del shown[spare]
        if _width(shown.values()) > width:
            yield Text(" ").join(Text(one.plain.strip(), one.style) for one in shown.values())
            return
        line = Table.grid(padding=(0, _GAP))
        cells: list[RenderableType] = list(shown.values())
        if _BAR + _GAP + _width(shown.values()) <= width:
            total = max(self._live.elapsed_s + self._live.remaining_s, 1e-9)
            done = self._live.elapsed_s
            cells.insert(0, ProgressBar(total, done, width=_BAR, complete_style="cyan"))
        line.add_row(*cells)
        yield line


def _width(values: "Iterable[Text]") -> int:
    """Columns of these values side by side."""
    return sum(one.cell_len + _GAP for one in values) - _GAP
