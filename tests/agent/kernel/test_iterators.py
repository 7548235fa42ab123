# SPDX-License-Identifier: Apache-2.0
"""What the kernel's answers to the reads of an iterator mean."""

from io import RawIOBase
from typing import Any, cast

from ktrace_agent.kernel.iterators import ITERATOR_READ, read_all

KERNEL_BUFFER = 8 * 4096
"""Of an iterator: eight pages (bpf_seq_read), of the smallest size that there is."""
LARGEST_RECORD = 152
"""struct kt_event."""


class _Iterator:
    """The reads of an iterator, one after the other."""

    def __init__(self, *answers: bytes | None) -> None:
        self._answers = list(answers)
        self.sizes: list[int] = []

    def read(self, size: int) -> bytes | None:
        self.sizes.append(size)
        return self._answers.pop(0)


def test_try_again_is_not_the_end():
    """EAGAIN: a million objects went by and nothing was written. Python gives None for it."""
    stream = _Iterator(None, b"one", None, None, b"two", b"")
    assert read_all(cast(RawIOBase, cast(Any, stream))) == b"onetwo"


def test_a_read_stops_before_the_kernels_buffer_is_full():
    """The kernel looks at what was asked for before it runs the program for an object."""
    stream = _Iterator(b"")
    assert read_all(cast(RawIOBase, cast(Any, stream))) == b""
    assert stream.sizes == [ITERATOR_READ]
    assert ITERATOR_READ + LARGEST_RECORD <= KERNEL_BUFFER
