# SPDX-License-Identifier: Apache-2.0
"""Packing of bundle.tgz: every part hashed while it passes, the manifest last."""

import hashlib
import io
import os
import tarfile
from collections.abc import Mapping
from typing import Any, BinaryIO

from isal import igzip

from ktrace_agent.files import Written, write_all
from ktrace_api import __version__
from ktrace_api.bundle import Manifest, ManifestFile
from ktrace_api.summary import Summary

MANIFEST = "manifest.json"
MANIFEST_MAX_BYTES = 4096
_LEVEL = 2
"""Of ISA-L, measured on 166 MB of rows: level 0 0.18 s to 17 %, 1 and 2 0.18 s to 13 %. zlib-ng
took 0.44 s to the same 13 %."""
COPY_BYTES = 1 << 20


class Hashing(io.RawIOBase):
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
        write_all(self._file, memoryview(data))
        return len(data)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._hash.update(data)
        return data

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def pack(
    archive: BinaryIO, parts: Mapping[str, BinaryIO], summary: Summary
) -> tuple[Manifest, list[Written], str]:
    """Pack the parts and, last, the manifest; the archive's own sha256 is returned too."""
    sink, members = Hashing(archive), []
    when = int(summary.started.timestamp())
    with (
        igzip.IGzipFile("", "wb", _LEVEL, sink, mtime=when) as packed,  # type: ignore[no-untyped-call]
        tarfile.TarFile(fileobj=packed, mode="w", copybufsize=COPY_BYTES) as tar,
    ):
        for name, file in parts.items():
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            source = Hashing(file)
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
        tar.addfile(_member(MANIFEST, len(text), when), io.BytesIO(text))
    return manifest, members, sink.sha256


def _member(name: str, size: int, when: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, when, 0o644
    return info
