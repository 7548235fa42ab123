# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - tables are constants, file descriptors numbers
"""SQL over a sealed bundle: the tables of sql.py, and nothing else of this machine."""

import csv
import json
import math
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple, TextIO

import duckdb

from ktrace_agent.analyze.facts import Facts
from ktrace_agent.bundle import fact_tables
from ktrace_agent.bundle.reader import TABLES, Opened
from ktrace_agent.errors import BadBundle, UsageError
from ktrace_agent.tables.contract import COLUMNS, create
from ktrace_api.node import NodeInfo

FORMATS = ("table", "csv", "jsonl")
_BATCH = 4096
_ALLOWED = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
_IN_FILES = ("rows", "flows", "sockets")
_ZONED = re.compile(
    r"""("(?:[^"]|"")*"|'(?:[^']|'')*')|(TIMESTAMP WITH TIME ZONE|TIMESTAMPTZ_NS)(?=[\[,)]|$)"""
)
"""In the name of a type: a quoted name, or a time with a zone, alone or inside another type."""
_PLAIN = {"TIMESTAMP WITH TIME ZONE": "TIMESTAMP", "TIMESTAMPTZ_NS": "TIMESTAMP_NS"}


class Answer(NamedTuple):
    """Names of the columns, each another one, and the rows in batches."""

    names: list[str]
    batches: Iterator[list[tuple[Any, ...]]]


@contextmanager
def database(bundle: Opened) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database that holds the bundle's tables and can reach no file and no network."""
    if bundle.node is None:
        raise UsageError(f"{bundle.path} has no rows; give the bundle.tgz")
    con = duckdb.connect(
        config={
            "temp_directory": "",
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
    )
    try:
        with _interruptible(con):
            _fill(con, bundle, bundle.node)
            yield con
    finally:
        con.close()


def _fill(con: duckdb.DuckDBPyConnection, bundle: Opened, node: NodeInfo) -> None:
    """The tables of the bundle, and no way out of it any more."""
    paths = [f"/proc/self/fd/{file.fileno()}" for file in bundle.tables]
    try:
        for table, path in zip(_IN_FILES, paths, strict=True):
            columns = ", ".join(COLUMNS[table])
            con.execute(f"CREATE VIEW {table} AS SELECT {columns} FROM read_parquet('{path}')")
    except duckdb.Error as error:
        name = TABLES[len(_views(con))]
        raise BadBundle(f"{bundle.path}: {name} cannot be read: {_line(error)}") from error
    for table in COLUMNS.keys() - set(_IN_FILES):
        con.execute(create(table))
    facts = Facts.of(bundle.summary)
    fact_tables.load(con, facts, node, findings=bundle.summary.findings)
    # Of times with a zone, and of plain ones that a query makes one of: ours are UTC.
    con.execute("SET TimeZone = 'UTC'")
    con.execute(f"SET allowed_paths = {paths}")
    con.execute("SET enable_external_access = false")
    con.execute("SET lock_configuration = true")


@contextmanager
def _interruptible(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """SIGINT ends what DuckDB does and raises KeyboardInterrupt, as everywhere else.

    DuckDB makes a RuntimeError of it, and without interrupt() waits for its threads to be done.
    """
    told = False

    def end(*_: object) -> None:
        nonlocal told
        told = True
        con.interrupt()
        raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # nobody interrupts a thread, and whoever handles or ignores it goes on to do so
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    except Exception as error:
        if told:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ask(con: duckdb.DuckDBPyConnection, question: str) -> Answer:
    """The answer to one SELECT; UsageError says what is wrong with it."""
    try:
        statements = con.extract_statements(question)
        if len(statements) != 1 or statements[0].type not in _ALLOWED:
            raise UsageError("a query is one SELECT; nothing else is run")
        found = _run(con, statements[0])
    except (duckdb.Error, RuntimeError) as error:
        raise _refusal(error) from error
    return Answer(_apart([column[0] for column in found.description or ()]), _batches(found))


def _run(con: duckdb.DuckDBPyConnection, asked: duckdb.Statement) -> duckdb.DuckDBPyConnection:
    """Run it; times with a zone come as plain ones, for DuckDB makes Python's of them by pytz."""
    if asked.type != duckdb.StatementType.SELECT:
        return con.execute(asked)
    columns = con.execute(f"DESCRIBE {asked.query}").fetchall()
    casts = [(name, kind, _ZONED.sub(_without_zone, kind)) for name, kind, *_ in columns]
    if all(kind == plain for _, kind, plain in casts):
        return con.execute(asked)
    # By number: names may be there twice. A view: a subquery bears no ";" and no last comment.
    con.execute(f"CREATE OR REPLACE TEMP VIEW answer AS {asked.query}")
    values = ", ".join(
        f"CAST(#{number} AS {plain}) AS {_quoted(name)}"
        for number, (name, _, plain) in enumerate(casts, 1)
    )
    return con.execute(f"SELECT {values} FROM answer")


def _without_zone(found: re.Match[str]) -> str:
    return found[1] or _PLAIN[found[2]]


def write(answer: Answer, form: str, out: TextIO | None = None) -> None:
    """Print an answer as CSV with a header, or as JSON lines."""
    out = out or sys.stdout
    if form == "csv":
        lines = csv.writer(out, lineterminator="\n")
        lines.writerow(answer.names)
        for batch in answer.batches:
            lines.writerows([_cell(value) for value in row] for row in batch)
    else:
        for batch in answer.batches:
            for row in batch:
                shown = dict(zip(answer.names, map(plain_value, row), strict=True))
                out.write(json.dumps(shown, ensure_ascii=False) + "\n")
    out.flush()


def plain_value(value: Any) -> Any:
    """A value of DuckDB as one of JSON: times as text in UTC, what has no other form as text."""
    match value:
        case None | bool() | int() | str():
            return value
        case datetime(tzinfo=None):
            return value.isoformat(timespec="microseconds") + "Z"
        case Decimal():
            return float(value)
        case dict():
            return {str(plain_value(name)): plain_value(one) for name, one in value.items()}
        case list() | tuple():
            return [plain_value(one) for one in value]
        case _:
            return value if isinstance(value, float) and math.isfinite(value) else str(value)


def _apart(names: Sequence[str]) -> list[str]:
    """Names without doubles, as DuckDB tells the columns of a subquery apart: comm, comm_1.

    A line of JSON holds one value a name. A name that the query gives once is kept.
    """
    taken, found = set(names), list[str]()
    for name in names:
        new, number = name, 0
        while new in found or (number and new in taken):
            number += 1
            new = f"{name}_{number}"
        found.append(new)
    return found


def _cell(value: Any) -> Any:
    shown = plain_value(value)
    return json.dumps(shown, ensure_ascii=False) if isinstance(shown, dict | list) else shown


def _batches(found: duckdb.DuckDBPyConnection) -> Iterator[list[tuple[Any, ...]]]:
    try:
        while batch := found.fetchmany(_BATCH):
            yield batch
    except (duckdb.Error, RuntimeError) as error:
        raise _refusal(error) from error


def _refusal(error: Exception) -> UsageError:
    return UsageError(f"the query cannot be answered: {_line(error)}")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _views(con: duckdb.DuckDBPyConnection) -> Sequence[Any]:
    return con.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()


def _line(error: Exception) -> str:
    """The first lines of a message of DuckDB, without a drawing of the statement or a trace."""
    if "'pytz'" in str(error):
        return "a time with a zone is inside of a value of any type; cast it to VARCHAR"
    return " ".join(re.split(r"\nLINE |\nTraceback", str(error))[0].split())
