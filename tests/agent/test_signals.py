# SPDX-License-Identifier: Apache-2.0
import os
import signal
import threading

import pytest

from ktrace_agent.signals import BOTH, ignored, stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_to_stop(number: signal.Signals):
    stop = threading.Event()
    before = signal.getsignal(number)
    with stopping(stop):
        os.kill(os.getpid(), number)
        assert stop.wait(1)
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(number) is before


def test_the_second_interrupt_ends_at_once():
    stop = threading.Event()
    with stopping(stop):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def interrupted(times: int) -> None:
    """A body that DuckDB ends with an error of its own when it is interrupted."""
    with stopping(threading.Event()):
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
    stop = threading.Event()
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
        with stopping(stop := threading.Event()):
            signal.raise_signal(number)
            assert stop.wait(1)
        signal.raise_signal(number)
    assert signal.getsignal(number) is before
