# SPDX-License-Identifier: Apache-2.0
"""The folder for the bundle, created and tested before any eBPF program is attached."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ktrace_agent.cli.options import OUT_DIR
from ktrace_agent.errors import SinkFailed


@contextmanager
def prepared(folder: Path, source: str = "--out-dir") -> Iterator[Path]:
    """Create `folder` if missing, and check that it is writable.

    If the body fails, folders created here are removed again if they are still empty. Raises
    SinkFailed with `source`, the flag or variable that names the folder.
    """
    created: list[Path] = []
    try:
        try:
            _create(folder, created)
            with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
                file.write(b"\0")
        except OSError as error:
            raise SinkFailed(
                f"{source}: cannot write to {folder} ({error.strerror}): use {OUT_DIR.accepts}"
            ) from error
        yield folder
    except BaseException:
        for path in reversed(created):
            with suppress(OSError):
                path.rmdir()
        raise


def _create(folder: Path, created: list[Path]) -> None:
    """Create a folder and its parents; adds those that did not exist to `created`."""
    for path in (*reversed(folder.parents), folder):
        if path.is_dir():
            continue
        try:
            path.mkdir()
        except FileExistsError:  # a file, a dangling link, or a concurrent mkdir
            if not path.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
        else:
            created.append(path)
