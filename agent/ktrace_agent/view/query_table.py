# SPDX-License-Identifier: Apache-2.0
"""The result of a query as a table that fits the terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ktrace_agent.view.style import DIM, plain


def table_or_blocks(
    names: Sequence[str], rows: Sequence[Sequence[object]], width: int
) -> RenderableType:
    """Rows of a query as a table: NULL as a dim "-", numbers right-aligned.

    If the table is wider than the terminal, each row becomes a block of lines.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    needed = sum(
        2 + max([len(name), *(len(row[position]) for row in cells)])
        for position, name in enumerate(names)
    )
    if needed > width + 2:
        return _blocks(names, cells)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=DIM)
    for position, name in enumerate(names):
        kinds = {type(row[position]) for row in rows} - {type(None)}
        numbers = bool(kinds) and kinds <= {int, float}
        table.add_column(plain(name), justify="right" if numbers else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    return table


def _blocks(names: Sequence[str], cells: Sequence[Sequence[Text]]) -> Group:
    blocks: list[RenderableType] = []
    for number_of_row, row in enumerate(cells):
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(overflow="fold")
        table.add_column(overflow="fold")
        for name, cell in zip(names, row, strict=True):
            table.add_row(Text.assemble((plain(name).plain, DIM)), cell)
        blocks += ["", table] if number_of_row else [table]
    return Group(*blocks)


def _cell(value: object) -> Text:
    return Text("-", DIM) if value is None else plain(value)
