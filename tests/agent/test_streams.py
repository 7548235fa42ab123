# SPDX-License-Identifier: Apache-2.0
"""Standard error that is closed, full or without a reader, from outside."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def shell(script: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """A script of bash in which `ktrace` is the stubbed command, writing into `folder`."""
    ktrace = f'"{sys.executable}" -m tests.agent.stubbed'
    return subprocess.run(
        ["bash", "-c", f'set -o pipefail; ktrace() {{ {ktrace} "$@"; }}; {script}'],
        check=False,
        cwd=ROOT,
        env={**os.environ, "KTRACE_OUT_DIR": str(folder / "out"), **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


def bundles(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.bundle.tgz"))


@pytest.mark.parametrize(
    "stderr",
    ["2>&-", "2>/dev/full", "2> >(exit 0)", "0<&- 2>&-", "2</dev/null"],
)
def test_what_happens_to_the_progress_ends_no_capture(tmp_path: Path, stderr: str):
    done = shell(f"ktrace {stderr}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (bundle,) = bundles(tmp_path)
    assert f"Bundle       {bundle}" in done.stdout
    assert bundle.read_text() == "sealed"


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full", "0<&- 1>&- 2>&-"])
def test_wrong_use_has_its_status_also_when_nobody_can_be_told(tmp_path: Path, stderr: str):
    done = shell(f"ktrace --nosuch {stderr}", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    assert bundles(tmp_path) == []


def test_an_agent_of_the_operator_reports_also_without_standard_error(tmp_path: Path):
    for stderr in ("2>&-", "2>/dev/full"):
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        done = shell(
            f"ktrace {stderr}", tmp_path, KTRACE_CAPTURE="{}", KTRACE_TERMINATION_LOG=str(log)
        )
        assert (done.returncode, done.stderr) == (2, "")
        assert json.loads(log.read_text())["reason"] == "ProtocolError"


def test_no_file_becomes_a_stream_that_was_closed(tmp_path: Path):
    script = (
        "import os, sys; from ktrace_agent import streams; context = streams.guarded();"
        "context.__enter__(); fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY);"
        "sys.stderr.write('gone'); sys.stderr.flush(); os.write(fd, b'3' if fd > 2 else b'no')"
    )
    file = tmp_path / "file"
    command = ["bash", "-c", '"$@" 0<&- 1>&- 2>&-', "-", sys.executable, "-c", script, str(file)]
    assert subprocess.run(command, check=False).returncode == 0
    assert file.read_text() == "3"


def test_the_document_is_whole_whatever_standard_error_does(tmp_path: Path):
    done = shell("ktrace --json 2>/dev/full", tmp_path)
    assert json.loads(done.stdout)["paths"]["bundle"] == str(bundles(tmp_path)[0])
