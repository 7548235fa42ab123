# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - tables are constants, file descriptors numbers
"""Tables of a capture as Parquet: typed columns, NULL = not known."""

import os
from pathlib import Path
from typing import BinaryIO

import duckdb

from ktrace_agent.errors import SinkFailed
from ktrace_agent.files import DiskFull
from ktrace_agent.signals import postponed
from ktrace_agent.tables.load import in_order

_ROW_GROUP = 20_480
"""Rows; they are in memory until a group is whole."""
_FULL = ("No space left on device", "Disk quota exceeded", "File too large")


def write(con: duckdb.DuckDBPyConnection, select: str, file: BinaryIO, folder: Path) -> int:
    """The result of a statement as the whole content of `file`; its size in bytes.

    Raises DiskFull or SinkFailed that name `folder`, where the file is.
    """
    os.ftruncate(file.fileno(), 0)
    try:
        # An interrupt of COPY by DuckDB 2.0.0 with one thread may wait for itself for ever.
        with in_order(con), postponed():
            con.execute(
                f"COPY ({select}) TO '/proc/self/fd/{file.fileno()}' (FORMAT parquet,"
                f" COMPRESSION zstd, ROW_GROUP_SIZE {_ROW_GROUP}, USE_TMP_FILE false)"
            )
    except duckdb.IOException as error:
        if any(text in str(error) for text in _FULL):
            raise DiskFull(
                f"{folder} has no room left; free some space or choose another --out-dir"
            ) from error
        reason = str(error).splitlines()[0]
        raise SinkFailed(f"cannot write Parquet into {folder}: {reason}") from error
    return file.seek(0, os.SEEK_END)


def write_at_most(
    con: duckdb.DuckDBPyConnection,
    table: str,
    order: str,
    room: int,
    file: BinaryIO,
    folder: Path,
) -> int:
    """A table, or of one that takes more than `room` bytes the first lines by `order`.

    Returns how many lines are not in the file.
    """
    size = write(con, f"SELECT * FROM {table}", file, folder)
    if size <= room:
        return 0
    ((total,),) = con.execute(f"SELECT count(*) FROM {table}").fetchall()
    kept = int(total)
    while size > room and kept:
        kept = min(kept * room // size * 9 // 10, kept - 1)
        size = write(con, f"SELECT * FROM {table} ORDER BY {order} LIMIT {kept}", file, folder)
    return int(total) - kept
