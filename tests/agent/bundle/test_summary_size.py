# SPDX-License-Identifier: Apache-2.0
"""What a bundle may take: bytes of the summary and memory of the process that seals, at any size.

Rows, flows and entries of connection tracking are those of bench/bench_seal.py, which prints the
times too; here only sizes count, which no other process of this machine changes. A size runs in
a process of its own, so that its peak (VmHWM, with all imports) is its own.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ktrace_api.summary import SUMMARY_MAX_BYTES

ROOM = Path(__file__).parents[3]
ENTRIES = 100_000


def sealed(rows: int, folder: Path) -> dict[str, Any]:
    """What bench_seal.py says of one size, and the summary that it left."""
    done = subprocess.run(
        [sys.executable, ROOM / "bench/bench_seal.py", "--json", f"--keep={folder}", str(rows)],
        check=True,
        stdout=subprocess.PIPE,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    (summary,) = folder.glob("*.summary.json")
    found["summary"] = summary.read_bytes()
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("rows", "mib"), [(200_000, 256), (1_000_000, 400)], ids=["default", "million"]
)
def test_sealing_keeps_to_its_memory_and_the_summary_to_its_size(
    rows: int, mib: int, tmp_path: Path
):
    found = sealed(rows, tmp_path)
    summary = json.loads(found["summary"])
    assert summary["rows"] == found["rows"] == rows
    assert found["flows"] == rows // 8
    assert found["entries"] == ENTRIES
    assert len(found["summary"]) <= SUMMARY_MAX_BYTES
    print(f"{rows} rows: peak {found['peak_mib']:.0f} of {mib} MiB, {found['seconds']:.1f} s")
    assert found["peak_mib"] <= mib
