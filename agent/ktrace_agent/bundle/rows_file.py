# SPDX-License-Identifier: Apache-2.0
"""Writes events.jsonl, cuts it where max_bytes or the disk ends it, and counts what was cut."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ktrace_agent.files import DiskFull, disk_errors, write_all
from ktrace_agent.kernel.recording import Recording
from ktrace_agent.tables.load import Tables
from ktrace_api.capture import CaptureConfig
from ktrace_api.names import RowType
from ktrace_api.summary import Accounting

_BATCH = 2_048
"""Rows rendered at a time: about 1.5 MB of text."""
_READ_BYTES = 1 << 20

Counts = Mapping[RowType, int]


@dataclass(slots=True)
class RowFile:
    """The rows of `tables` as lines of `file`, and the rows cut from its end, counted by cause."""

    tables: Tables
    file: BinaryIO
    bytes: int = 0
    loaded: Counts = field(default_factory=dict)
    capped: Counts = field(default_factory=dict)
    """Cut because of max_bytes."""
    lost: Counts = field(default_factory=dict)
    """Cut because the disk was full."""

    @property
    def whole(self) -> bool:
        """Whether no row was cut."""
        return sum(self.loaded.values()) == self.tables.rows

    def write(self, limit: int, folder: Path) -> None:
        """Write the rows in the order of time, up to `limit` bytes or until the disk is full."""
        self.loaded = self.tables.types()
        written = 0
        for lines in self.tables.lines(_BATCH):
            text = ("\n".join(lines) + "\n").encode()
            fits = len(text)
            if self.bytes + fits > limit:
                fits = text.rfind(b"\n", 0, max(limit - self.bytes, 0)) + 1
            try:
                with disk_errors(folder):
                    write_all(self.file, memoryview(text)[:fits])
            except DiskFull:
                self.bytes = os.fstat(self.file.fileno()).st_size
                break
            self.bytes += fits
            if fits < len(text):
                self.capped = self._keep(written + text.count(b"\n", 0, fits))
                return
            written += len(lines)
        else:
            return
        self.lose(self.bytes * 3 // 4)

    def lose(self, limit: int) -> None:
        """Cut the file after the last row that ends within `limit` bytes; the disk was full."""
        self.lost = _sum(self.lost, self._shorten(limit))

    def cap(self, limit: int) -> None:
        """Like lose(), because of max_bytes."""
        self.capped = _sum(self.capped, self._shorten(limit))

    def notes(self, config: CaptureConfig) -> list[str]:
        """Return sentences about what was cut."""
        notes = []
        if capped := sum(self.capped.values()):
            notes.append(
                f"The last {capped} rows are not in the bundle: max_bytes ({config.max_bytes}) was"
                " reached."
            )
        if lost := sum(self.lost.values()):
            notes.append(f"The last {lost} rows are not in the bundle: the disk was full.")
        return notes

    def _shorten(self, limit: int) -> Counts:
        fd, kept, end = self.file.fileno(), 0, 0
        for offset in range(0, limit, _READ_BYTES):
            part = os.pread(fd, min(_READ_BYTES, limit - offset), offset)
            kept += part.count(b"\n")
            if b"\n" in part:
                end = offset + part.rindex(b"\n") + 1
        os.ftruncate(fd, end)
        self.bytes = end
        return self._keep(kept)

    def _keep(self, rows: int) -> Counts:
        """Keep only the first rows; returns the number of rows cut, by type."""
        before = self.tables.types()
        self.tables.cut(rows)
        after = self.tables.types()
        return {name: count - after[name] for name, count in before.items()}


def _sum(first: Counts, second: Counts) -> Counts:
    return {name: count + first.get(name, 0) for name, count in second.items()}


def account(
    recording: Recording, rows: RowFile, missed: Counts
) -> dict[RowType, Accounting | None]:
    """Correct the kernel's counters of each hook by what sealing cut; `seen` is always the sum.

    The accounting of a type that no program records is None. `written` counts the rows in the file.
    A row that the kernel wrote but that is not in the spool is lost too. `missed` is the result of
    missed_events.count().
    """
    accounts: dict[RowType, Accounting | None] = {}
    for row_type, hook in recording.counters.items():
        if row_type not in recording.observed.rows:
            accounts[row_type] = None
            continue
        loaded = rows.loaded.get(row_type, 0)
        capped, lost = rows.capped.get(row_type, 0), rows.lost.get(row_type, 0)
        parts = {
            "written": loaded - capped - lost,
            "filtered": hook.filtered,
            "sampled": hook.sampled,
            "capped": hook.capped + capped,
            "lost_ring": hook.lost_ring + lost + max(hook.written - loaded, 0),
            "lost_map": hook.lost_map,
            "skipped": hook.skipped,
        }
        accounts[row_type] = Accounting(
            seen=sum(parts.values()), bytes=hook.bytes, unseen=missed.get(row_type, 0), **parts
        )
    return accounts
