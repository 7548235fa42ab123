# SPDX-License-Identifier: Apache-2.0
"""SIGINT and SIGTERM while a capture runs: the first ends it early, a second may end all."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

BOTH = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def ignored() -> Iterator[None]:
    """No signal of BOTH interrupts anything, except where stopping() is inside."""
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in BOTH}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def stopping(
    stop: threading.Event, gives_up: Sequence[signal.Signals] = (signal.SIGINT,)
) -> Iterator[None]:
    """The first signal sets `stop`; a further one of `gives_up` raises KeyboardInterrupt."""
    given_up = threading.Event()

    def end(number: int, _: FrameType | None) -> None:
        if number in gives_up and stop.is_set():
            given_up.set()
            # A third Ctrl-C needs no Python; who sent SIGTERM twice has SIGKILL for that.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise KeyboardInterrupt
        stop.set()

    previous = {number: signal.signal(number, end) for number in BOTH}
    try:
        yield
    except Exception as error:
        if given_up.is_set():  # DuckDB turns the interrupt of a query into an error of its own
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
