# SPDX-License-Identifier: Apache-2.0
"""All texts of the command line, word for word: --help of every command, errors of every flag."""

import pytest
from syrupy.assertion import SnapshotAssertion

from ktrace_agent.cli import main
from ktrace_agent.cli.options import JSON, OPTIONS, Option
from tests.agent.conftest import Session

COLUMNS = 100
WRONG = {
    "--backend": "ebpf",
    "--duration": "5x",
    "--dns-only": "maybe",
    "--ports": "80,70000",
    "--pods": "web-0",
    "--with-connect-latency": "perhaps",
    "--with-retransmits": "perhaps",
    "--with-security": "perhaps",
    "--with-cri": "perhaps",
    "--cri-socket": "containerd.sock",
    "--with-conntrack": "perhaps",
    "--sample": "0",
    "--max-events": "many",
    "--max-bytes": "64 megabytes",
    "--node": "a/b",
    "--ring-bytes": "1KiB",
    "--max-sockets": "0",
    "--max-flows": "0",
    "--threshold": "min_count=-1",
    "--threshold-file": "missing.toml",
    "--out-dir": "/proc/none",
    "--sink": "s3://Not-A-Bucket",
    "--host-root": "/none",
    "--json": "perhaps",
}


@pytest.mark.parametrize("command", ["", "capture", "show", "query", "doctor"])
def test_help(
    command: str,
    snapshot: SnapshotAssertion,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    assert main.main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= COLUMNS
    assert text == snapshot


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.flag)
def test_errors_of_a_flag(
    option: Option,
    ran: Session,
    snapshot: SnapshotAssertion,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """A wrong value, no value, an empty value, and a wrong variable."""
    wrong = WRONG[option.flag]
    cases = [[f"{option.flag}={wrong}"], [f"{option.flag}="]]
    if not option.alone:
        cases.append([option.flag])
    lines = [message(args, capsys) for args in cases]
    monkeypatch.setenv(option.variable, wrong)
    lines.append(message([], capsys))
    assert lines == snapshot
    assert ran.configs == []


@pytest.mark.parametrize(
    "line", ["-o x", "--prots=80", "--quite", "doctr", "nothing", "capture now", "show", "query a"]
)
def test_errors_of_the_command_line(
    line: str, ran: Session, snapshot: SnapshotAssertion, capsys: pytest.CaptureFixture[str]
):
    assert message(line.split(), capsys) == snapshot
    assert ran.configs == []


def message(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a wrong command line prints; --json prints a document instead of a line."""
    assert main.main(args) in (2, 5)
    out, err = capsys.readouterr()
    assert bool(out) != bool(err)
    assert not out or JSON.flag in out
    return out + err
