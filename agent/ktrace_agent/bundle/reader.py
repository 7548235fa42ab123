# SPDX-License-Identifier: Apache-2.0
"""A sealed bundle, read back: verified against its manifest, nothing of it trusted before.

The archive is read once, as a stream. Tables go to files without a name, all else to memory;
rows as text are only hashed.
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
"""Of one member: more than the largest max_bytes."""
_MAX_DIGITS = 20
"""Of a number in an extended header: those of 64 bits."""
_BLOCK = tarfile.BLOCKSIZE
_EXTENDED_BYTES = 4 * _BLOCK
"""Of an extended header: a name of 255 bytes and a size are far less."""
_ARCHIVE, _SUMMARY = ".bundle.tgz", ".summary.json"
_DAMAGED: tuple[type[Exception], ...] = (
    EOFError,
    cast("type[Exception]", igzip_lib.error),
    tarfile.HeaderError,
    UnicodeDecodeError,
)


@dataclass(frozen=True, slots=True)
class Opened:
    """A bundle, or as much of it as a summary.json alone is."""

    path: Path
    summary: Summary
    node: NodeInfo | None = None
    tables: tuple[BinaryIO, ...] = ()
    """Parquet, as TABLES names them."""
    sha256: str = ""
    """Of the archive."""


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """The bundle at `path`: an archive, a summary.json, or a folder that holds one of them.

    Raises UsageError where there is no such file and BadBundle where it is not what was sealed.
    """
    with ExitStack() as stack:
        try:
            file = _find(path)
            alone = file.name.endswith(".json")
            found = Opened(file, _summary_alone(file)) if alone else _read(file, stack)
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(f"{path} cannot be read: {reason}; give a bundle.tgz") from error
        yield found


def _find(path: Path) -> Path:
    """The archive in a folder, else its summary; a file is itself."""
    if not path.is_dir():
        return path
    held = sorted(path.iterdir())  # unlike glob() it tells that a folder may not be read
    for ending in (_ARCHIVE, _SUMMARY):
        found = [file for file in held if file.name.endswith(ending)]
        if len(found) > 1:
            raise UsageError(f"{path} holds {len(found)} bundles; name one, such as {found[-1]}")
        if found:
            return found[0]
    raise UsageError(f"{path} holds no bundle; give a bundle.tgz, or the folder where one is")


def _summary_alone(file: Path) -> Summary:
    with file.open("rb") as source:
        text = source.read(SUMMARY_MAX_BYTES + 1)
    if len(text) > SUMMARY_MAX_BYTES:
        raise BadBundle(f"{file} is no summary of ktrace: it is larger than one can be")
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
            raise BadBundle(f"{file} is no bundle of ktrace: it has no {name}")
    for name in TABLES:
        if name not in found.tables:
            raise BadBundle(f"{file} is no bundle of ktrace: it has no {name}")
    manifest = _parse(Manifest, found.texts[MANIFEST], f"{file}: its {MANIFEST}")
    said = {part.name: part.sha256 for part in manifest.files}
    for name in sorted(said.keys() | found.hashes.keys()):
        if said.get(name) != found.hashes.get(name):
            raise BadBundle(_difference(file, name, said.get(name), found.hashes.get(name)))
    return Opened(
        path=file,
        summary=_parse(Summary, found.texts["summary.json"], f"{file}: its summary"),
        node=_parse(NodeInfo, found.texts["node.json"], f"{file}: its node.json"),
        tables=tuple(found.tables[name] for name in TABLES),
        sha256=whole.hexdigest(),
    )


class _Source(io.RawIOBase):
    """The file, hashed while it is read."""

    def __init__(self, raw: BinaryIO, whole: "hashlib._Hash") -> None:
        super().__init__()
        self._raw, self._whole = raw, whole
        self.member = "its first member"

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._raw.read(len(buffer))
        self._whole.update(data)
        buffer[: len(data)] = data
        return len(data)


class _Unpacking:
    """What a gzip archive holds. Unlike gzip it takes no second archive for a part of the first."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._inner = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none behind its checksum, EOFError where the file ends before."""
        found = b""
        while not found and not self._inner.eof:
            packed = self._source.read(COPY_BYTES) if self._inner.needs_input else b""
            if self._inner.needs_input and not packed:
                raise EOFError
            found = self._inner.decompress(packed, size)
        return found

    def is_all(self) -> bool:
        """At its end: whether the file ends there too."""
        return not (self._inner.unused_data or self._source.read(1))


