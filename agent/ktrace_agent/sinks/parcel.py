# SPDX-License-Identifier: Apache-2.0
"""What a sink is given: files whose content is known, and the time that it may take."""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Parcel:
    """A file of a bundle on its way; its name there is its name here."""

    path: Path
    bytes: int
    sha256: str
    """64 hexadecimal digits."""

    @property
    def name(self) -> str:
        return self.path.name

    def same_as(self, size: int, sha256: str) -> bool:
        """Whether content of this size and hash is this file's."""
        return (self.bytes, self.sha256) == (size, sha256)


def composite_sha256(path: Path, part_bytes: int) -> tuple[bytes, int]:
    """Hash over the hashes of parts of this size, and how many parts there are.

    What S3 calls the composite checksum of an object that was sent in parts.
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
    """Time for a delivery with all its tries; it begins when it is made."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds; 0 when it is used up."""
        return max(0.0, self._end - time.monotonic())
