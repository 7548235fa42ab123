# SPDX-License-Identifier: Apache-2.0
"""Reads a sealed bundle back and verifies it against its manifest; trusts nothing before that.

The archive is read once, as a stream. Tables go to unnamed files and small members to memory. The
rows as text are only hashed. Why tarfile does not read it: docs/adr/0016-own-tar-reader.md.
"""

import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, TypeVar, cast

from isal import igzip_lib
from pydantic import ValidationError

from ktrace_agent.bundle.archive import COPY_BYTES, MANIFEST, MANIFEST_MAX_BYTES
from ktrace_agent.errors import BadBundle, UsageError
from ktrace_api.bundle import Manifest
from ktrace_api.capture import GIB
from ktrace_api.model import Model, first_error
from ktrace_api.node import NodeInfo
from ktrace_api.summary import SUMMARY_MAX_BYTES, Summary

M = TypeVar("M", bound=Model)

TABLES: Final = ("events.parquet", "flows.parquet", "sockets.parquet")
_TEXTS: Final = {
    "summary.json": SUMMARY_MAX_BYTES,
    "node.json": 4 << 20,
    MANIFEST: MANIFEST_MAX_BYTES,
}
_MAX_BYTES = 17 * GIB
"""Of one member. The largest max_bytes is smaller."""
_MAX_DIGITS = 20
"""Of a number in an extended header: a number of 64 bits has no more."""
_BLOCK = tarfile.BLOCKSIZE
_EXTENDED_BYTES = 4 * _BLOCK
"""Of an extended header. A name of 255 bytes and a size take far less."""
_ARCHIVE, _SUMMARY = ".bundle.tgz", ".summary.json"
_DAMAGED: tuple[type[Exception], ...] = (
    EOFError,
    cast("type[Exception]", igzip_lib.error),
    tarfile.HeaderError,
    UnicodeDecodeError,
)


@dataclass(frozen=True, slots=True)
class Opened:
    """A bundle, or only its summary if summary.json was opened alone."""

    path: Path
    summary: Summary
    node: NodeInfo | None = None
    tables: tuple[BinaryIO, ...] = ()
    """Parquet files in the order of TABLES."""
    sha256: str = ""
    """Of the archive."""


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """Open the bundle at `path`: an archive, a summary.json, or a folder with one of them.

    Raises UsageError if there is no such file and BadBundle if it is not a sealed bundle.
    """
    with ExitStack() as stack:
        try:
            file = _find(path)
            alone = file.name.endswith(".json")
            found = Opened(file, _summary_alone(file)) if alone else _read(file, stack)
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(f"cannot read {path}: {reason}. Give a bundle.tgz") from error
        yield found


def _find(path: Path) -> Path:
    """Return the archive in a folder, else its summary; return a file unchanged."""
    if not path.is_dir():
        return path
    files = sorted(path.iterdir())  # unlike glob(), it raises if the folder is not readable
    for ending in (_ARCHIVE, _SUMMARY):
        found = [file for file in files if file.name.endswith(ending)]
        if len(found) > 1:
            raise UsageError(f"{path} holds {len(found)} bundles: name one, such as {found[-1]}")
        if found:
            return found[0]
    raise UsageError(f"no bundle in {path}: give a bundle.tgz or a folder that holds one")


def _summary_alone(file: Path) -> Summary:
    with file.open("rb") as source:
        text = source.read(SUMMARY_MAX_BYTES + 1)
    if len(text) > SUMMARY_MAX_BYTES:
        raise BadBundle(f"{file} is not a ktrace summary: larger than {SUMMARY_MAX_BYTES} bytes")
    return _parse(Summary, text, str(file))


def _read(file: Path, stack: ExitStack) -> Opened:
    whole = hashlib.sha256()
    with file.open("rb") as raw:
        source = _Source(raw, whole)
        try:
            found = _unpack(file, source, stack)
        except _DAMAGED as error:
            raise BadBundle(_how(file, raw, source, error)) from error
    for name in _TEXTS:
        if name not in found.texts:
            raise BadBundle(f"{file} is not a ktrace bundle: {name} is missing")
    for name in TABLES:
        if name not in found.tables:
            raise BadBundle(f"{file} is not a ktrace bundle: {name} is missing")
    manifest = _parse(Manifest, found.texts[MANIFEST], f"{file}: {MANIFEST}")
    listed = {part.name: part.sha256 for part in manifest.files}
    for name in sorted(listed.keys() | found.hashes.keys()):
        if listed.get(name) != found.hashes.get(name):
            raise BadBundle(_difference(file, name, listed.get(name), found.hashes.get(name)))
    return Opened(
        path=file,
        summary=_parse(Summary, found.texts["summary.json"], f"{file}: summary.json"),
        node=_parse(NodeInfo, found.texts["node.json"], f"{file}: node.json"),
        tables=tuple(found.tables[name] for name in TABLES),
        sha256=whole.hexdigest(),
    )


class _Source(io.RawIOBase):
    """The file, hashed while it is read."""

    def __init__(self, raw: BinaryIO, whole: "hashlib._Hash") -> None:
        super().__init__()
        self._raw, self._whole = raw, whole
        self.member = "the first member"

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._raw.read(len(buffer))
        self._whole.update(data)
        buffer[: len(data)] = data
        return len(data)


class _Unpacking:
    """Unpacks one gzip member. Unlike gzip(1), it does not append a second one to the first."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._inner = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, b"" after its checksum. Raises EOFError if the file is cut."""
        found = b""
        while not found and not self._inner.eof:
            packed = self._source.read(COPY_BYTES) if self._inner.needs_input else b""
            if self._inner.needs_input and not packed:
                raise EOFError
            found = self._inner.decompress(packed, size)
        return found

    def is_all(self) -> bool:
        """Return, once unpacked, whether the file ends there too."""
        return not (self._inner.unused_data or self._source.read(1))


