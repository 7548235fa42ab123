# SPDX-License-Identifier: Apache-2.0
import errno
import hashlib
import os
import tempfile
from pathlib import Path
from typing import BinaryIO

import pytest

from ktrace_agent import files
from ktrace_agent.errors import SinkFailed
from ktrace_agent.files import DiskFull, Written, create, disk_errors, publish


def written(name: str, file: BinaryIO, text: bytes = b"text") -> Written:
    file.write(text)
    return Written(name, file, len(text), hashlib.sha256(text).hexdigest())


def test_files_have_no_name_until_they_are_published(tmp_path: Path):
    with create(tmp_path) as first, create(tmp_path) as second:
        files = [written("a", first), written("b", second)]
        assert not any(tmp_path.iterdir())
        assert publish(tmp_path, files) == [tmp_path / "a", tmp_path / "b"]
    assert (tmp_path / "a").read_bytes() == b"text"
    assert (tmp_path / "a").stat().st_nlink == 1


def test_a_taken_name_takes_back_the_others_and_is_left_alone(tmp_path: Path):
    (tmp_path / "b").write_text("mine")
    with (
        create(tmp_path) as first,
        create(tmp_path) as second,
        pytest.raises(SinkFailed, match="b already exists"),
    ):
        publish(tmp_path, [written("a", first), written("b", second)])
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"b": "mine"}


def test_what_reads_back_differently_is_not_delivered(tmp_path: Path):
    with create(tmp_path) as file:
        wrong = Written("a", file, 4, "0" * 64)
        with pytest.raises(SinkFailed, match="differs from what was written"):
            publish(tmp_path, [wrong])
    assert not any(tmp_path.iterdir())


def test_filesystems_without_unnamed_files_get_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "open", refuse_tmpfile(os.open))
    with create(tmp_path) as file:
        assert publish(tmp_path, [written("a", file)]) == [tmp_path / "a"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"text"}


def refuse_tmpfile(real: object) -> object:
    def opened(path: object, flags: int, *more: object, **named: object) -> object:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no O_TMPFILE here")
        return real(path, flags, *more, **named)  # type: ignore[operator]

    return opened


def test_a_missing_folder_is_an_error_of_the_system(tmp_path: Path):
    with pytest.raises(SinkFailed, match="No such file"), disk_errors(tmp_path / "none"):
        create(tmp_path / "none")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_is_told_apart(code: int, tmp_path: Path):
    with pytest.raises(DiskFull, match="no space left"), disk_errors(tmp_path):
        raise OSError(code, "full")
    with pytest.raises(SinkFailed) as failure, disk_errors(tmp_path):
        raise OSError(errno.EROFS, "Read-only file system")
    assert not isinstance(failure.value, DiskFull)


def test_a_copy_leaves_no_second_name(tmp_path: Path):
    with tempfile.TemporaryFile(dir=tmp_path, buffering=0) as file:
        files._copy(written("a", file).file.fileno(), tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
