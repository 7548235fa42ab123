# SPDX-License-Identifier: Apache-2.0
"""Signals while a capture runs: the first ends it early, a second may end all."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any

BOTH = (signal.SIGINT, signal.SIGTERM)
ENDS = (*BOTH, signal.SIGHUP)
"""What asks a capture to end: a user, a supervisor, a connection that broke."""


_Handler = Callable[[int, FrameType | None], Any] | int | None


class Stop:
    """A wish to end early: a signal handler tells it, the thread that it interrupts waits for it.

    Not a threading.Event: its wait() holds a lock for moments, and a handler that interrupts it
    there waits in set() for that lock for ever. SimpleQueue.put() may interrupt its get().
    """

    def __init__(self) -> None:
        self._told = False
        self._wake: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Tell it; nothing more happens the second time."""
        if not self._told:
            self._told = True
            self._wake.put(None)

    def is_set(self) -> bool:
        """Whether it was told."""
        return self._told

    def wait(self, seconds: float) -> bool:
        """Until it is told or `seconds` are over; whether it was told. For one thread only."""
        if not self._told:
            with suppress(Empty):
                self._wake.get(timeout=seconds)
        return self._told


@contextmanager
def ignored() -> Iterator[None]:
    """No signal of ENDS interrupts anything, except where stopping() is inside."""
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in ENDS}
    try:
        yield
    finally:
        _restore(previous)


@contextmanager
def stopping(stop: Stop, gives_up: Sequence[signal.Signals] = (signal.SIGINT,)) -> Iterator[None]:
    """The first signal sets `stop`; a further one of `gives_up` raises KeyboardInterrupt.

    SIGHUP never gives up, since a shell repeats what the kernel sent; where it is ignored
    (nohup(1)) it stays so.
    """
    given_up = False

    def end(number: int, _: FrameType | None) -> None:
        nonlocal given_up
        if number in gives_up and stop.is_set():
            given_up = True
            # A third Ctrl-C needs no Python; who sent SIGTERM twice has SIGKILL for that.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise KeyboardInterrupt
        stop.set()

    heard = BOTH if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else ENDS
    previous = {number: signal.signal(number, end) for number in heard}
    try:
        yield
    except Exception as error:
        if given_up:  # DuckDB turns the interrupt of a query into an error of its own
            raise KeyboardInterrupt from error
        raise
    finally:
        _restore(previous)


@contextmanager
def postponed() -> Iterator[None]:
    """A signal that comes inside is handled behind it: for what cannot be given up halfway."""
    came: list[int] = []
    handlers: dict[signal.Signals, _Handler] = {}
    if threading.current_thread() is threading.main_thread():  # handlers run in no other
        handlers = {number: signal.getsignal(number) for number in ENDS}
    ours = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in ours:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        _restore(ours)
        for one in came:
            signal.raise_signal(one)


def _restore(handlers: Mapping[signal.Signals, _Handler]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
