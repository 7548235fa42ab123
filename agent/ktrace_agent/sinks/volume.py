# SPDX-License-Identifier: Apache-2.0
"""A folder in a mounted volume as a destination.

The volume belongs to the author of the snapshot, and the agent is root on the node: no content of
the volume may lead out of it. Every folder on the path is opened through the descriptor of its
parent without following links, and all files are written below that descriptor.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from ktrace_agent.errors import SinkFailed
from ktrace_agent.files import (
    DISK_FULL_ERRNOS,
    NameTaken,
    NotWhatWasWritten,
    Written,
    create,
    give_names,
)
from ktrace_agent.sinks.parcel import Parcel
from ktrace_api.assignment import VolumeTarget

_DENIED = (errno.EROFS, errno.EACCES, errno.EPERM)
_LINK = (errno.ELOOP, errno.ENOTDIR)
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_COPY_BYTES = 1 << 20


class Volume:
    """One folder of a claim's volume. Raises SinkFailed with one line that names the claim."""

    def __init__(self, target: VolumeTarget, say: Callable[[str], None]) -> None:
        self._target, self._say = target, say
        self._claim = f"claim {target.output.claim_name}"

    def deliver(self, parcels: Sequence[Parcel]) -> None:
        """Deliver all files or none: written, synced, read back, and only then named."""
        with self._errors(), ExitStack() as stack:
            self._say(f"writing {len(parcels)} files into {self._target.folder} of {self._claim}")
            fd = self._enter()
            stack.callback(os.close, fd)
            folder = Path(f"/proc/self/fd/{fd}")
            written = [_copy(parcel, stack.enter_context(create(folder))) for parcel in parcels]
            give_names(folder, written)

    def _enter(self) -> int:
        """Return a descriptor of the target's folder (created if missing)."""
        fd = os.open(self._target.mount, _OPEN & ~os.O_NOFOLLOW)
        for part in self._target.folder.split("/"):
            parent = fd
            try:
                try:
                    os.mkdir(part, 0o755, dir_fd=parent)
                except FileExistsError:
                    pass
                else:
                    os.fsync(parent)
                fd = os.open(part, _OPEN, dir_fd=parent)
            except OSError as error:
                if error.errno in _LINK:
                    raise SinkFailed(
                        f"{part} in {self._claim} is not a folder; links are not followed"
                    ) from error
                raise
            finally:
                os.close(parent)
        return fd

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except NameTaken as error:
            raise SinkFailed(
                f"{self._target.folder} of {self._claim} already has files of this name;"
                " they were not overwritten"
            ) from error
        except NotWhatWasWritten as error:
            raise SinkFailed(
                f"{self._claim} returns other content than was written; check the storage"
            ) from error
        except OSError as error:
            raise SinkFailed(self._words(error)) from error

    def _words(self, error: OSError) -> str:
        if error.errno in DISK_FULL_ERRNOS:
            return f"{self._claim} is full; free some space or use a larger volume"
        if error.errno in _DENIED:
            return f"{self._claim} is read-only for the agent ({error.strerror}); allow writing"
        return f"cannot write into {self._claim}: {error.strerror}; check the storage"


def _copy(parcel: Parcel, file: BinaryIO) -> Written:
    with parcel.path.open("rb") as source:
        shutil.copyfileobj(source, file, _COPY_BYTES)
    return Written(parcel.name, file, parcel.bytes, parcel.sha256)
