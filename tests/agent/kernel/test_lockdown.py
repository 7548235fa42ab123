# SPDX-License-Identifier: Apache-2.0
"""The lockdown mode from securityfs, or from trial loads.

tests/kernels/test_lockdown.py shows the verifier's answers on kernels under lockdown.
"""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrace_agent.kernel import lockdown
from ktrace_agent.kernel.lockdown import NOTHING, READS_KERNEL, Lockdown


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("none [integrity] confidentiality", "integrity"),
        ("[none] x", "none"),
        ("", "-"),
        ("x", "-"),
    ],
)
def test_modes(text: str, wanted: str):
    assert lockdown.parse(text) == wanted


@given(st.text())
def test_any_text_is_parsed(text: str):
    assert lockdown.parse(text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[none] integrity confidentiality\n", Lockdown("none", confidential=False)),
        ("none [integrity] confidentiality\n", Lockdown("integrity", confidential=False)),
        ("none integrity [confidentiality]\n", Lockdown("confidentiality", confidential=True)),
    ],
)
def test_a_reported_mode_needs_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, wanted: Lockdown
):
    (tmp_path / "lockdown").write_text(text)
    monkeypatch.delattr(lockdown, "_loads")
    assert lockdown.find(tmp_path / "lockdown") == wanted


@pytest.mark.parametrize(
    ("accepted", "wanted"),
    [
        ({NOTHING, READS_KERNEL}, Lockdown("-", confidential=False)),
        ({NOTHING}, Lockdown("confidentiality", confidential=True)),
        (set(), Lockdown("-", confidential=None)),
    ],
)
def test_without_securityfs_the_verifier_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accepted: set[bytes], wanted: Lockdown
):
    monkeypatch.setattr(lockdown, "_loads", accepted.__contains__)
    assert lockdown.find(tmp_path / "none") == wanted


def test_without_libbpf_the_lockdown_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def missing() -> None:
        raise OSError("libbpf.so.1: cannot open shared object file")

    monkeypatch.setattr(lockdown, "library", missing)
    assert lockdown.find(tmp_path / "none") == Lockdown("-", confidential=None)


@pytest.mark.world("bpf")
def test_trial_loads_find_no_confidentiality_where_programs_run(tmp_path: Path):
    before = len(os.listdir("/proc/self/fd"))
    assert lockdown.find(tmp_path / "none").confidential is False
    assert len(os.listdir("/proc/self/fd")) == before
