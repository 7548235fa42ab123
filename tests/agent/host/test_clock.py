# SPDX-License-Identifier: Apache-2.0
"""The kernel's boot clock, whatever time namespace the agent is in."""

import time
from pathlib import Path

import pytest

from ktrace_agent.errors import AgentError
from ktrace_agent.host import clock
from ktrace_agent.kernel import preflight
from ktrace_agent.kernel.preflight import Lack

NOW = "monotonic           5         7\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc of a process in a time namespace of its own, as are its children."""
    (tmp_path / "self/ns").mkdir(parents=True)
    (tmp_path / "self/ns/net").symlink_to("net:[4026531833]")
    (tmp_path / "self/ns/time").symlink_to("time:[4026532000]")
    (tmp_path / "self/ns/time_for_children").symlink_to("time:[4026532000]")
    return tmp_path


def offsets(proc: Path, text: str) -> None:
    (proc / "self/timens_offsets").write_text(text)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("boottime       86400         0", 86_400 * 10**9),
        ("boottime       -3600         0", -3_600 * 10**9),
        ("boottime          -2 500000000", -1_500_000_000),
        ("7 86400 1", 86_400 * 10**9 + 1),
        ("boottime           0         0", 0),
    ],
)
def test_the_shift_of_a_time_namespace(proc: Path, line: str, wanted: int):
    offsets(proc, f"{NOW}{line}\n")
    assert clock.shift_ns(proc) == wanted


def test_a_kernel_without_time_namespaces_shifts_nothing(proc: Path):
    (proc / "self/ns/time").unlink()
    (proc / "self/ns/time_for_children").unlink()
    assert clock.shift_ns(proc) == 0


def test_offsets_of_another_namespace_are_not_taken(proc: Path):
    """unshare(CLONE_NEWTIME) alone: the children's namespace has an offset, the own has not."""
    (proc / "self/ns/time_for_children").unlink()
    (proc / "self/ns/time_for_children").symlink_to("time:[4026532001]")
    offsets(proc, f"{NOW}boottime 86400 0\n")
    with pytest.raises(AgentError, match="time namespace"):
        clock.shift_ns(proc)


@pytest.mark.parametrize("text", ["", NOW, f"{NOW}boottime\n", "boottime x y\n", None])
def test_offsets_that_cannot_be_read_are_no_zero(proc: Path, text: str | None):
    if text is not None:
        offsets(proc, text)
    with pytest.raises(AgentError, match="nsenter"):
        clock.shift_ns(proc)


def test_without_proc_nothing_is_assumed(tmp_path: Path):
    with pytest.raises(AgentError):
        clock.shift_ns(tmp_path)


def test_an_unknown_clock_is_told_before_anything_is_attached(proc: Path):
    lack = preflight.inspect(proc=proc).lacks(Lack.CLOCK)
    assert lack
    assert "time namespace" in lack.why
    assert preflight.BLOCKING[Lack.CLOCK] is AgentError


def test_the_own_clock():
    kernel = clock.boot_ns()
    here = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert abs(here - clock.shift_ns() - kernel) < 10**8
