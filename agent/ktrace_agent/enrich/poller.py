# SPDX-License-Identifier: Apache-2.0
"""A thread that polls a source while a capture runs. Standard library only."""

import threading
from collections.abc import Callable

DUTY = 20
"""A poll that worked for t seconds is followed by a pause of 20 t: a maximum of 5 % of a core."""


class Poller:
    """Calls `poll` in a daemon thread, once per period or less often if it is expensive.

    `poll` returns the seconds that it worked, and must not raise.
    """

    def __init__(
        self,
        name: str,
        poll: Callable[[], float],
        *,
        period_s: float,
        max_pause_s: float = threading.TIMEOUT_MAX,
    ) -> None:
        self._poll, self._period_s, self._max_pause_s = poll, period_s, max_pause_s
        self._pause_s = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self, worked_s: float | None = None) -> None:
        """Starts the thread. It polls at once, or pauses as after a poll that took `worked_s`."""
        if worked_s is not None:
            self._pause_s = self._pause_after(worked_s)
        self._thread.start()

    def stop(self, timeout_s: float | None = None) -> None:
        """Starts no further poll and waits up to `timeout_s` for the one in progress."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopped.wait(self._pause_s):
            self._pause_s = self._pause_after(self._poll())

    def _pause_after(self, worked_s: float) -> float:
        return min(max(self._period_s, DUTY * worked_s), self._max_pause_s)
