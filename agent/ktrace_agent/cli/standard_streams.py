# SPDX-License-Identifier: Apache-2.0
"""Standard output and error as whoever started us left them: closed, full, without a reader.

What goes to standard error tells people how things stand; a capture is worth more than that, so
what becomes of it is nobody's error. Standard output has the result: what does not get there is
told.
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
    """Whoever read standard output is gone, and wants to hear no more of it."""

    exit_status = 141
    """As shells count a death by SIGPIPE, which is how other programs end then."""


@contextmanager
def guarded() -> Iterator[None]:
    """Work with streams that are safe to write to; to be entered before any file is opened.

    Whatever cannot be written is dropped at the end, so that Python's own flush at exit neither
    complains nor changes the exit status.
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
    """Put /dev/null where a standard stream is closed: the next file would be it otherwise.

    The wrong way round, so that writing to it fails as it does on a closed one.
    """
    for fd, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(fd)
        except OSError as error:
            if error.errno == errno.EBADF:
                with suppress(OSError):
                    os.open(os.devnull, flags)  # the lowest that is free, so this one


class _Stream:
    """The part of a text stream that its writers use; None where Python found it closed."""

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
    """Takes everything, and writes as much of it as can be."""

    def write(self, text: str) -> int:
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def _try(self, name: str, *args: Any) -> None:
        with suppress(OSError, ValueError):  # of a stream that was closed here
            if self._stream is not None:
                getattr(self._stream, name)(*args)


class _Result(_Stream):
    """Writes or raises OutputFailed; once that happened nothing more is written."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(stream)
        self._failed = None if stream else _closed()

    def write(self, text: str) -> int:
        self._do("write", text)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:  # without a stream nothing is left to write
            self._do("flush")

    def _do(self, name: str, *args: Any) -> None:
        if self._failed is None:
            try:
                getattr(self._stream, name)(*args)
            except OSError as error:
                self._failed = error
        if self._failed is not None:
            raise _told(self._failed) from self._failed


def _told(error: OSError) -> OutputFailed:
    kind = ReaderLeft if error.errno == errno.EPIPE else OutputFailed
    return kind(f"the result could not be written to standard output ({error.strerror})")


def _closed() -> OSError:
    return OSError(errno.EBADF, os.strerror(errno.EBADF))


def _settle(stream: TextIO | None) -> None:
    """Write what is left in the buffer, or have it go nowhere."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):  # a stream of a test may have no descriptor
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
            stream.flush()
