# SPDX-License-Identifier: Apache-2.0
"""Limits how fast the operator writes, over all snapshots together."""

import threading
import time
from collections.abc import Callable


class TokenBucket:
    """Gives `rate` tokens a second, at most `burst` at once. Safe for threads.

    A taker is told how long to wait and its token is counted at once, so that takers are served
    in the order in which they came.
    """

    def __init__(
        self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._tokens, self._at = burst, clock()
        self._lock = threading.Lock()

    def reserve(self) -> float:
        """Seconds to wait before the token that was just taken may be used."""
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
