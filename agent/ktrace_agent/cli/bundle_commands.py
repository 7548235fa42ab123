# SPDX-License-Identifier: Apache-2.0
"""`ktrace show` and `ktrace query`: read a bundle on any machine, without privileges."""

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
"""Maximum rows of a result on a terminal; files and pipes get all rows."""
_BUNDLE = re.compile(r"ktrace\.(.+)\.(\d{8}T\d{6}Z)(?:-(\d{1,9}))?\.bundle\.tgz")
"""Node, start, and a number if there are several bundles of one second (bundle/seal.py)."""


def show(path: Path, *, as_document: bool) -> None:
    """Print the report as at the end of the capture, or the whole summary as JSON."""
    with reader.opened(_one_of(path)) as bundle:
        if as_document:
            sys.stdout.write(bundle.summary.to_bytes().decode())
            return
        whereabouts = findings.whereabouts(bundle.summary, bundle.path) if bundle.node else ()
        console.write(report.report(bundle.summary), *whereabouts)


def _one_of(path: Path) -> Path:
    """Choose the newest bundle in a folder with several bundles of one node, by name.

    The choice is reported on standard error. With bundles of several nodes or under other names,
    reader.py raises an error that asks for a file.
    """
    try:
        files = sorted(path.glob("*.bundle.tgz")) if path.is_dir() else []
    except OSError:  # reader.py reports it
        return path
    found = [match for file in files if (match := _BUNDLE.fullmatch(file.name))]
    if len(files) < 2 or len(found) < len(files) or len({match[1] for match in found}) > 1:
        return path
    newest = path / max(found, key=lambda match: (match[2], int(match[3] or 1)))[0]
    sys.stderr.write(f"ktrace: {path} contains {len(files)} bundles; using the newest: {newest}\n")
    return newest


def answer(path: Path, question: str, form: str | None) -> None:
    """Print the result of a SELECT: a table on a terminal, otherwise CSV."""
    form = form or ("table" if sys.stdout.isatty() else "csv")
    if form not in query.FORMATS:
        raise UsageError(f'--format: invalid format "{form}": use {", ".join(query.FORMATS)}')
    with reader.opened(_one_of(path)) as bundle, query.database(bundle) as con:
        found = query.ask(con, question)
        if form != "table":
            query.write(found, form)
            return
        rows = [row for batch in islice(found.batches, 1) for row in batch]
        more = len(rows) > SHOWN_ROWS
        width = shutil.get_terminal_size().columns
        console.write(table_or_blocks(found.names, rows[:SHOWN_ROWS], width))
        if more:
            sys.stderr.write(
                f"ktrace: showing the first {SHOWN_ROWS:,} rows; use --format=csv for all rows\n"
            )
