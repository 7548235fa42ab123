# SPDX-License-Identifier: Apache-2.0
"""With fewer rights or less memory than a capture needs: what is missing, and what to do."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ktrace_agent.errors import AgentError, PermissionDenied
from tests.bpf.conftest import Begin
from tests.bpf.test_bad_input import ktrace, refused

pytestmark = pytest.mark.world("bpf")


def test_what_no_program_serves_is_not_called_complete(capture: Begin) -> None:
    """CAP_BPF and CAP_PERFMON alone open no tracefs: no program sees the system calls."""
    few = ("setpriv", "--bounding-set=-sys_admin,-sys_ptrace,-net_admin")
    with capture(prefix=few) as one:
        pass
    missing = one.summary["hooks_missing"]
    if not missing:
        pytest.skip("this kernel shows tracefs to those without CAP_SYS_ADMIN")
    assert "connect" in missing
    assert any("Not traced" in note and "connect" in note for note in one.summary["notes"])
    found = next(f for f in one.summary["findings"] if f["id"] == "CAPTURE_INCOMPLETE")
    assert all(name in found["title"] for name in missing)
    assert "hooks_missing" in found["refuted_by"]
    shown = ktrace("show", str(one.file("bundle.tgz"))).stdout
    assert "complete: no events lost" not in shown
    assert not one.summary["complete"]
    assert "not_traced" in one.summary["gaps"]


IN_USERS = ("unshare", "--user", "--map-root-user")


def test_root_of_a_user_namespace_is_no_root(tmp_path: Path) -> None:
    """It has all capabilities there, and none of them counts for BPF."""
    done = ktrace(f"--out-dir={tmp_path / 'out'}", "--duration=1s", prefix=IN_USERS)
    refused(done, PermissionDenied.exit_status, "user namespace", "root of the host")
    assert not (tmp_path / "out").exists()


def test_the_doctor_does_not_call_it_root() -> None:
    done = ktrace("doctor", prefix=IN_USERS)
    assert done.returncode == PermissionDenied.exit_status
    assert "user namespace" in done.stdout
    assert "ok  privileges" not in done.stdout
    found = json.loads(ktrace("doctor", "--json", prefix=IN_USERS).stdout)
    assert found["error"]["reason"] == "PermissionDenied"


@pytest.mark.parametrize("limit", [20, 60])
def test_too_few_files_are_no_fault_of_the_kernel(tmp_path: Path, limit: int) -> None:
    prefix = ("sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh")
    done = ktrace(f"--out-dir={tmp_path / 'out'}", "--duration=1s", prefix=prefix)
    refused(done, AgentError.exit_status, f"{limit} files", "ulimit -n")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def narrow() -> Iterator[Path]:
    """A memory cgroup that is large enough for Python, but not for the maps."""
    limits = ("memory.limit_in_bytes", "memory.max")
    roots = [Path("/sys/fs/cgroup/memory"), *Path("/sys/fs/cgroup").glob("unified"),
             Path("/sys/fs/cgroup")]  # fmt: skip
    for root in roots:
        group = root / "ktrace-test-narrow"
        with suppress(OSError):
            group.mkdir()
            limit = next((name for name in limits if (group / name).exists()), None)
            if limit:
                (group / limit).write_text(str(40 << 20))
                yield group
                group.rmdir()
                return
            group.rmdir()
    pytest.skip("no memory cgroup can be made here")


def test_too_little_memory_is_no_fault_of_the_kernel(tmp_path: Path, narrow: Path) -> None:
    prefix = ("sh", "-c", f'echo $$ > {narrow}/cgroup.procs; exec "$@"', "sh")
    done = ktrace(f"--out-dir={tmp_path / 'out'}", "--duration=1s", prefix=prefix)
    if done.returncode == -9:
        pytest.skip("this kernel ended the process before it had to refuse memory")
    refused(done, AgentError.exit_status, "memory limit", "--ring-bytes")
