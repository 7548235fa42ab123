# SPDX-License-Identifier: Apache-2.0
"""Whether this process still does its work: silence is noticed, and said by a probe.

A deaf watch looks like a quiet cluster from inside. So snapshots are listed every minute (only
their metadata, from the API server's cache): what a watch did not tell within 75 s is a fault.
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
    """Compares what a watch told with what a list says. Keys are (namespace, name)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[tuple[str, str], str] = {}
        self._behind: dict[tuple[str, str], tuple[str, float]] = {}
        """Version that a list knows and the watch does not, and since when."""

    def told(self, key: tuple[str, str], version: str | None) -> None:
        """The watch told of an object, or, with None, of its end."""
        if version is None:
            self._told.pop(key, None)
        else:
            self._told[key] = version
        self._behind.pop(key, None)

    def listed(
        self, versions: Mapping[tuple[str, str], str], namespaces: Collection[str] | None = None
    ) -> set[tuple[str, str]]:
        """Takes a list; gives the keys that the watch did not tell of (any more).

        namespaces: those that were listed, None: all. Of the others nothing is known, so nothing
        about them changes.
        """
        differ = {key for key, version in versions.items() if self._told.get(key) != version}
        gone = {key for key in self._told.keys() - versions.keys() if _within(key, namespaces)}
        now = self._clock()
        for key in differ | gone:
            self._behind.setdefault(key, (versions.get(key, ""), now))
        for key in [one for one in self._behind if one not in differ | gone]:
            if _within(key, namespaces):
                del self._behind[key]
        for key in gone:
            del self._told[key]
        return differ | gone

    @property
    def behind(self) -> float:
        """Seconds for which a list has known what the watch has not told."""
        return self._clock() - min((at for _, at in self._behind.values()), default=self._clock())


def _within(key: tuple[str, str], namespaces: Collection[str] | None) -> bool:
    return namespaces is None or key[0] in namespaces


class Health:
    """What the probes ask."""

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
        """Whether this replica has led and acts; a replica that waits for its turn is well."""

    def faults(self) -> list[str]:
        """What is wrong, one line each."""
        found = []
        if (lag := self._clock() - self._ticked - _TICK) > LAG_SECONDS:
            found.append(f"the event loop is {lag:.0f} s late")
        if not self.acting:
            return found
        if (age := self._queue_age()) > QUEUE_SECONDS:
            found.append(f"a key has waited for {age:.0f} s")
        if (behind := self._watches.behind) > WATCH_SECONDS:
            found.append(f"a watch has been silent for {behind:.0f} s")
        if not self._leads():
            found.append("the Lease is lost")
        return found

    async def tick(self) -> None:
        """Measures the event loop until it is cancelled."""
        while True:
            began = self._clock()
            await asyncio.sleep(_TICK)
            self._ticked = self._clock()
            metrics.loop_lag.observe(max(0.0, self._ticked - began - _TICK))

    async def serve(self, port: int) -> web.AppRunner:
        """Answers /healthz and /readyz: 200, or 503 with what is wrong."""

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
