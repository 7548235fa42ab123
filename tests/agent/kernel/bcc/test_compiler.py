# SPDX-License-Identifier: Apache-2.0
import platform
import subprocess
from pathlib import Path

import pytest

from ktrace_agent.errors import AgentError
from ktrace_agent.kernel.bcc import compiler
from ktrace_agent.kernel.built_files import source_folder
from ktrace_agent.kernel.hooks import TARGETS


def test_bcc_needs_its_package_and_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platform, "release", lambda: "5.4.0-1")
    found = compiler.problem(tmp_path, tmp_path / "none")
    assert found
    assert "python3-bpfcc" in found[1]
    monkeypatch.setattr(compiler, "find_spec", lambda _: True)
    assert compiler.problem(tmp_path, tmp_path / "none") == (
        "the headers of kernel 5.4.0-1 are not installed",
        f"install linux-headers-5.4.0-1, or mount the host's {tmp_path} and /usr/src",
    )
    (tmp_path / "5.4.0-1/build").mkdir(parents=True)
    assert compiler.problem(tmp_path, tmp_path / "none") is None


def test_every_program_is_in_the_sources():
    folder = source_folder() / "entry"
    text = "".join((folder / f"{name}.bpf.h").read_text() for name in ("kprobe", "syscalls"))
    for name in compiler.PROGRAMS:
        assert name in TARGETS
        assert f"({name}," in text or f"int {name}(" in text or f"({name}##name," in text, name


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (b"WARNING: x\nmain.c:1:2: error: no such file\nmain.c: error: second\n", "no such file"),
        (b"Exception: Failed to compile\n", "Exception: Failed to compile"),
        (b"", "no reason given"),
    ],
)
def test_the_first_error_of_the_compiler_is_shown(
    output: bytes, message: str, monkeypatch: pytest.MonkeyPatch
):
    failed = subprocess.CompletedProcess([], 1, b"", output)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(AgentError, match=message):
        compiler.compile_programs(Path("/none"), ())


def test_warnings_before_the_programs_are_ignored(monkeypatch: pytest.MonkeyPatch):
    done = subprocess.CompletedProcess([], 0, b'WARNING: x\n{"a": "00ff"}\n', b"")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert compiler.compile_programs(Path("/none"), ()) == {"a": b"\0\xff"}
