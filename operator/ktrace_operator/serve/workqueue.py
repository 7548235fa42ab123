# SPDX-License-Identifier: Apache-2.0
"""A queue of keys with the semantics of controller-runtime's workqueue.

A key is queued only once, is processed by one worker at a time, and is processed again if it was
added during its processing.
"""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Generic, TypeVar

from ktrace_operator import metrics
from ktrace_operator.errors import ApiError, Conflict

Key = TypeVar("Key")
NAME = metrics.CONTROLLER
FIRST_DELAY, LAST_DELAY = 0.5, 60.0
"""Seconds before the first and the latest retries, shortened by up to half at random."""

logger = logging.getLogger(__name__)


class WorkQueue(Generic[Key]):
    """All methods but `run` return at once and must be called from the event loop's thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: deque[Key] = deque()
        self._since: dict[Key, float] = {}
        """When each waiting key was added."""
        self._working: dict[Key, float] = {}
        self._again: set[Key] = set()
        """Keys that were added during their processing."""
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._wakeup = asyncio.Condition()
        self._notices: set[asyncio.Task[None]] = set()

    def add(self, key: Key) -> None:
        """Queues the key unless it is already queued."""
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()
        if key in self._working:
            self._again.add(key)
            return
        if key in self._since:
            return
        self._since[key] = self._clock()
        self._waiting.append(key)
        metrics.queue_adds.labels(NAME).inc()
        metrics.queue_depth.labels(NAME).set(len(self._waiting))
        notice = asyncio.get_running_loop().create_task(self._notify())
        self._notices.add(notice)
        notice.add_done_callback(self._notices.discard)

    def add_after(self, key: Key, seconds: float) -> None:
        """Adds the key later. Of several times, the earliest counts."""
        loop = asyncio.get_running_loop()
        due = loop.time() + max(0.0, seconds)
        if (timer := self._timers.get(key)) is not None:
            if timer.when() <= due:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(due, self._ring, key)

    def _ring(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)

    async def _notify(self) -> None:
        async with self._wakeup:
            self._wakeup.notify()

    @property
    def oldest(self) -> float:
        """Seconds since the oldest waiting key was added or the oldest processing began."""
        times = [*self._since.values(), *self._working.values()]
        return self._clock() - min(times) if times else 0.0

    def unfinished(self) -> list[float]:
        """Seconds of processing so far, for each key in work. Safe for all threads."""
        now = self._clock()
        return [now - began for began in list(self._working.values())]

    async def run(self, workers: int, work: Callable[[Key], Awaitable[timedelta | None]]) -> None:
        """Processes keys until it is cancelled.

        `work` returns the delay until the key is due again, or None. If it raises, the key is
        retried with growing delays.
        """
        metrics.max_workers.labels(NAME).set(workers)
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._worker(work))

    async def _worker(self, work: Callable[[Key], Awaitable[timedelta | None]]) -> None:
        while True:
            key = await self._next()
            with metrics.active_workers.labels(NAME).track_inprogress():
                await self._one(key, work)

    async def _next(self) -> Key:
        async with self._wakeup:
            while not self._waiting:
                await self._wakeup.wait()
            key = self._waiting.popleft()
        now = self._clock()
        metrics.queue_wait_seconds.labels(NAME).observe(now - self._since.pop(key))
        metrics.queue_depth.labels(NAME).set(len(self._waiting))
        self._working[key] = now
        return key

    async def _one(self, key: Key, work: Callable[[Key], Awaitable[timedelta | None]]) -> None:
        try:
            with metrics.reconcile_seconds.labels(NAME).time():
                again = await work(key)
        except Exception as error:  # noqa: BLE001 - a failure of one key must not stop the others
            self._failed(key, error)
        else:
            self._failures.pop(key, None)
            result = "success" if again is None else "requeue_after"
            metrics.reconciles.labels(NAME, result).inc()
            if again is not None:
                self.add_after(key, again.total_seconds())
        finally:
            self._working.pop(key, None)
            if key in self._again:
                self._again.discard(key)
                self.add(key)

    def _failed(self, key: Key, error: Exception) -> None:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay = min(LAST_DELAY, FIRST_DELAY * 2 ** min(failures - 1, 16))
        delay *= random.uniform(0.5, 1.0)  # noqa: S311 - spreads retries, not cryptographic
        if isinstance(error, ApiError) and error.retry_after is not None:
            delay = max(delay, min(error.retry_after, LAST_DELAY))
        metrics.queue_retries.labels(NAME).inc()
        metrics.reconcile_errors.labels(NAME).inc()
        metrics.reconciles.labels(NAME, "error").inc()
        if isinstance(error, Conflict):
            logger.info("%s: %s; reading it again", key, error)
        elif isinstance(error, ApiError):
            logger.warning("%s: %s; retrying in %.1f s", key, error, delay)
        else:
            logger.error("%s: retrying in %.1f s", key, delay, exc_info=error)
        self.add_after(key, delay)
