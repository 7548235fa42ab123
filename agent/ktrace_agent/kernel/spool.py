# SPDX-License-Identifier: Apache-2.0
"""The spool: raw records on disk, drained from the ring buffer by libktrace_ring.so."""

import ctypes
import os
import threading
from ctypes import c_int, c_uint, c_uint64, c_void_p
from pathlib import Path

from ktrace_agent.errors import AgentError
from ktrace_agent.files import create, disk_errors
from ktrace_agent.kernel.built_files import object_path
from ktrace_agent.kernel.recording import ROW_TYPES
from ktrace_api.names import RowType


class Spool:
    """Drains the ring buffer into an unnamed file, in a thread that does not hold the GIL."""

    def __init__(self, ring_fd: int, folder: Path) -> None:
        lib = ctypes.CDLL(str(object_path("libktrace_ring.so")), use_errno=True)
        lib.kt_ring_open.restype = c_void_p
        lib.kt_ring_open.argtypes = (c_int, c_int)
        lib.kt_ring_records.restype = c_uint64
        lib.kt_ring_lost.restype = c_uint64
        lib.kt_ring_lost.argtypes = (c_void_p, c_uint)
        for name in ("run", "drain", "stop", "records", "error", "close"):
            getattr(lib, f"kt_ring_{name}").argtypes = (c_void_p,)
        self._lib = lib
        with disk_errors(folder):
            self._file = create(folder)
        self.fd = self._file.fileno()
        self._ring = lib.kt_ring_open(ring_fd, self.fd)
        if not self._ring:
            code = ctypes.get_errno()
            self._file.close()
            raise AgentError(f"the ring buffer cannot be mapped: {os.strerror(code)}")
        self._thread = threading.Thread(target=lib.kt_ring_run, args=(self._ring,), name="spool")

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """Drain the rest of the ring. The programs must be detached already."""
        if self._thread.is_alive():
            self._lib.kt_ring_stop(self._ring)
            self._thread.join()
        self.drain()

    def drain(self) -> None:
        """Drain all records that are in the ring now."""
        if code := self._lib.kt_ring_drain(self._ring):
            raise AgentError(f"the ring buffer cannot be read: {os.strerror(-code)}")

    @property
    def records(self) -> int:
        return int(self._lib.kt_ring_records(self._ring))

    @property
    def lost(self) -> dict[RowType, int]:
        """Records that left the ring but did not fit on the disk."""
        counts = {
            row: int(self._lib.kt_ring_lost(self._ring, i)) for i, row in enumerate(ROW_TYPES)
        }
        return {row: count for row, count in counts.items() if count}

    def close(self) -> None:
        """Stop the drain and close the file. A duplicate of its descriptor keeps the file alive."""
        ring, self._ring = self._ring, None
        if ring:
            if self._thread.is_alive():
                self._lib.kt_ring_stop(ring)
                self._thread.join()
            self._lib.kt_ring_close(ring)
            self._file.close()
