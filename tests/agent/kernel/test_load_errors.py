# SPDX-License-Identifier: Apache-2.0
"""Failures to load that say nothing of the kernel."""

import errno
import resource

import pytest

from ktrace_agent.errors import AgentError, PermissionDenied
from ktrace_agent.kernel import load_errors, preflight
from ktrace_agent.kernel.libbpf import BpfError
from ktrace_agent.kernel.preflight import Lack

NOISE = "libbpf: prog 'x': BPF program load failed\n"
SPOKEN = f"{NOISE}R1 invalid mem access 'scalar'\nprocessed 3 insns\n"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EMFILE, ("ulimit -n",)),
        (errno.ENFILE, ("fs.file-max",)),
        (errno.ENOMEM, ("memory limit", "--ring-bytes")),
    ],
)
def test_what_is_short_is_named(code: int, words: tuple[str, ...]):
    with pytest.raises(AgentError) as short:
        load_errors.raise_if_scarce(BpfError("load", code, NOISE))
    assert all(word in str(short.value) for word in words)
    assert short.value.exit_status == 1


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EACCES, errno.EPERM, errno.E2BIG])
def test_other_failures_are_looked_at_program_by_program(code: int):
    load_errors.raise_if_scarce(BpfError("load", code, NOISE))


@pytest.mark.parametrize("code", [errno.EPERM, errno.EACCES])
def test_all_programs_denied_is_a_right_that_is_missing(code: int):
    with pytest.raises(PermissionDenied, match="CAP_BPF"):
        load_errors.raise_if_denied([BpfError("load", code, NOISE)] * 3, tried=3)


@pytest.mark.parametrize(
    ("refused", "tried"),
    [
        ([], 3),
        ([BpfError("load", errno.EPERM)] * 2, 3),
        ([BpfError("load", errno.EPERM), BpfError("load", errno.EINVAL)], 2),
        ([BpfError("load", errno.EACCES, SPOKEN)] * 2, 2),
    ],
    ids=["none", "not all", "others", "the verifier spoke"],
)
def test_refused_programs_are_no_missing_right(refused: list[BpfError], tried: int):
    load_errors.raise_if_denied(refused, tried)


def test_the_reason_is_the_verifiers_where_it_spoke():
    assert load_errors.reason(BpfError("load", errno.EACCES, SPOKEN)) == (
        "R1 invalid mem access 'scalar'"
    )
    assert load_errors.reason(BpfError("load", errno.EINVAL, NOISE)) == "Invalid argument"


@pytest.mark.parametrize(("limit", "short"), [(20, True), (191, True), (192, False), (-1, False)])
def test_the_limit_of_files(limit: int, short: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    lack = preflight.inspect().lacks(Lack.FILES)
    assert bool(lack) == short
    if lack:
        assert str(limit) in lack.why
        assert "ulimit -n" in lack.next_step
    assert preflight.BLOCKING[Lack.FILES] is AgentError
