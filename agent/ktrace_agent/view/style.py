# SPDX-License-Identifier: Apache-2.0
"""Building blocks of terminal output: colors, numbers, sizes, tables.

Process names are untrusted, so every text from outside goes through `plain()`: neither control
characters nor markup reach the terminal.
"""

from collections.abc import Sequence
from typing import TypeVar

from rich.console import Group, RenderableType
from rich.text import Text

from ktrace_agent.view.fitted_table import Columns
from ktrace_api.finding import RoundTrip
from ktrace_api.names import UNKNOWN
from ktrace_api.summary import Quantiles

TOP = 8
"""Maximum lines of a table; the summary contains more."""

GOOD, BAD, DIM, HEAD = "green", "bold red", "dim", "bold"
_KIB = 1024
_Line = TypeVar("_Line")


def plain(text: object) -> Text:
    """Make a text from outside safe for a terminal."""
    return Text("".join(char if char.isprintable() else "�" for char in str(text)))


def number(value: int | None) -> Text:
    """A number with thousands separators, `-` if it is unknown; both zero and `-` are dim."""
    if value is None:
        return Text(UNKNOWN, DIM)
    return Text(f"{value:,}", "" if value else DIM)


def alarming(value: int | None) -> Text:
    """A number that should be zero; red otherwise. `-` if it is unknown."""
    if value is None:
        return Text(UNKNOWN, DIM)
    return Text(f"{value:,}", BAD if value else DIM)


def size(value: int | None) -> Text:
    """Bytes in binary units: 1.5 KiB; `-` if the number is unknown."""
    if not value:
        return Text(UNKNOWN if value is None else "0", DIM)
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < _KIB:
            return Text(f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}")
        amount /= _KIB
    return Text(f"{amount:.1f} TiB")


def span(microseconds: int) -> str:
    """A duration with three significant digits: 412 us, 1.2 ms, 3.05 s, 120 s."""
    if microseconds < 1_000:
        return f"{microseconds} us"
    if microseconds < 999_500:  # 999.5 ms and more would be rounded to 1000 ms
        return f"{microseconds / 1e3:.3g} ms"
    return f"{microseconds / 1e6:.3g} s" if microseconds < 1e8 else f"{microseconds / 1e6:,.0f} s"


def table_of(
    title: str, left_out: int, *columns: str, words: int = 1, spare: Sequence[str] = ()
) -> Columns:
    """A table without borders: the first `words` columns are text, the others numbers.

    Columns in `spare` are left out on a narrow terminal, in this order.
    """
    more = f"  (+{left_out:,} in the summary)" if left_out > 0 else ""
    return Columns(Text.assemble((title, HEAD), (more, DIM)), columns, words, spare, DIM)


def top(lines: Sequence[_Line], left_out: int) -> tuple[Sequence[_Line], int]:
    """The first TOP lines, and how many are left out in all: these and `left_out`."""
    return lines[:TOP], left_out + max(0, len(lines) - TOP)


def spaced(part: RenderableType) -> Group:
    """Put an empty line before a part."""
    return Group("", part)


def quantiles(found: Quantiles | RoundTrip | None) -> list[Text]:
    """p50, p99 and maximum; dashes if nothing was measured."""
    if found is None or not found.count:
        return [Text(UNKNOWN, DIM)] * 3
    return [Text(span(found.p50)), Text(span(found.p99)), Text(span(found.max))]
