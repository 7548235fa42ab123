# SPDX-License-Identifier: Apache-2.0
"""From a recording to a sealed bundle: three files, and one archive of them with a manifest.

    ktrace.<node>.<ts>.events.jsonl   .summary.json   .node.json   .bundle.tgz

The archive gets its name last: where it is, everything is.
"""

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC
from pathlib import Path
from typing import Any, BinaryIO

from zlib_ng import gzip_ng

from ktrace_agent.analyze.summary import summarize
from ktrace_agent.recording import Recording
from ktrace_agent.sinks.directory import DiskFull, Written, create, disk_errors, publish
from ktrace_agent.tables import Tables
from ktrace_api import __version__
from ktrace_api.bundle import (
    SUMMARY_MAX_BYTES,
    Accounting,
    Manifest,
    ManifestFile,
    NodeInfo,
    Summary,
)
from ktrace_api.capture import CaptureConfig
from ktrace_api.names import RowType

_BATCH = 8_192
"""Rows that are rendered at once: about 5 MB of text."""
_MANIFEST_MAX_BYTES = 4096
_LEVEL = 2
"""Of zlib-ng, measured on 126 MB of rows: level 1 0.24 s to 22 %, 2 0.36 s to 16 %,
4 0.63 s to 15 %, 6 1.0 s to 14 %."""
_COPY_BYTES = 1 << 20

Counts = Mapping[RowType, int]


