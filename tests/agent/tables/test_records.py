# SPDX-License-Identifier: Apache-2.0
import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrace_agent.host.inet import address_text
from ktrace_agent.tables.records import (
    EVENT,
    Dictionary,
    chunks,
    comm_text,
    errno_name,
    flag_names,
)


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=200))
def test_a_dictionary_gives_back_what_went_in(keys: list[bytes]):
    dictionary = Dictionary(16)
    numbers = dictionary.encode(np.array([np.void(key) for key in keys], "V16"))
    assert [dictionary.keys[number] for number in numbers.tolist()] == keys
    assert len(set(dictionary.keys)) == len(dictionary.keys)


def test_two_strings_with_one_sum_stay_two(monkeypatch: pytest.MonkeyPatch):
    dictionary = Dictionary(16)
    monkeypatch.setattr(dictionary, "_factors", np.zeros(2, np.uint64))
    keys = [bytes([n]) * 16 for n in (3, 1, 3, 2)]
    numbers = dictionary.encode(np.array([np.void(key) for key in keys], "V16"))
    assert [dictionary.keys[number] for number in numbers.tolist()] == keys


def test_numbers_stay_the_same_over_chunks():
    dictionary = Dictionary(8)
    first = dictionary.encode(np.array([5, 6, 5], np.uint64))
    second = dictionary.encode(np.array([7, 6], np.uint64))
    assert first[1] == second[1]
    assert len(set(first.tolist() + second.tolist())) == 3


def test_a_spool_is_read_in_chunks(tmp_path: Path):
    events = np.zeros(10, EVENT)
    events["ts"] = np.arange(10)
    path = tmp_path / "spool"
    path.write_bytes(events.tobytes() + b"torn")
    fd = os.open(path, os.O_RDONLY)
    assert [part["ts"].tolist() for part in chunks(fd, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    os.close(fd)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"curl", "curl"),
        (b"curl\0rest of an older name", "curl"),
        (b"", "-"),
        (b'a"\\b', 'a"\\b'),
        (b"\xff\xfeok", "��ok"),
        (b"\xc3", "�"),
        ("é漢".encode(), "é漢"),
        (b"\x01\n", "\x01\n"),
    ],
)
def test_names_of_tasks(raw: bytes, text: str):
    assert comm_text(raw) == text


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\0" * 10 + b"\xff\xff\x7f\0\0\1", "127.0.0.1"),
        (b"\0" * 10 + b"\xff\xff\0\0\0\0", "0.0.0.0"),
        (b"\0" * 16, "[::]"),
        (b"\0" * 15 + b"\1", "[::1]"),
        (bytes.fromhex("20010db8000000000000000000000001"), "[2001:db8::1]"),
    ],
)
def test_addresses(raw: bytes, text: str):
    assert address_text(raw) == text


def test_flags():
    assert flag_names(0) == []
    assert flag_names(0x42) == ["PEEK", "DONTWAIT"]
    assert flag_names(1 << 31) == ["CORKED"]
    assert flag_names(0x10000002) == ["PEEK", "0x10000000"]


def test_errno_names():
    assert errno_name(0) == "-"
    assert errno_name(9999) == "-"
    assert errno_name(errno.ECONNREFUSED) == "ECONNREFUSED"
    assert errno_name(11) == "EAGAIN"
    assert errno_name(95) == "EOPNOTSUPP"
    assert errno_name(512) == "ERESTARTSYS"
