# SPDX-License-Identifier: Apache-2.0
"""Seals a capture: four files, and one archive of them with a manifest.

    ktrace.<node>.<ts>.events.jsonl   .events.parquet   .summary.json   .node.json   .bundle.tgz

The steps, each a function of the ones before it:

    capture -> tables -> events.jsonl -> Parquet -> facts -> findings -> summary -> archive

Rows are cut before the facts are collected, so facts, findings and summary describe exactly the
rows in the bundle. Flows and sockets are only in the archive.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from ktrace_agent.analyze.facts import Facts, gather
from ktrace_agent.analyze.summary import summarize
from ktrace_agent.bundle import archive, fact_tables, parquet
from ktrace_agent.bundle.conclude import conclude
from ktrace_agent.bundle.fitted_summary import fit
from ktrace_agent.bundle.rows_file import RowFile, account
from ktrace_agent.files import DiskFull, create, disk_errors, write_all
from ktrace_agent.tables import dns_pairs, missed_events
from ktrace_agent.tables.captured import Captured
from ktrace_agent.tables.load import Tables, load
from ktrace_agent.tables.memory import give_back, no_collections
from ktrace_api.bundle import Manifest
from ktrace_api.capture import CaptureConfig
from ktrace_api.names import RowType
from ktrace_api.summary import SUMMARY_MAX_BYTES, Summary

_SIDE_SHARE = 8
"""Flows and sockets may each use this fraction of max_bytes: one eighth."""
_SIDES = {
    "flows": "coalesce(tx_bytes, 0) + coalesce(rx_bytes, 0) DESC",
    "sockets": "moment, state, age_us DESC",
}
"""Tables with a file of their own in the archive, and the order in which their lines matter."""
_UDP = (RowType.UDP_SEND, RowType.UDP_RECV)
_KEPT_OF_A_FULL_DISK = 0.75
"""Part of the rows that is kept if the disk is full: the other files need space too."""

Missed = Mapping[RowType, int]


@dataclass(frozen=True, slots=True)
class Sealed:
    """A bundle on disk: paths of events, Parquet, summary, node and archive, in this order.

    bytes and sha256 are those of the archive.
    """

    paths: tuple[Path, ...]
    manifest: Manifest
    summary: Summary
    bytes: int
    sha256: str

    @property
    def bundle(self) -> Path:
        """The archive."""
        return self.paths[-1]


def _quiet(_: str) -> None:
    pass


def seal(captured: Captured, out_dir: Path, progress: Callable[[str], None] = _quiet) -> Sealed:
    """Write the bundle of a capture into `out_dir`, which is created if missing.

    Recording and names are released once they are loaded, so that the bundle can use their memory
    and disk space. Rows beyond config.max_bytes are cut and counted as `capped`. If the disk is
    full, rows are cut and counted as `lost_ring`. Raises SinkFailed if not even a bundle without
    rows can be written; `out_dir` then holds no new file.
    """
    with disk_errors(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
    with no_collections(), ExitStack() as stack:
        progress("decoding records")
        tables = stack.enter_context(closing(_load(captured)))
        missed = missed_events.count(tables.con, captured.recording, captured.config)
        with disk_errors(out_dir):
            rows = RowFile(tables, stack.enter_context(create(out_dir)))
        progress(f"writing {tables.rows} rows")
        rows.write(_space_for_rows(captured), out_dir)
        give_back()
        while True:
            progress(f"compressing {tables.rows} rows")
            try:
                return _compose(captured, rows, missed, out_dir)
            except DiskFull:
                if not tables.rows:
                    raise
                rows.lose(int(rows.bytes * _KEPT_OF_A_FULL_DISK))


def _load(captured: Captured) -> Tables:
    """Load the tables, with DNS answers paired to queries; empties recording and names."""
    config, recording = captured.config, captured.recording
    tables = load(recording, config.node, captured.names)
    recording.forget()
    dns_pairs.pair(tables.con, config.thresholds)
    if config.sample == 1:
        dns_pairs.time_answers(tables.con, sure=not recording.lost(*_UDP))
    give_back()
    return tables


def _space_for_rows(captured: Captured) -> int:
    """Bytes of max_bytes for rows and tables: what the other files leave of it."""
    fixed = len(captured.node_info.to_bytes()) + SUMMARY_MAX_BYTES + archive.MANIFEST_MAX_BYTES
    return captured.config.max_bytes - fixed


def _compose(captured: Captured, rows: RowFile, missed: Missed, out_dir: Path) -> Sealed:
    """Write everything but the rows and publish all of it; DiskFull leaves nothing."""
    con, config = rows.tables.con, captured.config
    with ExitStack() as stack, disk_errors(out_dir):

        def new(text: bytes = b"") -> BinaryIO:
            file = stack.enter_context(create(out_dir))
            write_all(file, memoryview(text))
            return file

        sides, columns = {name: new() for name in _SIDES}, new()
        notes = _write_sides(rows.tables, config, sides, out_dir)
        space = _space_for_rows(captured) - sum(map(_size, sides.values()))
        _write_columns(rows, config, columns, space, out_dir)
        give_back()
        facts = _facts(captured, rows, missed, notes)
        fact_tables.load(con, facts, captured.node_info, captured.changes)
        # Pairs of rows that were cut must not reach the findings.
        found = conclude(con, config.thresholds, paired=rows.whole)
        give_back()
        facts = replace(facts, notes=(*facts.notes, *found.notes))
        summary = fit(summarize(rows.tables, facts, found.found))
        beside = {
            "events.jsonl": rows.file,
            "events.parquet": columns,
            "summary.json": new(summary.to_bytes()),
            "node.json": new(captured.node_info.to_bytes()),
        }
        within = {f"{name}.parquet": file for name, file in sides.items()}
        packed = archive.pack_and_publish(out_dir, beside, within, summary)
    return Sealed(packed.paths, packed.manifest, summary, packed.bytes, packed.sha256)


def _write_sides(
    tables: Tables, config: CaptureConfig, files: Mapping[str, BinaryIO], out_dir: Path
) -> list[str]:
    """Write the tables that are only in the archive; returns sentences about what was cut."""
    notes, limit = [], config.max_bytes // _SIDE_SHARE
    for name, file in files.items():
        left_out = parquet.write_up_to(limit, tables.con, name, _SIDES[name], file, out_dir)
        if left_out:
            notes.append(f"{left_out} {name} are not in {name}.parquet: max_bytes was reached.")
    return notes


def _write_columns(
    rows: RowFile, config: CaptureConfig, file: BinaryIO, limit: int, out_dir: Path
) -> None:
    """Write events.parquet; cut rows until it and events.jsonl fit into `limit` bytes."""
    node = config.node.replace("'", "''")
    select = f"SELECT '{node}' AS node, * FROM rows"  # noqa: S608 - quoted above
    while True:
        size = parquet.write(rows.tables.con, select, file, out_dir)
        both = size + rows.bytes
        if both <= limit or not rows.tables.rows:
            return
        rows.cap(rows.bytes * limit // both * 49 // 50)


def _facts(captured: Captured, rows: RowFile, missed: Missed, notes: list[str]) -> Facts:
    return gather(
        captured,
        rows.tables.types(),
        account(captured.recording, rows, missed),
        [*rows.notes(captured.config), *notes, *captured.node_info.identity.notes],
        disk_full=any(rows.lost.values()),
    )


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size
