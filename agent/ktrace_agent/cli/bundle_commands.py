# SPDX-License-Identifier: Apache-2.0
"""`ktrace show` and `ktrace query`: a sealed bundle, read on any machine without privileges."""

import re
import shutil
import sys
from itertools import islice
from pathlib import Path

from ktrace_agent.bundle import query, reader
from ktrace_agent.errors import UsageError
from ktrace_agent.view import console, findings, report
from ktrace_agent.view.query_table import table_or_blocks

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
        whereabouts = findings.whereabouts(bundle.summary, bundle.path) if bundle.node else ()
        console.tell(report.report(bundle.summary), *whereabouts)


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
        console.tell(table_or_blocks(found.names, rows[:SHOWN_ROWS], width))
        if more:
            sys.stderr.write(
                f"ktrace: only the first {SHOWN_ROWS} rows are shown; --format=csv gives all\n"
            )
