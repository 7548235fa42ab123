# SPDX-License-Identifier: Apache-2.0

import os
from pathlib import Path

import pytest

from ktrace_agent.host import small_file
from ktrace_agent.host.small_file import bytes_or_empty, read_bytes, text_or_empty


@pytest.mark.parametrize("size", [0, 1, 1 << 16, (1 << 16) + 1, 300_000])
def test_a_file_is_read_up_to_the_limit(tmp_path: Path, size: int):
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    assert read_bytes(tmp_path / "file") == content
    assert read_bytes(tmp_path / "file", max_bytes=100_000) == content[:100_000]


def test_an_unreadable_file_is_empty(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none")
    assert bytes_or_empty(tmp_path / "none") == bytes_or_empty(tmp_path) == b""
    assert text_or_empty(tmp_path / "none") == ""


def test_invalid_text_is_replaced(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"a\xff\n")
    assert text_or_empty(tmp_path / "file") == "a\N{REPLACEMENT CHARACTER}\n"


def test_a_pipe_without_a_writer_does_not_block(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    assert bytes_or_empty(tmp_path / "pipe") == b""


def test_no_descriptor_is_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = len(os.listdir("/proc/self/fd"))
    bytes_or_empty(tmp_path)  # opening a folder succeeds, reading it fails
    monkeypatch.setattr(small_file, "MAX_BYTES", 1)
    bytes_or_empty("/proc/self/status")
    assert len(os.listdir("/proc/self/fd")) == before
