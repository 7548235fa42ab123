# SPDX-License-Identifier: Apache-2.0
"""Signals during a capture: the first ends it early, a second may abort it."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any

BOTH = (signal.SIGINT, signal.SIGTERM)
ENDS = (*BOTH, signal.SIGHUP)
"""Signals that end a capture: from a user, a supervisor, or a broken connection."""


_Handler = Callable[[int, FrameType | None], Any] | int | None


class Stop:
    """A request to end early: a signal handler sets it, the interrupted thread waits for it.

    threading.Event does not work here. Its wait() briefly holds a lock, and a handler that
    interrupts wait() at that moment blocks forever in set(). SimpleQueue.put() may interrupt get().
    """

    def __init__(self) -> None:
        self._is_set = False
        self._wake: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Request the end. Further calls have no effect."""
        if not self._is_set:
            self._is_set = True
            self._wake.put(None)

    def is_set(self) -> bool:
        """Return whether the end was requested."""
        return self._is_set

    def wait(self, seconds: float) -> bool:
        """Wait up to `seconds` for the request; return whether it came. One thread may wait."""
        if not self._is_set:
            with suppress(Empty):
                self._wake.get(timeout=seconds)
        return self._is_set


@contextmanager
def ignored() -> Iterator[None]:
    """Ignore all signals of ENDS, except inside a nested stopping()."""
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in ENDS}
    try:
        yield
    finally:
        _restore(previous)


@contextmanager
def stopping(stop: Stop, gives_up: Sequence[signal.Signals] = (signal.SIGINT,)) -> Iterator[None]:
    """Set `stop` on the first signal; raise KeyboardInterrupt on a further one of `gives_up`.

    SIGHUP never aborts, because the shell repeats the SIGHUP that the kernel sent. If SIGHUP is
    ignored already (nohup(1)), it stays ignored.
    """
    given_up = False

    def end(number: int, _: FrameType | None) -> None:
        nonlocal given_up
        if number in gives_up and stop.is_set():
            given_up = True
            # A third Ctrl-C must work even if Python hangs. After two SIGTERM there is SIGKILL.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise KeyboardInterrupt
        stop.set()

    heard = BOTH if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else ENDS
    previous = {number: signal.signal(number, end) for number in heard}
    try:
        yield
    except Exception as error:
        if given_up:  # DuckDB turns the interrupt of a query into its own error
            raise KeyboardInterrupt from error
        raise
    finally:
        _restore(previous)


@contextmanager
def postponed() -> Iterator[None]:
    """Handle signals that arrive inside only at the end, for work that must not stop halfway."""
    came: list[int] = []
    handlers: dict[signal.Signals, _Handler] = {}
    if threading.current_thread() is threading.main_thread():  # handlers run only there
        handlers = {number: signal.getsignal(number) for number in ENDS}
    callables = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in callables:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        _restore(callables)
        for arrived in came:
            signal.raise_signal(arrived)


def _restore(handlers: Mapping[signal.Signals, _Handler]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
