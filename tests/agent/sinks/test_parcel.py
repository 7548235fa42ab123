# SPDX-License-Identifier: Apache-2.0
import hashlib
from pathlib import Path

import pytest

from ktrace_agent.sinks.parcel import Budget, Parcel, composite_sha256


@pytest.mark.parametrize(("size", "parts"), [(0, 0), (1, 1), (10, 1), (11, 2), (30, 3)])
def test_the_composite_checksum_is_over_the_parts(tmp_path: Path, size: int, parts: int):
    content = bytes(range(size))
    path = tmp_path / "file"
    path.write_bytes(content)
    hashes = [hashlib.sha256(content[n : n + 10]).digest() for n in range(0, size, 10)]
    assert composite_sha256(path, 10) == (hashlib.sha256(b"".join(hashes)).digest(), parts)


def test_a_parcel_is_its_size_and_hash(tmp_path: Path):
    parcel = Parcel(tmp_path / "a.tgz", 3, "f" * 64)
    assert parcel.name == "a.tgz"
    assert parcel.same_as(3, "f" * 64)
    assert not parcel.same_as(4, "f" * 64)
    assert not parcel.same_as(3, "e" * 64)


def test_a_budget_ends_at_zero(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    budget = Budget(10)
    now[0] = 104.0
    assert budget.left == 6
    now[0] = 200.0
    assert (budget.left, budget.seconds) == (0, 10)
