# SPDX-License-Identifier: Apache-2.0
"""From a recording to a sealed bundle: four files, and one archive of them with a manifest.

    ktrace.<node>.<ts>.events.jsonl   .events.parquet   .summary.json   .node.json   .bundle.tgz

Flows and sockets are in the archive only. It gets its name last: where it is, everything is.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import BinaryIO

from ktrace_agent.analyze.summary import summarize
from ktrace_agent.bundle import archive, fact_tables, fitted_findings, parquet
from ktrace_agent.bundle.rows_file import RowFile, account
from ktrace_agent.errors import SinkFailed
from ktrace_agent.files import DiskFull, NameTaken, Written, create, disk_errors, publish, write_all
from ktrace_agent.kernel.recording import Recording
from ktrace_agent.tables import missed_events
from ktrace_agent.tables.dns_pairs import time_answers
from ktrace_agent.tables.load import Names, Tables, load
from ktrace_agent.tables.memory import give_back, no_collections
from ktrace_api.bundle import Manifest
from ktrace_api.capture import CaptureConfig
from ktrace_api.names import RowType
from ktrace_api.node import NodeInfo
from ktrace_api.summary import SUMMARY_MAX_BYTES, Summary

_SIDE_SHARE = 8
"""Flows and sockets get one part in so many of max_bytes each."""
_SIDES = {"flows": "tx_bytes + rx_bytes DESC", "sockets": "moment, state, age_us DESC"}
"""Tables of their own in the archive, and which of their lines matter most."""
_ARCHIVE = "bundle.tgz"
_MAX_OF_A_SECOND = 10_000
"""Bundles of one node and second that get a name: more than anybody starts."""
_UDP = (RowType.UDP_SEND, RowType.UDP_RECV)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A bundle on disk: paths of events, Parquet, summary, node and archive, in this order.

    bytes and sha256 are the archive's.
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


def seal(
    recording: Recording,
    config: CaptureConfig,
    node_info: NodeInfo,
    out_dir: Path,
    progress: Callable[[str], None] = _quiet,
    names: Names | None = None,
    changes: fact_tables.Changes | None = None,
) -> Sealed:
    """Write the bundle of a recording into `out_dir` (made where it is missing).

    `changes` is all that the counters did, for the findings: node_info has room for a part.
    Recording and names are forgotten once they are loaded: their room in memory and on the disk
    is the bundle's. Rows beyond config.max_bytes are cut and counted as capped, rows that the disk
    has no room for as lost_ring. Raises SinkFailed where not even a bundle without rows can be
    written; then nothing is left in `out_dir`.
    """
    with disk_errors(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
    with no_collections(), ExitStack() as stack:
        progress("decoding the records")
        tables = stack.enter_context(closing(load(recording, config.node, names)))
        recording.forget()
        missed = missed_events.count(tables.con, recording, config)
        if config.sample == 1:
            time_answers(tables.con, config.thresholds, sure=not recording.lost(*_UDP))
        with disk_errors(out_dir):
            rows = RowFile(tables, stack.enter_context(create(out_dir)))
        work = _Work(tables, rows, recording, config, node_info, changes, out_dir, missed)
        progress(f"writing {tables.rows} rows")
        rows.write(work.room, out_dir)
        give_back()
        while True:
            progress(f"compressing {tables.rows} rows")
            try:
                return work.compose()
            except DiskFull:
                if not tables.rows:
                    raise
                rows.lose(rows.bytes * 3 // 4)


class _Work:
    """All that a bundle is made of but the rows, made anew whenever the rows become fewer."""

    def __init__(
        self,
        tables: Tables,
        rows: RowFile,
        recording: Recording,
        config: CaptureConfig,
        node_info: NodeInfo,
        changes: fact_tables.Changes | None,
        out_dir: Path,
        missed: Mapping[RowType, int],
    ) -> None:
        self._missed, self._changes = missed, changes
        self._tables, self._rows, self._recording = tables, rows, recording
        self._config, self._node_info, self._out_dir = config, node_info, out_dir
        self._node_json = node_info.to_bytes()
        self._side_room = config.max_bytes // _SIDE_SHARE
        fixed = len(self._node_json) + SUMMARY_MAX_BYTES + archive.MANIFEST_MAX_BYTES
        self.room = config.max_bytes - fixed
        """Bytes for the rows and the tables."""

    def compose(self) -> Sealed:
        """Summary, archive and names for the rows as they are now; DiskFull leaves nothing."""
        with ExitStack() as stack, disk_errors(self._out_dir):

            def new(text: bytes = b"") -> BinaryIO:
                file = stack.enter_context(create(self._out_dir))
                write_all(file, memoryview(text))
                return file

            sides = {name: new() for name in _SIDES}
            notes = self._write_sides(sides)
            columns = new()
            self._write_columns(columns, self.room - sum(map(_size, sides.values())))
            give_back()
            summary = self._summarize(notes)
            shown = {
                "events.jsonl": self._rows.file,
                "events.parquet": columns,
                "summary.json": new(summary.to_bytes()),
                "node.json": new(self._node_json),
            }
            inner = {f"{name}.parquet": file for name, file in sides.items()}
            for stem in self._stems((*shown, _ARCHIVE)):
                with suppress(NameTaken), create(self._out_dir) as packed:
                    return self._publish(stem, shown, inner, packed, summary)
        raise SinkFailed(f"{self._out_dir} has no name left for a bundle; choose another --out-dir")

    def _publish(
        self,
        stem: str,
        shown: Mapping[str, BinaryIO],
        inner: Mapping[str, BinaryIO],
        packed: BinaryIO,
        summary: Summary,
    ) -> Sealed:
        """Pack under names that begin with `stem` and give them; NameTaken leaves nothing.

        `shown` are the parts that stand beside the archive, `inner` those within it only.
        """
        parts = {f"{stem}.{name}": file for name, file in (*shown.items(), *inner.items())}
        manifest, members, sha256 = archive.pack(packed, parts, summary)
        size = os.fstat(packed.fileno()).st_size
        beside = [member for member in members if member.name.removeprefix(f"{stem}.") in shown]
        beside.append(Written(f"{stem}.{_ARCHIVE}", packed, size, sha256))
        paths = publish(self._out_dir, beside)
        return Sealed(tuple(paths), manifest, summary, size, sha256)

    def _write_sides(self, files: Mapping[str, BinaryIO]) -> list[str]:
        """The tables that are in the archive only; sentences about what found no room there."""
        notes = []
        for name, file in files.items():
            left_out = parquet.write_at_most(
                self._tables.con, name, _SIDES[name], self._side_room, file, self._out_dir
            )
            if left_out:
                notes.append(f"{left_out} {name} are not in {name}.parquet: max_bytes was reached.")
        return notes

    def _write_columns(self, file: BinaryIO, room: int) -> None:
        """events.parquet; rows are cut until it and events.jsonl fit into `room` bytes."""
        node = self._config.node.replace("'", "''")
        select = f"SELECT '{node}' AS node, * FROM rows"  # noqa: S608 - quoted above
        while True:
            size = parquet.write(self._tables.con, select, file, self._out_dir)
            both = size + self._rows.bytes
            if both <= room or not self._tables.rows:
                return
            self._rows.cap(self._rows.bytes * room // both * 49 // 50)

    def _summarize(self, notes: list[str]) -> Summary:
        """The summary with its findings, within its size."""
        rows = self._rows
        notes = [*rows.notes(self._config), *notes, *self._node_info.identity.notes]
        accounting = account(self._recording, rows, self._missed)

        def counted(room: int) -> Summary:
            return summarize(
                self._tables,
                self._recording,
                self._config,
                accounting,
                notes,
                hooks_missing=[one.hook for one in self._node_info.hooks if one.missing],
                room=room,
            )

        summary = counted(SUMMARY_MAX_BYTES)
        fact_tables.load(self._tables.con, summary, self._node_info, self._changes)
        found = fitted_findings.draw(self._tables.con, self._config.thresholds)
        give_back()
        concluded = found.apply(summary)
        if len(concluded.to_bytes()) > SUMMARY_MAX_BYTES:
            concluded = found.apply(counted(SUMMARY_MAX_BYTES - found.bytes))
        return concluded

    def _stems(self, names: Sequence[str]) -> Iterator[str]:
        """Common parts of the names that are free; a later one of a second has a number behind.

        Another capture may seal in the same moment: whoever finds a name taken when he gives it
        packs again under the next one.
        """
        started = self._recording.started.astimezone(UTC)
        first = f"ktrace.{self._config.node}.{started:%Y%m%dT%H%M%SZ}"
        for number in range(1, _MAX_OF_A_SECOND + 1):
            stem = first if number == 1 else f"{first}-{number}"
            if not any(os.path.lexists(self._out_dir / f"{stem}.{name}") for name in names):
                yield stem


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size
