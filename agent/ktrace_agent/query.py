# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - tables are constants, file descriptors numbers
"""SQL over a sealed bundle: the tables of sql.py, and nothing else of this machine."""

import csv
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple, TextIO

import duckdb

from ktrace_agent import facts
from ktrace_agent.errors import BadBundle, UsageError
from ktrace_agent.reader import TABLES, Opened
from ktrace_agent.sql import COLUMNS, create

FORMATS = ("table", "csv", "jsonl")
_BATCH = 4096
_ALLOWED = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
_IN_FILES = ("rows", "flows", "sockets")


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
        facts.load(con, bundle.summary, bundle.node)
        con.execute(f"SET allowed_paths = {paths}")
        con.execute("SET enable_external_access = false")
        con.execute("SET lock_configuration = true")
        yield con
    finally:
        con.close()


def ask(con: duckdb.DuckDBPyConnection, question: str) -> Answer:
    """The answer to one SELECT; UsageError says what is wrong with it."""
    try:
        statements = con.extract_statements(question)
        if len(statements) != 1 or statements[0].type not in _ALLOWED:
            raise UsageError("a query is one SELECT; nothing else is run")
        found = con.execute(statements[0])
    except (duckdb.Error, RuntimeError) as error:
        raise _refusal(error) from error
    return Answer(_apart([column[0] for column in found.description or ()]), _batches(found))


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
            return {str(name): plain_value(one) for name, one in value.items()}
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


def _refusal(error: Exception) -> BaseException:
    """What an error of DuckDB means; it makes a RuntimeError of an interrupt."""
    if "interrupted" in str(error).lower():
        return KeyboardInterrupt()
    return UsageError(f"the query cannot be answered: {_line(error)}")


def _views(con: duckdb.DuckDBPyConnection) -> Sequence[Any]:
    return con.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()


def _line(error: Exception) -> str:
    """The first lines of a message of DuckDB without its drawing of the statement."""
    return " ".join(str(error).split("\nLINE ")[0].split())
