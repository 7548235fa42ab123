# SPDX-License-Identifier: Apache-2.0
"""Parquet files under the real DuckDB: whole, whatever interrupts their writing."""

import multiprocessing
import random
import signal
from pathlib import Path

import duckdb
import pytest

from ktrace_agent.bundle import parquet
from ktrace_agent.files import create
from ktrace_agent.signals import Stop, stopping
from ktrace_agent.tables.load import _settings

ROWS = 60_000
TIMES = 13


def gives_up_while_writing(folder: Path, longest_s: float) -> bool:
    """One file with a second Ctrl-C somewhere in between; whether that ended the writing."""
    columns = ", ".join(f"hash(range + {number})::VARCHAR AS c{number}" for number in range(12))
    stop, gave_up = Stop(), False
    stop.set()
    with duckdb.connect(config=_settings(ROWS)) as con, create(folder) as file:
        con.execute(f"CREATE TABLE t AS SELECT range AS a, {columns} FROM range({ROWS})")
        try:
            with stopping(stop):
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, longest_s))
                parquet.write(con, "SELECT * FROM t", file, folder)
                signal.pause()  # where the time was longer than the writing
        except KeyboardInterrupt:
            gave_up = True
        written = con.read_parquet(f"/proc/self/fd/{file.fileno()}")
        assert len(written.select("a").fetchall()) == ROWS
    return gave_up


def gives_up_often(folder: Path) -> None:
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    assert all(gives_up_while_writing(folder, 0.2) for _ in range(TIMES))


@pytest.mark.slow
def test_a_second_interrupt_while_parquet_is_written_waits_for_the_file(tmp_path: Path):
    """DuckDB 2.0.0, interrupted in COPY with one thread, waits for itself in 1 of 10 times."""
    writer = multiprocessing.get_context("spawn").Process(target=gives_up_often, args=(tmp_path,))
    writer.start()
    try:
        writer.join(120)
        assert writer.exitcode == 0
    finally:
        writer.kill()
        writer.join()
