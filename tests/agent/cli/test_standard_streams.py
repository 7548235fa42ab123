# SPDX-License-Identifier: Apache-2.0
"""Standard output and error that are closed, full or without a reader, from outside."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ktrace_agent.bundle import seal
from ktrace_agent.tables.captured import Captured
from ktrace_api.capture import CaptureConfig
from ktrace_api.node import NodeInfo
from tests.agent.conftest import Make, make_events

pytestmark = pytest.mark.slow  # each case is a process or several

ROOT = Path(__file__).resolve().parents[3]
CLOSED, FULL = "Bad file descriptor", "No space left on device"


def shell(script: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """A script of bash in which `ktrace` is the stubbed command, writing into `folder`."""
    ktrace = f'"{sys.executable}" -m tests.agent.cli.process_without_kernel'
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
    (made,) = bundles(tmp_path)
    assert f"Bundle       {made}" in done.stdout
    assert made.read_text() == "sealed"


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full", "0<&- 1>&- 2>&-"])
def test_wrong_use_has_its_status_also_when_nobody_can_be_told(tmp_path: Path, stderr: str):
    done = shell(f"ktrace --nosuch {stderr}", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    assert bundles(tmp_path) == []


def test_a_reader_that_takes_one_line_of_both_leaves_the_bundle(tmp_path: Path):
    done = shell("ktrace 2>&1 | head -n 1; echo ${PIPESTATUS[0]}", tmp_path)
    line, status = done.stdout.splitlines()
    assert line.startswith("ktrace: recording for 60s")
    assert status in ("0", "141")  # whether head was still there
    assert done.stderr == ""
    assert len(bundles(tmp_path)) == 1


@pytest.mark.parametrize("flag", ["", "--json"])
@pytest.mark.parametrize(("stdout", "why"), [(">&-", CLOSED), (">/dev/full", FULL)])
def test_a_result_that_cannot_be_printed_is_told_with_the_bundle(
    tmp_path: Path, flag: str, stdout: str, why: str
):
    done = shell(f"ktrace {flag} {stdout}", tmp_path)
    assert done.returncode == 1
    (made,) = bundles(tmp_path)
    assert done.stderr.splitlines()[-1] == (
        f"ktrace: the result could not be written to standard output ({why});"
        f" the bundle is saved: {made}"
    )
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.parametrize("flag", ["", "--json"])
def test_a_reader_that_left_is_no_failure_to_talk_about(tmp_path: Path, flag: str):
    done = shell(f"ktrace {flag} | exec 0<&-; echo ${{PIPESTATUS[0]}}", tmp_path)
    assert done.stdout == "141\n"
    assert done.stderr.splitlines()[-1] == "ktrace: writing 0 rows"
    assert len(bundles(tmp_path)) == 1


@pytest.mark.parametrize("command", ["doctor", "doctor --json", "--help", "--version"])
@pytest.mark.parametrize(("stdout", "why"), [(">&-", CLOSED), (">/dev/full", FULL)])
def test_every_command_says_that_its_output_went_nowhere(
    tmp_path: Path, command: str, stdout: str, why: str
):
    done = shell(f"ktrace {command} {stdout}", tmp_path)
    assert done.returncode == 1
    assert done.stderr == (f"ktrace: the result could not be written to standard output ({why})\n")


@pytest.fixture(scope="module")
def sealed_rows(
    make_module_recording: Make,
    config: CaptureConfig,
    node_info: NodeInfo,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A bundle whose rows fill more than one buffer of an output."""
    recording = make_module_recording(make_events([{}] * 5_000))
    captured = Captured(recording, config, node_info)
    return seal.seal(captured, tmp_path_factory.mktemp("sealed")).bundle


@pytest.mark.parametrize("form", ["", "table", "csv", "jsonl"], ids=lambda form: form or "show")
def test_show_and_query_too(sealed_rows: Path, tmp_path: Path, form: str):
    # Few columns: laying out a wide table takes longer than all the rest.
    question = f"query {sealed_rows} 'SELECT n, comm, local FROM rows' --format={form}"
    ask = question if form else f"show {sealed_rows}"
    for stdout, why in ((">&-", CLOSED), (">/dev/full", FULL)):
        done = shell(f"ktrace {ask} {stdout}", tmp_path)
        said = f"ktrace: the result could not be written to standard output ({why})"
        assert said in done.stderr.splitlines()
        assert "Traceback" not in done.stderr
        assert done.returncode == 1
    done = shell(f"ktrace {ask} | exec 0<&-", tmp_path)
    assert (done.returncode, done.stdout, "could not" in done.stderr) == (141, "", False)


def test_an_error_as_json_is_a_line_where_there_is_no_room_for_it(tmp_path: Path):
    for stdout in (">&-", ">/dev/full", "| exec 0<&-"):
        done = shell(f"ktrace --json --nosuch {stdout}", tmp_path)
        assert done.returncode == 2
        assert done.stderr == "ktrace: unknown flag: --nosuch. See 'ktrace --help'.\n"


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
        "import os, sys; from ktrace_agent.cli.standard_streams import guarded;"
        "context = guarded();"
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