@dataclass(frozen=True, slots=True)
class Sealed:
    """A bundle on disk: paths of events, summary, node and archive, in this order.

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


@dataclass(slots=True)
class _Rows:
    """events.jsonl so far, and the rows that were cut from its end, by cause."""

    file: BinaryIO
    bytes: int = 0
    loaded: Counts = field(default_factory=dict)
    capped: Counts = field(default_factory=dict)
    lost: Counts = field(default_factory=dict)


def _quiet(_: str) -> None:
    pass


def seal(
    recording: Recording,
    config: CaptureConfig,
    node_info: NodeInfo,
    out_dir: Path,
    progress: Callable[[str], None] = _quiet,
) -> Sealed:
    """Write the bundle of a recording into `out_dir` (made where it is missing).

    Empties the spool once it is loaded: its room on the disk is the bundle's. Rows beyond
    config.max_bytes are cut and counted as capped, rows that the disk has no room for as
    lost_ring. Raises SinkFailed where not even a bundle without rows can be written; then
    nothing is left in `out_dir`.
    """
    with disk_errors(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
    node_json = node_info.to_bytes()
    budget = config.max_bytes - len(node_json) - SUMMARY_MAX_BYTES - _MANIFEST_MAX_BYTES
    with ExitStack() as stack:
        progress("decoding the records")
        tables = stack.enter_context(closing(Tables(recording, config.node)))
        os.ftruncate(recording.spool_fd, 0)
        with disk_errors(out_dir):
            rows = _Rows(stack.enter_context(create(out_dir)), loaded=tables.types())
        progress(f"writing {tables.rows} rows")
        _write_rows(tables, rows, budget, out_dir)
        while True:
            progress(f"compressing {tables.rows} rows")
            try:
                return _compose(tables, rows, recording, config, node_json, out_dir)
            except DiskFull:
                if not tables.rows:
                    raise
                _shorten(tables, rows, rows.bytes * 3 // 4)


def account(recording: Recording, rows: _Rows) -> dict[RowType, Accounting]:
    """The kernel's counters of each hook after what sealing cut; seen is always the sum.

    `written` is what is in the file. Rows that the kernel says it wrote and that are not
    in the spool are lost too.
    """
    accounts = {}
    for row_type, hook in recording.counters.items():
        loaded = rows.loaded.get(row_type, 0)
        capped, lost = rows.capped.get(row_type, 0), rows.lost.get(row_type, 0)
        parts = {
            "written": loaded - capped - lost,
            "filtered": hook.filtered,
            "sampled": hook.sampled,
            "capped": hook.capped + capped,
            "lost_ring": hook.lost_ring + lost + max(hook.written - loaded, 0),
            "lost_map": hook.lost_map,
        }
        accounts[row_type] = Accounting(seen=sum(parts.values()), bytes=hook.bytes, **parts)
    return accounts


def _cut(tables: Tables, kept: int) -> Counts:
    """Forget all but the first `kept` rows; how many of each type that were."""
    before = tables.types()
    tables.cut(kept)
    after = tables.types()
    return {name: count - after[name] for name, count in before.items()}


def _write_rows(tables: Tables, rows: _Rows, budget: int, out_dir: Path) -> None:
    """All rows in the order of time, as far as `budget` bytes and the disk have room."""
    for start in range(0, tables.rows, _BATCH):
        lines = tables.lines(start, start + _BATCH)
        text = ("\n".join(lines) + "\n").encode()
        fits = len(text)
        if rows.bytes + fits > budget:
            fits = text.rfind(b"\n", 0, max(budget - rows.bytes, 0)) + 1
        try:
            with disk_errors(out_dir):
                _write_all(rows.file, memoryview(text)[:fits])
        except DiskFull:
            rows.bytes = os.fstat(rows.file.fileno()).st_size
            _shorten(tables, rows, rows.bytes * 3 // 4)
            return
        rows.bytes += fits
        if fits < len(text):
            rows.capped = _cut(tables, start + text.count(b"\n", 0, fits))
            return


def _write_all(file: BinaryIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


def _shorten(tables: Tables, rows: _Rows, limit: int) -> None:
    """Cut the file after the last row that ends within `limit` bytes: the disk is full."""
    fd, kept, end = rows.file.fileno(), 0, 0
    for offset in range(0, limit, _COPY_BYTES):
        part = os.pread(fd, min(_COPY_BYTES, limit - offset), offset)
        kept += part.count(b"\n")
        if b"\n" in part:
            end = offset + part.rindex(b"\n") + 1
    os.ftruncate(fd, end)
    rows.bytes = end
    cut = _cut(tables, kept)
    rows.lost = {name: count + rows.lost.get(name, 0) for name, count in cut.items()}


def _notes(rows: _Rows, config: CaptureConfig) -> list[str]:
    """What sealing cut, in plain sentences."""
    notes = []
    if capped := sum(rows.capped.values()):
        notes.append(
            f"The last {capped} rows are not in the bundle: max_bytes ({config.max_bytes}) was"
            " reached."
        )
    if lost := sum(rows.lost.values()):
        notes.append(f"The last {lost} rows are not in the bundle: the disk is full.")
    return notes


def _stem(config: CaptureConfig, recording: Recording, out_dir: Path) -> str:
    """Common part of the names; a second capture in one second gets a number behind."""
    stem = f"ktrace.{config.node}.{recording.started.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    taken, number = stem, 1
    while (out_dir / f"{taken}.bundle.tgz").exists():
        number += 1
        taken = f"{stem}-{number}"
    return taken


def _compose(
    tables: Tables,
    rows: _Rows,
    recording: Recording,
    config: CaptureConfig,
    node_json: bytes,
    out_dir: Path,
) -> Sealed:
    """Summary, archive and names for the rows as they are now; DiskFull leaves nothing."""
    summary = summarize(tables, recording, config, account(recording, rows), _notes(rows, config))
    stem = _stem(config, recording, out_dir)
    with ExitStack() as stack, disk_errors(out_dir):

        def new(text: bytes = b"") -> BinaryIO:
            file = stack.enter_context(create(out_dir))
            _write_all(file, memoryview(text))
            return file

        parts = {
            f"{stem}.events.jsonl": rows.file,
            f"{stem}.summary.json": new(summary.to_bytes()),
            f"{stem}.node.json": new(node_json),
        }
        archive = new()
        manifest, members, sha256 = _archive(archive, parts, summary)
        size = os.fstat(archive.fileno()).st_size
        members.append(Written(f"{stem}.bundle.tgz", archive, size, sha256))
        paths = publish(out_dir, members)
    return Sealed(tuple(paths), manifest, summary, size, sha256)


class _Hashing(io.RawIOBase):
    """Hashes what passes through, to a file or from it."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file, self._hash = file, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._hash.update(data)
        _write_all(self._file, memoryview(data))
        return len(data)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._hash.update(data)
        return data

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def _archive(
    archive: BinaryIO, parts: Mapping[str, BinaryIO], summary: Summary
) -> tuple[Manifest, list[Written], str]:
    """Pack the parts and, last, the manifest; the archive's own sha256 is returned too."""
    sink, members = _Hashing(archive), []
    when = int(summary.started.timestamp())
    with (
        gzip_ng.GzipNGFile("", "wb", _LEVEL, sink, mtime=when) as packed,  # type: ignore[no-untyped-call]
        tarfile.TarFile(fileobj=packed, mode="w", copybufsize=_COPY_BYTES) as tar,
    ):
        for name, file in parts.items():
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            source = _Hashing(file)
            tar.addfile(_member(name, size, when), source)
            members.append(Written(name, file, size, source.sha256))
        manifest = Manifest(
            agent_version=__version__,
            node=summary.node,
            started=summary.started,
            ended=summary.ended,
            rows=summary.rows,
            complete=summary.complete,
            files=tuple(
                ManifestFile(name=part.name, bytes=part.bytes, sha256=part.sha256)
                for part in members
            ),
        )
        text = manifest.to_bytes()
        tar.addfile(_member("manifest.json", len(text), when), io.BytesIO(text))
    return manifest, members, sink.sha256


def _member(name: str, size: int, when: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, when, 0o644
    return info
