# SPDX-License-Identifier: Apache-2.0
"""Files that appear in a folder whole and verified, or not at all.

A file has no name while it is written (O_TMPFILE), so a killed process leaves nothing. It gets its
name by linkat(2) once all of its bytes are on disk.
"""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from ktrace_agent.errors import SinkFailed

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The file system, a quota or RLIMIT_FSIZE allows no more bytes."""
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_HASH_BYTES = 1 << 20


class DiskFull(SinkFailed):
    """The disk is full. Less may fit, so the caller may try again with less."""

    @classmethod
    def in_folder(cls, folder: Path) -> Self:
        """Build the error for a folder of --out-dir."""
        return cls(f"no space left in {folder}: free some space or choose another --out-dir")


class NameTaken(SinkFailed):
    """A file of that name exists; it was not changed."""


class NotWhatWasWritten(SinkFailed):
    """The content read back differs from the content written."""


@dataclass(frozen=True, slots=True)
class Written:
    """A complete file that has no name yet."""

    name: str
    file: BinaryIO
    bytes: int
    sha256: str


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError into DiskFull or SinkFailed, which names the folder."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            raise DiskFull.in_folder(folder) from error
        raise SinkFailed(
            f"cannot write to {folder}: {error.strerror}. Choose another --out-dir"
        ) from error


def create(folder: Path) -> BinaryIO:
    """Create an unnamed file to read and write; it disappears when it is closed."""
    flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
    try:
        return os.fdopen(os.open(folder, flags, 0o644), "w+b", buffering=0)
    except OSError as error:
        if error.errno not in _NO_TMPFILE or not folder.is_dir():
            raise
    # NFS and some FUSE file systems: created, then unlinked.
    return tempfile.TemporaryFile(dir=folder, buffering=0)


def write_all(file: BinaryIO, data: memoryview) -> None:
    """Write all bytes: write() of an unbuffered file may take only some of them."""
    while data:
        data = data[file.write(data) :]


def publish(folder: Path, files: Sequence[Written]) -> list[Path]:
    """Give the files their names in the given order, then read them back from disk.

    Raises NameTaken, NotWhatWasWritten, DiskFull or SinkFailed; then none of the names is left.
    """
    with disk_errors(folder):
        return give_names(folder, files)


def give_names(folder: Path, files: Sequence[Written]) -> list[Path]:
    """Like publish(), but OSErrors are left to the caller."""
    paths: list[Path] = []
    try:
        for written in files:
            os.fsync(written.file.fileno())
        for written in files:
            _name(folder, written)
            paths.append(folder / written.name)
        _sync(folder)
        for path, written in zip(paths, files, strict=True):
            _verify(path, written)
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise
    return paths


def _name(folder: Path, written: Written) -> None:
    """Call linkat(2) with AT_SYMLINK_FOLLOW, which Python passes if a directory is given."""
    fd, directory = written.file.fileno(), os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            os.link(f"/proc/self/fd/{fd}", written.name, dst_dir_fd=directory, follow_symlinks=True)
        except FileNotFoundError:  # a file that was unlinked once cannot be linked again
            _copy(fd, folder / written.name)
    except FileExistsError as error:
        raise NameTaken(f"{folder / written.name} already exists; nothing was written") from error
    finally:
        os.close(directory)


def _copy(fd: int, target: Path) -> None:
    copy, name = tempfile.mkstemp(prefix=".ktrace-", dir=target.parent)
    try:
        with os.fdopen(os.dup(fd), "rb") as source, os.fdopen(copy, "wb") as sink:
            source.seek(0)
            shutil.copyfileobj(source, sink, _HASH_BYTES)
            sink.flush()
            os.fchmod(copy, 0o644)
            os.fsync(copy)
        _claim(Path(name), target)
    finally:
        Path(name).unlink(missing_ok=True)


def _claim(path: Path, target: Path) -> None:
    """Give a file its name if it is free; SMB and some FUSE file systems have no hard links."""
    try:
        os.link(path, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC))
        path.replace(target)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _verify(path: Path, written: Written) -> None:
    with path.open("rb", buffering=0) as file:
        # Read from the disk, not from the page cache.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != written.sha256:
        raise NotWhatWasWritten(
            f"{path} differs from what was written (sha256 {found}): check the disk"
        )
