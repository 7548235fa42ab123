# SPDX-License-Identifier: Apache-2.0
"""Guards standard input, output and error, which may be closed, full, or without a reader.

Standard error carries progress messages. A failed write of a progress message must never end a
capture, so it is ignored. Standard output carries the result, so a failed write is an error.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from ktrace_agent.errors import KtraceError


class OutputFailed(KtraceError):
    """The result could not be written to standard output."""


class ReaderLeft(OutputFailed):
    """The reader of standard output has closed it."""

    exit_status = 141
    """As a shell reports a death by SIGPIPE, which ends other programs in this case."""


@contextmanager
def guarded() -> Iterator[None]:
    """Replace the standard streams by safe ones. Enter it before any file is opened.

    Output that cannot be written is dropped at the end. Otherwise Python's flush at exit would
    print an error and change the exit status.
    """
    _fill_gaps()
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = cast("TextIO", _Result(out)), cast("TextIO", _Messages(err))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err
        _settle(out)
        _settle(err)


def _fill_gaps() -> None:
    """Open /dev/null for every closed standard stream; the next open file would take its place.

    Opened with the opposite access mode, so that writes fail as they would on a closed stream.
    """
    for fd, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(fd)
        except OSError as error:
            if error.errno == errno.EBADF:
                with suppress(OSError):
                    os.open(os.devnull, flags)  # takes the lowest free descriptor


class _Stream:
    """The methods of a text stream that writers use; the stream is None if it was closed."""

    encoding = "utf-8"
    errors = "strict"

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or self.encoding
        self.errors = getattr(stream, "errors", None) or self.errors

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise _closed()
        return self._stream.fileno()


class _Messages(_Stream):
    """Standard error: errors of writing are ignored."""

    def write(self, text: str) -> int:
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def _try(self, name: str, *args: Any) -> None:
        with suppress(OSError, ValueError):  # the stream was closed
            if self._stream is not None:
                getattr(self._stream, name)(*args)


class _Result(_Stream):
    """Standard output: raises OutputFailed if a write fails; later writes fail too."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(stream)
        self._failed = None if stream else _closed()

    def write(self, text: str) -> int:
        self._do("write", text)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:  # without a stream there is no buffer
            self._do("flush")

    def _do(self, name: str, *args: Any) -> None:
        if self._failed is None:
            try:
                getattr(self._stream, name)(*args)
            except OSError as error:
                self._failed = error
        if self._failed is not None:
            raise _output_failed(self._failed) from self._failed


def _output_failed(error: OSError) -> OutputFailed:
    kind = ReaderLeft if error.errno == errno.EPIPE else OutputFailed
    return kind(f"the result could not be written to standard output ({error.strerror})")


def _closed() -> OSError:
    return OSError(errno.EBADF, os.strerror(errno.EBADF))


def _settle(stream: TextIO | None) -> None:
    """Write the rest of the buffer, or drop it."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):  # the stream of a test may have no descriptor
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
            stream.flush()
