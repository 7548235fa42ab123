# SPDX-License-Identifier: Apache-2.0
"""Liveness of this process, served as probes.

A broken watch cannot be distinguished from a quiet cluster. So snapshots are listed every minute
(only their metadata, from the API server's cache). A change that the list shows and the watch has
not delivered within 75 s is a fault.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping

from aiohttp import web

from ktrace_operator import metrics

QUEUE_SECONDS = 60.0
WATCH_SECONDS = 75.0
LAG_SECONDS = 5.0
_TICK = 1.0

logger = logging.getLogger(__name__)


class WatchCheck:
    """Compares the versions that a watch delivered with those of a list.

    Keys are (namespace, name).
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._delivered: dict[tuple[str, str], str] = {}
        self._behind: dict[tuple[str, str], tuple[str, float]] = {}
        """Versions that a list has shown and the watch has not delivered, and since when."""

    def delivered(self, key: tuple[str, str], version: str | None) -> None:
        """Records an object that the watch delivered. None: it delivered the deletion."""
        if version is None:
            self._delivered.pop(key, None)
        else:
            self._delivered[key] = version
        self._behind.pop(key, None)

    def listed(
        self, versions: Mapping[tuple[str, str], str], namespaces: Collection[str] | None = None
    ) -> set[tuple[str, str]]:
        """Records a list and returns the keys whose change or deletion the watch did not deliver.

        namespaces: those that were listed, None: all. The state of other namespaces is kept.
        """
        differ = {key for key, version in versions.items() if self._delivered.get(key) != version}
        gone = {key for key in self._delivered.keys() - versions.keys() if _within(key, namespaces)}
        now = self._clock()
        for key in differ | gone:
            self._behind.setdefault(key, (versions.get(key, ""), now))
        for key in [one for one in self._behind if one not in differ | gone]:
            if _within(key, namespaces):
                del self._behind[key]
        for key in gone:
            del self._delivered[key]
        return differ | gone

    @property
    def behind(self) -> float:
        """Seconds since a list first showed a change that the watch has not delivered."""
        return self._clock() - min((at for _, at in self._behind.values()), default=self._clock())


def _within(key: tuple[str, str], namespaces: Collection[str] | None) -> bool:
    return namespaces is None or key[0] in namespaces


class Health:
    """The state behind the probes."""

    def __init__(
        self,
        queue_age: Callable[[], float],
        watches: WatchCheck,
        leads: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue_age, self._watches, self._leads, self._clock = (
            queue_age,
            watches,
            leads,
            clock,
        )
        self._ticked = clock()
        self.acting = False
        """Whether this replica has become the leader. A replica that waits is healthy."""

    def faults(self) -> list[str]:
        """Current faults, one line each."""
        found = []
        if (lag := self._clock() - self._ticked - _TICK) > LAG_SECONDS:
            found.append(f"event loop {lag:.0f} s late")
        if not self.acting:
            return found
        if (age := self._queue_age()) > QUEUE_SECONDS:
            found.append(f"oldest key in the queue is {age:.0f} s old")
        if (behind := self._watches.behind) > WATCH_SECONDS:
            found.append(f"a watch is {behind:.0f} s behind the API server")
        if not self._leads():
            found.append("Lease lost")
        return found

    async def tick(self) -> None:
        """Measures the event loop's delay until it is cancelled."""
        while True:
            began = self._clock()
            await asyncio.sleep(_TICK)
            self._ticked = self._clock()
            metrics.loop_lag.observe(max(0.0, self._ticked - began - _TICK))

    async def serve(self, port: int) -> web.AppRunner:
        """Serves /healthz and /readyz: 200, or 503 with the faults as text."""

        async def answer(_request: web.Request) -> web.Response:
            faults = self.faults()
            for fault in faults:
                logger.error("%s", fault)
            return web.Response(
                status=503 if faults else 200, text="\n".join(faults or ["ok"]) + "\n"
            )

        application = web.Application()
        application.router.add_get("/healthz", answer)
        application.router.add_get("/readyz", answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, None, port).start()
        return runner
