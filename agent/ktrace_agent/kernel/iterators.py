# SPDX-License-Identifier: Apache-2.0
"""BPF iterators: run once, read to the end."""

import os
from io import RawIOBase

from ktrace_agent.kernel.bpf_object import Link
from ktrace_agent.kernel.libbpf import checked, library

ITERATOR_READ = 1 << 14
"""Bytes requested from an iterator at a time, half of the kernel's buffer of eight pages.

bpf_seq_read runs the program for the next object while it has fewer bytes than requested. An
object that no longer fits the buffer is dropped, and the program runs for it again later: a
program that counts what it writes would count that object twice.
"""


def read_iterator(link: Link) -> bytes:
    """Run an attached iterator once in the caller's network namespace and return its output."""
    fd = checked("bpf_iter_create", library().bpf_iter_create(link.fd))
    with os.fdopen(fd, "rb", buffering=0) as stream:
        return read_all(stream)


def read_all(stream: RawIOBase) -> bytes:
    """Read the output of an iterator up to its end, which is b"".

    A read of None means EAGAIN: the iterator visited a million objects and wrote nothing
    (bpf_seq_read, e679654a704e, v5.9). The next read continues there.
    """
    parts = []
    while (part := stream.read(ITERATOR_READ)) != b"":
        parts.append(part or b"")
    return b"".join(parts)
