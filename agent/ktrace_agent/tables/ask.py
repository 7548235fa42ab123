# SPDX-License-Identifier: Apache-2.0
"""One SQL statement in, its rows as dictionaries out."""

from typing import Any

import duckdb


def records(con: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    """The lines of a query, by column."""
    found = con.execute(sql)
    names = [column[0] for column in found.description or ()]
    return [dict(zip(names, values, strict=True)) for values in found.fetchall()]