class _Unpacked:
    """The members so far: hashes by name, small members and tables by kind."""

    def __init__(self, file: Path, stack: ExitStack) -> None:
        self._file, self._stack = file, stack
        self.hashes: dict[str, str] = {}
        self.texts: dict[str, bytes] = {}
        self.tables: dict[str, BinaryIO] = {}

    def take(self, name: str, size: int, stream: Any) -> None:
        """One member, read to its end."""
        kind = name if name == MANIFEST else ".".join(name.split(".")[-2:])
        again = kind in self.texts or kind in self.tables or name in self.hashes
        if again or size > _TEXTS.get(kind, _MAX_BYTES):
            raise BadBundle(f"{self._file} is no bundle of ktrace: it has a wrong {kind}")
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
        """Where the content of a member goes: memory, a file without a name, nowhere."""
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
    while padding := stream.read(COPY_BYTES):  # to the checksum at its end
        more = more or any(padding)
    if more or not stream.is_all():
        raise BadBundle(f"{file} was changed after it was sealed: there is more behind its end")
    return found


def _headers(file: Path, stream: Any) -> Iterator[tuple[str, int]]:
    """Name and size of each member, which the caller reads; only what we write is understood."""
    extended = _Extended()
    while any(block := _exactly(stream, _BLOCK)):
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        if info.type == tarfile.XHDTYPE and 0 <= info.size <= _EXTENDED_BYTES:
            extended = _extended(b"".join(_content(stream, info.size)))
            continue
        name = extended.name or info.name
        size = info.size if extended.size is None else extended.size
        if not 0 <= size <= _MAX_BYTES:
            raise BadBundle(f"{file} is no bundle of ktrace: a member of {size} bytes")
        if info.type != tarfile.REGTYPE:
            raise BadBundle(f"{file} is no bundle of ktrace: {name!r} is no plain file")
        yield name, size
        extended = _Extended()


class _Extended(NamedTuple):
    """What an extended header says of the member behind it, where the plain one has no room."""

    name: str = ""
    """Longer than 100 bytes."""
    size: int | None = None
    """8 GiB and more; the plain header then holds 0."""


def _extended(records: bytes) -> _Extended:
    """`path` and `size` of an extended header (POSIX.1-2001 pax); raises tarfile.HeaderError.

    A record is `LENGTH KEY=VALUE` and a newline, LENGTH counts all of it.
    """
    found = _Extended()
    while records:
        digits, _, _ = records.partition(b" ")
        length = _decimal(digits)
        key, equals, value = records[len(digits) + 1 : length - 1].partition(b"=")
        if not equals or records[length - 1 : length] != b"\n":
            raise tarfile.HeaderError("an extended header of another form")
        if key == b"path":
            found = found._replace(name=value.decode())
        elif key == b"size":
            found = found._replace(size=_decimal(value))
        records = records[length:]
    return found


def _decimal(digits: bytes) -> int:
    """A number of a header; no sign, no blanks, and not more digits than a number needs."""
    if not digits.isdigit() or len(digits) > _MAX_DIGITS:
        raise tarfile.HeaderError("an extended header without a number where one belongs")
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
    """One line for what is not readable at all."""
    raw.seek(0)
    if raw.read(2) != b"\x1f\x8b":
        return f"{file} is no bundle of ktrace: it is not a gzip archive"
    if isinstance(error, EOFError):
        return f"{file} is truncated: it ends within {source.member}"
    return f"{file} is damaged within {source.member}: {error}"


def _difference(file: Path, name: str, said: str | None, found: str | None) -> str:
    if said is None:
        return f"{file} was changed after it was sealed: {name} is not in its manifest"
    if found is None:
        return f"{file} was changed after it was sealed: {name} is missing"
    return (
        f"{file} was changed after it was sealed: the sha256 of {name} is {found[:12]}...,"
        f" its manifest says {said[:12]}..."
    )


def _parse(model: type[M], text: bytes, what: str) -> M:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        line = first_error(error).line("the document")
        raise BadBundle(f"{what} is not of this version of ktrace: {line}") from error
