# SPDX-License-Identifier: Apache-2.0
"""The input of a sink: files with known content, and a time limit."""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Parcel:
    """A file of a bundle to deliver; it keeps its name at the destination."""

    path: Path
    bytes: int
    sha256: str
    """64 hexadecimal digits."""

    @property
    def name(self) -> str:
        return self.path.name

    def same_as(self, size: int, sha256: str) -> bool:
        """Return whether `size` and `sha256` are those of this file."""
        return (self.bytes, self.sha256) == (size, sha256)


def composite_sha256(path: Path, part_bytes: int) -> tuple[bytes, int]:
    """Return the SHA-256 over the SHA-256 of all parts of this size, and the number of parts.

    This is S3's composite checksum of an object that was uploaded in parts.
    """
    hashes = []
    with path.open("rb") as file:
        while True:
            part, left = hashlib.sha256(), part_bytes
            while left and (data := file.read(min(left, 1 << 20))):
                part.update(data)
                left -= len(data)
            if left == part_bytes:
                break
            hashes.append(part.digest())
    return hashlib.sha256(b"".join(hashes)).digest(), len(hashes)


class Budget:
    """Time limit of a delivery with all its attempts; it starts with the object."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Remaining seconds; 0 if the limit is reached."""
        return max(0.0, self._end - time.monotonic())
