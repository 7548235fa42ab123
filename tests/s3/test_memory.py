# SPDX-License-Identifier: Apache-2.0
"""Delivery streams: a large file costs no more memory than the parts that are on their way."""

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import MakeTarget

pytestmark = pytest.mark.world("s3")

SIZE = 200 * 2**20 + 7
LIMIT_KIB = 128 * 1024
# VmHWM begins anew with the program; ru_maxrss also knows the process that forked it.
SCRIPT = r"""
import hashlib, re, sys
from pathlib import Path
from ktrace_agent.sinks.parcel import Budget, Parcel
from ktrace_agent.sinks.s3 import S3
from ktrace_api.assignment import S3Target
path, target = Path(sys.argv[1]), S3Target.model_validate_json(sys.argv[2])
with path.open("rb") as file:
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
S3(target, Budget(100), lambda _: None).deliver([Parcel(path, path.stat().st_size, sha256)])
print(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
"""


def test_a_large_file_is_sent_in_little_memory(target: MakeTarget, tmp_path: Path):
    path = tmp_path / "large.bundle.tgz"
    with path.open("wb") as file:
        file.truncate(SIZE)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, path, target().model_dump_json()],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < LIMIT_KIB
