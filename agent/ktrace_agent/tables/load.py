# SPDX-License-Identifier: Apache-2.0
"""Loads a recording into DuckDB tables: those of contract.py, stored as layout.py describes."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np

from ktrace_agent.enrich.conntrack.lookup import Conntrack
from ktrace_agent.kernel.observed import EVERYTHING, Observed
from ktrace_agent.kernel.recording import Recording
from ktrace_agent.tables.backfill import backfill
from ktrace_agent.tables.encode import Encoder
from ktrace_agent.tables.endpoints import resolve
from ktrace_agent.tables.insert import insert_events, insert_flows, insert_sockets, insert_texts
from ktrace_agent.tables.layout import SCHEMA
from ktrace_agent.tables.memory import give_back
from ktrace_agent.tables.records import EVENT
from ktrace_api.names import RowType
from ktrace_api.row import PodIdentity


@dataclass(slots=True)
class Names:
    """Pod names and the conntrack index, some 10 MiB. load() releases them as early as it can."""

    pods: Mapping[int, PodIdentity] = field(default_factory=dict)
    """By cgroup id."""
    conntrack: Conntrack | None = None

    def release(self) -> None:
        """Drops the references, so that the memory is freed unless another owner holds them."""
        self.pods, self.conntrack = {}, None


class Tables:
    """One recording in an in-memory DuckDB of its own; close() frees it.

    `observed` states which figures are known.
    """

    def __init__(
        self, con: duckdb.DuckDBPyConnection, rows: int, observed: Observed = EVERYTHING
    ) -> None:
        self.con, self.rows, self.observed = con, rows, observed

    def close(self) -> None:
        """Frees the memory."""
        self.con.close()

    def lines(self, count: int) -> Iterator[list[str]]:
        """Yields the JSON texts of all rows in order, `count` at a time.

        No other query may run on `con` meanwhile.
        """
        with in_order(self.con):
            found = self.con.execute("SELECT line FROM lines")
            while batch := found.fetchmany(count):
                yield [line for (line,) in batch]

    def types(self) -> dict[RowType, int]:
        """Returns the number of rows of each type, including 0."""
        found = self.con.execute(
            "SELECT k.type, count(*) FROM events JOIN kinds k USING (kind) GROUP BY ALL"
        )
        return dict.fromkeys(RowType, 0) | {RowType(name): n for name, n in found.fetchall()}

    def cut(self, rows: int) -> None:
        """Deletes all rows but the first `rows`, because the bundle does not contain the others."""
        self.con.execute("DELETE FROM events WHERE n >= ?", [rows])
        self.rows = min(self.rows, rows)


def load(recording: Recording, node: str, names: Names | None = None) -> Tables:
    """Loads a recording and releases `names`.

    Reads the spool from offset 0; its file position is not used.
    """
    names = names or Names()
    total = os.fstat(recording.spool_fd).st_size // EVENT.itemsize
    con = duckdb.connect(config=_settings(total))
    con.execute(SCHEMA)

    encoder = Encoder()
    rows = encoder.spool(recording.spool_fd, total)
    wildcards = encoder.wildcards()
    backfill(rows, wildcards, accepted=insert_sockets(con, recording, encoder))
    order = np.argsort(rows["ts"], kind="stable").astype(np.uint32)

    flows = encoder.flows(recording)
    resolved = resolve(rows, order, flows, encoder.addresses, names.conntrack)
    # The conntrack index is not used any more, and inserting the events needs its memory.
    names.conntrack = None
    give_back()

    insert_events(con, rows, order, resolved, encoder, recording.clock.offset_start_ns)
    tables = Tables(con, len(rows), recording.observed)
    del rows, order
    insert_flows(con, recording, flows, resolved)
    insert_texts(con, encoder, node, names.pods, resolved.connections)
    # Everything is in DuckDB now. Sealing needs the memory of the names and of the arrays.
    names.release()
    del encoder, flows, resolved
    give_back()
    return tables


@contextmanager
def in_order(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Makes queries on rows or lines return them in their order, and with little memory.

    Without these optimizers DuckDB streams the first table of a join, here the events, and
    holds only the others.
    """
    con.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
    try:
        yield
    finally:
        con.execute("RESET disabled_optimizers")


def _settings(rows: int) -> dict[str, Any]:
    """Returns the settings: one thread, memory for `rows` events, no disk and no network.

    The allocator returns the memory of a query at once. That lowers the peak of 1 M rows by 20
    to 30 MiB and costs 0.5 s.
    """
    return {
        "threads": 1,
        "allocator_flush_threshold": "8MB",
        "allocator_bulk_deallocation_flush_threshold": "8MB",
        "memory_limit": f"{(256 << 20) + 2048 * rows}B",
        "temp_directory": "",
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
