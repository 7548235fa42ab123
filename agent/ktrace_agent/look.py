# SPDX-License-Identifier: Apache-2.0
"""`ktrace show` and `ktrace query`: a sealed bundle, read on any machine without privileges."""

import re
import shutil
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ktrace_agent import explain, query, reader, render, terminal
from ktrace_agent.errors import UsageError
from ktrace_agent.shapes import DIM, plain

SHOWN_ROWS = 1_000
"""Rows of an answer on a terminal; files and pipes get all."""
_BUNDLE = re.compile(r"ktrace\.(.+)\.(\d{8}T\d{6}Z)(?:-(\d{1,9}))?\.bundle\.tgz")
"""Node, start, and the number of one that is not the first of its second (bundle.py)."""


def show(path: Path, *, as_document: bool) -> None:
    """What the end of the run printed, or the whole summary as JSON."""
    with reader.opened(_one_of(path)) as bundle:
        if as_document:
            sys.stdout.write(bundle.summary.to_bytes().decode())
            return
        whereabouts = explain.whereabouts(bundle.summary, bundle.path) if bundle.node else ()
        terminal.tell(render.report(bundle.summary), *whereabouts)


def _one_of(path: Path) -> Path:
    """Of a folder with several captures of one node the newest, by name; which one is told.

    Among those of several nodes, or under other names, none is: reader.py asks for one.
    """
    try:
        files = sorted(path.glob("*.bundle.tgz")) if path.is_dir() else []
    except OSError:  # reader.py will say it
        return path
    found = [match for file in files if (match := _BUNDLE.fullmatch(file.name))]
    if len(files) < 2 or len(found) < len(files) or len({match[1] for match in found}) > 1:
        return path
    newest = path / max(found, key=lambda match: (match[2], int(match[3] or 1)))[0]
    sys.stderr.write(f"ktrace: {path} holds {len(files)} bundles; this is the newest: {newest}\n")
    return newest


def answer(path: Path, question: str, form: str | None) -> None:
    """Print what the bundle answers to a SELECT: a table on a terminal, CSV elsewhere."""
    form = form or ("table" if sys.stdout.isatty() else "csv")
    if form not in query.FORMATS:
        raise UsageError(f"--format: {form!r} is not accepted; give {', '.join(query.FORMATS)}")
    with reader.opened(_one_of(path)) as bundle, query.database(bundle) as con:
        found = query.ask(con, question)
        if form != "table":
            query.write(found, form)
            return
        rows = [row for batch in islice(found.batches, 1) for row in batch]
        more = len(rows) > SHOWN_ROWS
        width = shutil.get_terminal_size().columns
        terminal.tell(table_or_blocks(found.names, rows[:SHOWN_ROWS], width))
        if more:
            sys.stderr.write(
                f"ktrace: only the first {SHOWN_ROWS} rows are shown; --format=csv gives all\n"
            )


def table_or_blocks(
    names: Sequence[str], rows: Sequence[Sequence[object]], width: int
) -> RenderableType:
    """Rows of a query; NULL as "-" in the background, numbers to the right.

    What is wider than the terminal becomes a block of lines a row.
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
