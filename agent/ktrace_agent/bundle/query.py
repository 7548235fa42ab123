# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - tables are constants, file descriptors numbers
"""SQL over a sealed bundle: the tables of tables/contract.py, and nothing else on this machine."""

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
"""Matches in the name of a type: a quoted name, or a time with a zone, alone or nested."""
_PLAIN = {"TIMESTAMP WITH TIME ZONE": "TIMESTAMP", "TIMESTAMPTZ_NS": "TIMESTAMP_NS"}


class Answer(NamedTuple):
    """Distinct names of the columns, and the rows in batches."""

    names: list[str]
    batches: Iterator[list[tuple[Any, ...]]]


@contextmanager
def database(bundle: Opened) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a database with the bundle's tables that can access no other file and no network."""
    if bundle.node is None:
        raise UsageError(f"{bundle.path} is only a summary: give the bundle.tgz to query rows")
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
    """Create the tables of the bundle, then disable all other access."""
    paths = [f"/proc/self/fd/{file.fileno()}" for file in bundle.tables]
    try:
        for table, path in zip(_IN_FILES, paths, strict=True):
            columns = ", ".join(COLUMNS[table])
            con.execute(f"CREATE VIEW {table} AS SELECT {columns} FROM read_parquet('{path}')")
    except duckdb.Error as error:
        name = TABLES[len(_views(con))]
        raise BadBundle(f"cannot read {name} of {bundle.path}: {_line(error)}") from error
    for table in COLUMNS.keys() - set(_IN_FILES):
        con.execute(create(table))
    facts = Facts.of(bundle.summary)
    fact_tables.load(con, facts, node, findings=bundle.summary.findings)
    # Our times are UTC, also where a query turns plain ones into times with a zone.
    con.execute("SET TimeZone = 'UTC'")
    con.execute(f"SET allowed_paths = {paths}")
    con.execute("SET enable_external_access = false")
    con.execute("SET lock_configuration = true")


@contextmanager
def _interruptible(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Make SIGINT stop DuckDB and raise KeyboardInterrupt, as in all other code.

    DuckDB turns it into a RuntimeError, and without interrupt() waits until its threads finish.
    """
    interrupted = False

    def end(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        con.interrupt()
        raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # threads get no signals, and another handler of SIGINT stays in place
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    except Exception as error:
        if interrupted:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ask(con: duckdb.DuckDBPyConnection, sql: str) -> Answer:
    """Run a single SELECT; raises UsageError with what is wrong with it."""
    try:
        statements = con.extract_statements(sql)
        if len(statements) != 1 or statements[0].type not in _ALLOWED:
            raise UsageError("invalid query: only a single SELECT statement is allowed")
        found = _run(con, statements[0])
    except (duckdb.Error, RuntimeError) as error:
        raise _refusal(error) from error
    return Answer(_apart([column[0] for column in found.description or ()]), _batches(found))


def _run(con: duckdb.DuckDBPyConnection, statement: duckdb.Statement) -> duckdb.DuckDBPyConnection:
    """Run a statement and return times with a zone as plain UTC times.

    DuckDB needs pytz to convert times with a zone to Python, and the agent does not ship it.
    """
    if statement.type != duckdb.StatementType.SELECT:
        return con.execute(statement)
    columns = con.execute(f"DESCRIBE {statement.query}").fetchall()
    casts = [(name, kind, _ZONED.sub(_without_zone, kind)) for name, kind, *_ in columns]
    if all(kind == plain for _, kind, plain in casts):
        return con.execute(statement)
    # By number, because names may occur twice. A view, because a subquery allows neither ";" nor
    # a trailing comment.
    con.execute(f"CREATE OR REPLACE TEMP VIEW answer AS {statement.query}")
    values = ", ".join(
        f"CAST(#{number} AS {plain}) AS {_quoted(name)}"
        for number, (name, _, plain) in enumerate(casts, 1)
    )
    return con.execute(f"SELECT {values} FROM answer")


def _without_zone(found: re.Match[str]) -> str:
    return found[1] or _PLAIN[found[2]]


def write(answer: Answer, form: str, out: TextIO | None = None) -> None:
    """Print the rows as CSV with a header, or as JSON lines."""
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
    """Convert a DuckDB value to JSON: times as text in UTC, types without a JSON form as text."""
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
    """Make names distinct as DuckDB does for columns of a subquery: comm, comm_1.

    A JSON object holds one value per name. A name that occurs once is kept.
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
    return UsageError(f"invalid query: {_line(error)}")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _views(con: duckdb.DuckDBPyConnection) -> Sequence[Any]:
    return con.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()


def _line(error: Exception) -> str:
    """Shorten a DuckDB message to one line, without its drawing of the statement or a trace."""
    # DuckDB raises the same InvalidInputException for many errors; only the text names the module.
    if "'pytz'" in str(error):
        return "a VARIANT or UNION value holds a time with a time zone; cast it to VARCHAR"
    return " ".join(re.split(r"\nLINE |\nTraceback", str(error))[0].split())
