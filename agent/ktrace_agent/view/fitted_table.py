# SPDX-License-Identifier: Apache-2.0
"""Tables that fit a narrow terminal without cutting a number, an address or a port.

Whole columns are left out if the table is too wide, the least important first. Words that are
still too long continue on the next line.
"""

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

_GAP = 2
"""Blanks between columns."""
_WIDEST = 47
"""Maximum width of a text: the longest IPv6 address with a port."""


class Columns:
    """A table of texts: the first `words` columns are words, the others right-aligned numbers.

    `spare` names the columns that may be left out, in this order.
    """

    def __init__(
        self, title: Text, names: Sequence[str], words: int, spare: Sequence[str], style: str
    ) -> None:
        self._title, self._names, self._words, self._spare = title, names, words, spare
        self._style = style
        self._rows: list[tuple[Text, ...]] = []

    def add_row(self, *cells: Text) -> None:
        self._rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown, widths, gap = self._fit(options.max_width)
        table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style=self._style)
        for column, width in zip(shown, widths, strict=True):
            table.add_column(
                self._names[column],
                justify="left" if column < self._words else "right",
                overflow="fold",
                width=width,
            )
        for row in self._rows:
            table.add_row(*(row[column] for column in shown))
        yield self._title
        yield table

    def _fit(self, width: int) -> tuple[list[int], list[int], int]:
        """Columns to show, their widths, and the blanks between them."""
        shown = list(range(len(self._names)))
        spare = [self._names.index(name) for name in self._spare if name in self._names]
        while spare and self._needed(shown, _GAP) > width:
            shown.remove(spare.pop(0))
        gap = _GAP if self._needed(shown, _GAP) <= width else 1
        widths, most = [self._least(one) for one in shown], [self._most(one) for one in shown]
        space = width - gap * (len(shown) - 1)
        while sum(widths) > space and max(widths) > 1:  # the last resort: fold within words
            widths[widths.index(max(widths))] -= 1
        for position, least in enumerate(widths):
            left = max(space - sum(widths), 0)
            widths[position] += min(max(most[position] - least, 0), left)
        return shown, widths, gap

    def _needed(self, columns: Sequence[int], gap: int) -> int:
        """Width of these columns if no word is folded."""
        return sum(self._least(one) for one in columns) + gap * (len(columns) - 1)

    def _cells(self, column: int) -> list[Text]:
        return [Text(self._names[column]), *(row[column] for row in self._rows)]

    def _least(self, column: int) -> int:
        """Minimum width that splits no word and no number."""
        if column >= self._words:
            return self._most(column)
        parts = (Text(word) for cell in self._cells(column) for word in cell.plain.split())
        return min(max((part.cell_len for part in parts), default=1), _WIDEST)

    def _most(self, column: int) -> int:
        width = max(cell.cell_len for cell in self._cells(column))
        return width if column >= self._words else min(width, _WIDEST)
