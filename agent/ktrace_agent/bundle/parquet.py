# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - tables are constants, file descriptors numbers
"""Writes tables of a capture as Parquet: typed columns, NULL = unknown."""

import os
from pathlib import Path
from typing import BinaryIO

import duckdb

from ktrace_agent.errors import SinkFailed
from ktrace_agent.files import DISK_FULL_ERRNOS, DiskFull
from ktrace_agent.signals import postponed
from ktrace_agent.tables.load import in_order

_ROW_GROUP = 20_480
"""Rows of a row group; DuckDB holds a whole one in memory."""
_DISK_FULL = tuple(map(os.strerror, DISK_FULL_ERRNOS))
"""DuckDB 2.0.0 raises the same IOException for every failed write. Only the text of errno in its
message says that the disk is full; DuckDB takes it from strerror(3), as Python does."""


def write(con: duckdb.DuckDBPyConnection, select: str, file: BinaryIO, folder: Path) -> int:
    """Write the result of a statement as the whole content of `file` and return its bytes.

    Raises DiskFull or SinkFailed, which name `folder`, the place of the file.
    """
    os.ftruncate(file.fileno(), 0)
    try:
        # DuckDB 2.0.0 with one thread may deadlock if COPY is interrupted.
        with in_order(con), postponed():
            con.execute(
                f"COPY ({select}) TO '/proc/self/fd/{file.fileno()}' (FORMAT parquet,"
                f" COMPRESSION zstd, ROW_GROUP_SIZE {_ROW_GROUP}, USE_TMP_FILE false)"
            )
    except duckdb.IOException as error:
        if any(text in str(error) for text in _DISK_FULL):
            raise DiskFull.in_folder(folder) from error
        reason = str(error).splitlines()[0]
        raise SinkFailed(f"cannot write Parquet into {folder}: {reason}") from error
    return file.seek(0, os.SEEK_END)


def write_up_to(
    limit: int,
    con: duckdb.DuckDBPyConnection,
    table: str,
    order: str,
    file: BinaryIO,
    folder: Path,
) -> int:
    """Write a table, or only its first lines by `order` if it takes more than `limit` bytes.

    Returns the number of lines that are not in the file. Raises like write().
    """
    size = write(con, f"SELECT * FROM {table}", file, folder)
    if size <= limit:
        return 0
    ((total,),) = con.execute(f"SELECT count(*) FROM {table}").fetchall()
    kept = int(total)
    while size > limit and kept:
        kept = min(kept * limit // size * 9 // 10, kept - 1)
        size = write(con, f"SELECT * FROM {table} ORDER BY {order} LIMIT {kept}", file, folder)
    return int(total) - kept
