# SPDX-License-Identifier: Apache-2.0
"""Runs a SQL statement and returns its rows as dictionaries."""

from typing import Any

import duckdb


def records(con: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    """Return the rows of a query, each as column -> value."""
    found = con.execute(sql)
    names = [column[0] for column in found.description or ()]
    return [dict(zip(names, values, strict=True)) for values in found.fetchall()]
