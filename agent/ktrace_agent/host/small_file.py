# SPDX-License-Identifier: Apache-2.0
"""Bounded reads of small files below /proc and /sys."""

import os
from pathlib import Path

MAX_BYTES = 1 << 20
_PART_BYTES = 1 << 16


def read_bytes(path: Path | str, max_bytes: int = MAX_BYTES) -> bytes:
    """Reads the first `max_bytes` of a file without blocking. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        parts: list[bytes] = []
        left = max_bytes
        while left > 0 and (part := os.read(fd, min(left, _PART_BYTES))):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def bytes_or_empty(path: Path | str) -> bytes:
    """Reads a file; returns no bytes if it cannot be read."""
    try:
        return read_bytes(path)
    except OSError:
        return b""


def text_or_empty(path: Path | str) -> str:
    """Reads a file as UTF-8 with invalid bytes replaced; returns "" if it cannot be read."""
    return bytes_or_empty(path).decode("utf-8", "replace")