class _Unpacked:
    """The members unpacked so far: hashes by name, small members and tables by kind."""

    def __init__(self, file: Path, stack: ExitStack) -> None:
        self._file, self._stack = file, stack
        self.hashes: dict[str, str] = {}
        self.texts: dict[str, bytes] = {}
        self.tables: dict[str, BinaryIO] = {}

    def take(self, name: str, size: int, stream: Any) -> None:
        """Read one member to its end."""
        kind = name if name == MANIFEST else ".".join(name.split(".")[-2:])
        again = kind in self.texts or kind in self.tables or name in self.hashes
        if again or size > _TEXTS.get(kind, _MAX_BYTES):
            raise BadBundle(f"{self._file} is not a ktrace bundle: invalid {kind}")
        digest, kept = hashlib.sha256(), self._place(kind)
        for part in _content(stream, size):
            digest.update(part)
            kept.write(part)
        kept.flush()
        if isinstance(kept, io.BytesIO):
            self.texts[kind] = kept.getvalue()
        if kind != MANIFEST:
            self.hashes[name] = digest.hexdigest()

    def _place(self, kind: str) -> BinaryIO:
        """Return the destination of a member: memory, an unnamed file, or /dev/null."""
        if kind in _TEXTS:
            return io.BytesIO()
        if kind not in TABLES:
            return self._stack.enter_context(Path(os.devnull).open("wb"))
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the stack closes it
        self.tables[kind] = self._stack.enter_context(file)
        return self.tables[kind]


def _unpack(file: Path, source: _Source, stack: ExitStack) -> _Unpacked:
    found = _Unpacked(file, stack)
    stream = _Unpacking(source)
    for name, size in _headers(file, stream):
        source.member = name
        found.take(name, size, stream)
    more = False
    while padding := stream.read(COPY_BYTES):  # up to its checksum
        more = more or any(padding)
    if more or not stream.is_all():
        raise BadBundle(f"{file} was changed after it was sealed: data follows its end")
    return found


def _headers(file: Path, stream: Any) -> Iterator[tuple[str, int]]:
    """Yield name and size of each member; the caller reads it. Accepts only what pack() writes."""
    extended = _Extended()
    while any(block := _exactly(stream, _BLOCK)):
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        if info.type == tarfile.XHDTYPE and 0 <= info.size <= _EXTENDED_BYTES:
            extended = _extended(b"".join(_content(stream, info.size)))
            continue
        name = extended.name or info.name
        size = info.size if extended.size is None else extended.size
        if not 0 <= size <= _MAX_BYTES:
            raise BadBundle(f"{file} is not a ktrace bundle: a member of {size} bytes")
        if info.type != tarfile.REGTYPE:
            raise BadBundle(f"{file} is not a ktrace bundle: {name!r} is not a regular file")
        yield name, size
        extended = _Extended()


class _Extended(NamedTuple):
    """Fields of the next member that do not fit into its plain header."""

    name: str = ""
    """If it has more than 100 bytes."""
    size: int | None = None
    """From 8 GiB on; the plain header then holds 0."""


def _extended(records: bytes) -> _Extended:
    """Parse `path` and `size` of an extended header (POSIX.1-2001 pax).

    A record is `LENGTH KEY=VALUE` and a newline; LENGTH counts all of it. Raises
    tarfile.HeaderError.
    """
    found = _Extended()
    while records:
        digits, _, _ = records.partition(b" ")
        length = _decimal(digits)
        key, equals, value = records[len(digits) + 1 : length - 1].partition(b"=")
        if not equals or records[length - 1 : length] != b"\n":
            raise tarfile.HeaderError("malformed extended header")
        if key == b"path":
            found = found._replace(name=value.decode())
        elif key == b"size":
            found = found._replace(size=_decimal(value))
        records = records[length:]
    return found


def _decimal(digits: bytes) -> int:
    """Parse a number of a header: no sign, no blanks, no more digits than 64 bits need."""
    if not digits.isdigit() or len(digits) > _MAX_DIGITS:
        raise tarfile.HeaderError("extended header without a number")
    return int(digits)


def _content(stream: Any, size: int) -> Iterator[bytes]:
    for start in range(0, size, COPY_BYTES):
        yield _exactly(stream, min(COPY_BYTES, size - start))
    _exactly(stream, -size % _BLOCK)


def _exactly(stream: Any, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = stream.read(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def _how(file: Path, raw: BinaryIO, source: _Source, error: Exception) -> str:
    """Describe in one line why nothing could be read."""
    raw.seek(0)
    if raw.read(2) != b"\x1f\x8b":
        return f"{file} is not a ktrace bundle (not a gzip file)"
    if isinstance(error, EOFError):
        return f"{file} is truncated: it ends within {source.member}"
    return f"{file} is damaged within {source.member}: {error}"


def _difference(file: Path, name: str, listed: str | None, found: str | None) -> str:
    if listed is None:
        return f"{file} was changed after it was sealed: {name} is not in its manifest"
    if found is None:
        return f"{file} was changed after it was sealed: {name} is missing"
    return (
        f"{file} was changed after it was sealed: the sha256 of {name} is {found[:12]}...,"
        f" not {listed[:12]}... as in its manifest"
    )


def _parse(model: type[M], text: bytes, what: str) -> M:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        line = first_error(error).line("the document")
        raise BadBundle(f"{what} does not match this version of ktrace: {line}") from error
