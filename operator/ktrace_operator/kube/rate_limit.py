# SPDX-License-Identifier: Apache-2.0
"""Limits the operator's rate of writes, over all snapshots."""

import threading
import time
from collections.abc import Callable


class TokenBucket:
    """Issues `rate` tokens per second and up to `burst` at once. Safe for threads.

    A token is counted when it is reserved, before the wait for it, so that callers are served in
    the order of their calls.
    """

    def __init__(
        self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._tokens, self._at = burst, clock()
        self._lock = threading.Lock()

    def reserve(self) -> float:
        """Reserves a token. Returns the seconds to wait before using it."""
        with self._lock:
            now = self._clock()
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now
            self._tokens -= 1
            return max(0.0, -self._tokens / self._rate)

    def take(self) -> None:
        """Waits for a token."""
        if (seconds := self.reserve()) > 0:
            time.sleep(seconds)
