# SPDX-License-Identifier: Apache-2.0
"""The folder for the bundle, known to be writable before anything is attached."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ktrace_agent.errors import SinkFailed


@contextmanager
def prepared(folder: Path, source: str = "--out-dir") -> Iterator[Path]:
    """Make `folder` where it is missing and try to write there, leaving no name behind.

    When the body fails, folders that were made here and are still empty go again.
    Raises SinkFailed with one line that names `source`, the flag or variable it comes from.
    """
    made: list[Path] = []
    try:
        try:
            _make(folder, made)
            with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
                file.write(b"\0")
        except OSError as error:
            raise SinkFailed(
                f"{source}: cannot write into {folder} ({error.strerror});"
                " give a folder that is writable and has room"
            ) from error
        yield folder
    except BaseException:
        for path in reversed(made):
            with suppress(OSError):
                path.rmdir()
        raise


def _make(folder: Path, made: list[Path]) -> None:
    """mkdir -p that notes what it made."""
    for path in (*reversed(folder.parents), folder):
        if path.is_dir():
            continue
        try:
            path.mkdir()
        except FileExistsError:  # a file or a dangling link, or somebody was faster
            if not path.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
        else:
            made.append(path)
