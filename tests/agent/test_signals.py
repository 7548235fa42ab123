# SPDX-License-Identifier: Apache-2.0
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import pytest

from ktrace_agent.signals import BOTH, ENDS, Stop, ignored, postponed, stopping


@pytest.fixture(autouse=True)
def default_sighup() -> Iterator[None]:
    """SIGHUP has its default action, even if the tests were started with nohup(1)."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_to_stop(number: signal.Signals):
    stop = Stop()
    before = signal.getsignal(number)
    with stopping(stop):
        os.kill(os.getpid(), number)
        assert stop.wait(1)
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(number) is before


def test_the_second_interrupt_ends_at_once():
    stop = Stop()
    with stopping(stop):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def interrupted(times: int) -> None:
    """A body that DuckDB ends with an error of its own when it is interrupted."""
    with stopping(Stop()):
        try:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        finally:
            raise RuntimeError("Query interrupted")


def test_an_error_after_the_second_interrupt_is_that_interrupt():
    with pytest.raises(KeyboardInterrupt):
        interrupted(2)


def test_an_error_after_one_interrupt_is_an_error():
    with pytest.raises(RuntimeError):
        interrupted(1)


@pytest.mark.parametrize("first", BOTH)
@pytest.mark.parametrize("second", BOTH)
def test_who_cannot_send_another_kind_gives_up_with_any(
    first: signal.Signals, second: signal.Signals
):
    stop = Stop()
    with stopping(stop, gives_up=BOTH):
        signal.raise_signal(first)
        assert stop.wait(1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)


@pytest.mark.parametrize("number", BOTH)
def test_what_is_reported_is_not_interrupted(number: signal.Signals):
    before = signal.getsignal(number)
    with ignored():
        signal.raise_signal(number)
        with stopping(stop := Stop()):
            signal.raise_signal(number)
            assert stop.wait(1)
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


MOMENTS = 400
"""More than one wait has, in steps of the interpreter."""


def wait_interrupted_at(moment: int) -> tuple[bool, bool]:
    """Interrupt a wait at its `moment`th step; return whether it ended, and had such a step."""
    stop, steps = Stop(), 0

    def step(frame: FrameType, _event: str, _argument: object) -> Any:
        nonlocal steps
        frame.f_trace_opcodes = True
        steps += 1
        if steps == moment:
            signal.raise_signal(signal.SIGTERM)
        return step

    previous = sys.gettrace()  # of a coverage run
    with stopping(stop):
        sys.settrace(step)
        try:
            stop.wait(0.001)
        finally:
            sys.settrace(previous)
    return stop.is_set(), steps >= moment


def test_a_signal_at_any_moment_of_waiting_is_heard():
    def hangs(*_: object) -> None:
        raise AssertionError("the handler waits for what the thread that it interrupted holds")

    previous = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(20)
    try:
        for moment in range(1, MOMENTS):
            ended, had = wait_interrupted_at(moment)
            if not had:
                break
            assert ended, moment
        assert not had
        assert moment > 5
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def whole_inside(number: signal.Signals, error: Exception | None = None) -> list[str]:
    """Two signals that come inside; what happened before they were handled."""
    stop, seen = Stop(), list[str]()
    try:
        with stopping(stop, gives_up=[number]):
            for name in ("first", "second"):
                with postponed():
                    signal.raise_signal(number)
                    seen.append(f"{name} {stop.is_set()}")
                    if error:
                        raise error
    except KeyboardInterrupt:
        seen.append("given up")
    except OSError:
        seen.append(f"error {stop.is_set()}")
    return seen


@pytest.mark.parametrize("number", ENDS)
def test_what_cannot_be_given_up_halfway_is_given_up_behind_it(number: signal.Signals):
    assert whole_inside(number) == ["first False", "second True", "given up"]


def test_a_wish_that_comes_with_a_failure_is_heard():
    assert whole_inside(signal.SIGINT, OSError("full")) == ["first False", "error True"]


def test_a_thread_has_nothing_to_postpone():
    def work() -> int:
        with postponed():
            return 42

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == 42


def test_a_broken_connection_ends_the_capture_and_never_gives_up():
    stop = Stop()
    with stopping(stop):
        for _ in range(3):  # of the kernel, of the shell
            signal.raise_signal(signal.SIGHUP)
        assert stop.is_set()


def test_what_nohup_ignores_stays_ignored():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping(stop := Stop()):
            signal.raise_signal(signal.SIGHUP)
            assert not stop.is_set()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)
