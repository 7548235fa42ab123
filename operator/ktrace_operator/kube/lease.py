# SPDX-License-Identifier: Apache-2.0
"""Which replica acts: a Lease, and a fence that keeps a replica that was paused from writing.

A Lease alone does not stop a process that slept through its end. So every write asks may_write()
right before it is sent: it must end, timeouts included, while the Lease is still ours by our own
monotonic clock, which began before the renewal was sent.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from ktrace_operator import metrics
from ktrace_operator.errors import AlreadyExists, ApiError, Conflict, Unavailable
from ktrace_operator.kube.client import Kube
from ktrace_operator.settings import LeaseSettings

logger = logging.getLogger(__name__)


class Lease:
    """Blocks where it talks to the API server: keep it off the event loop."""

    def __init__(
        self,
        kube: Kube,
        settings: LeaseSettings,
        identity: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube, self._settings, self._identity, self._clock = kube, settings, identity, clock
        self._good_until = float("-inf")
        self._seen: tuple[str, str] | None = None
        """Holder and renewal time that another replica's Lease had, and since when."""
        self._seen_at = 0.0
        self._stop = threading.Event()

    @property
    def held(self) -> bool:
        """Whether this replica leads, by its own clock."""
        return not self._settings.enabled or self._clock() < self._good_until

    def may_write(self, seconds: float) -> None:
        """Raises Unavailable where a write of that length might outlive the Lease."""
        if self._settings.enabled and self._clock() + seconds > self._good_until:
            raise Unavailable("the Lease was not renewed in time; nothing is written")

    def acquire(self) -> bool:
        """Waits until this replica leads; False where stop() was called before."""
        metrics.leading.labels(self._settings.name).set(0)
        while not self._stop.is_set():
            try:
                if not self._settings.enabled or self.try_once():
                    metrics.leading.labels(self._settings.name).set(1)
                    logger.info("%s leads", self._identity)
                    return True
            except ApiError as error:
                logger.warning("the Lease cannot be taken: %s", error)
            self._stop.wait(self._settings.renew_seconds)
        return False

    def stop(self) -> None:
        """Ends acquire() and keep() soon."""
        self._stop.set()

    def keep(self) -> None:
        """Renews until the Lease is lost or close() is called."""
        while not self._stop.wait(self._settings.renew_seconds):
            if not self._settings.enabled:
                continue
            try:
                if not self.try_once():
                    break
            except (Conflict, AlreadyExists):
                continue  # read again at the next turn: it may still be ours
            except ApiError as error:
                logger.warning("the Lease cannot be renewed: %s", error)
            if not self.held:
                break
        metrics.leading.labels(self._settings.name).set(0)

    def close(self) -> None:
        """Stops, and lets another replica lead at once."""
        self.stop()
        if not self._settings.enabled or not self.held:
            return
        self._good_until = float("-inf")
        try:
            lease = self._kube.lease(self._settings.namespace, self._settings.name)
            if lease and lease["spec"].get("holderIdentity") == self._identity:
                self._kube.write_lease(self._record(lease, holder=""))
        except ApiError as error:
            logger.warning("the Lease was not given back: %s", error)

    def seize(self) -> None:
        """Takes the Lease from whoever has it, and returns when that one writes no more.

        It is neither renewed nor given back: others wait for as long as these settings say.
        """
        while True:
            lease = self._kube.lease(self._settings.namespace, self._settings.name)
            try:
                self._kube.write_lease(self._record(lease, holder=self._identity))
            except (Conflict, AlreadyExists):
                continue  # its holder renewed it in between
            old = (lease or {}).get("spec") or {}
            if old.get("holderIdentity"):
                self._stop.wait(old.get("leaseDurationSeconds") or self._settings.duration_seconds)
            return

    def try_once(self) -> bool:
        """Takes or renews the Lease; False if it is another's."""
        began = self._clock()
        lease = self._kube.lease(self._settings.namespace, self._settings.name)
        if lease is not None and not self._free(lease.get("spec") or {}, began):
            return False
        self._kube.write_lease(self._record(lease, holder=self._identity))
        self._good_until = began + self._settings.duration_seconds
        return True

    def _free(self, spec: Mapping[str, Any], now: float) -> bool:
        """Whether it is ours, nobody's, or was not renewed for its whole length while we looked.

        Only our own clock is asked, so clocks of other machines may be wrong.
        """
        holder, renewed = spec.get("holderIdentity") or "", str(spec.get("renewTime") or "")
        if holder in ("", self._identity):
            return True
        if self._seen != (holder, renewed):
            self._seen, self._seen_at = (holder, renewed), now
        length = spec.get("leaseDurationSeconds") or self._settings.duration_seconds
        return now - self._seen_at > length

    def _record(self, lease: Mapping[str, Any] | None, holder: str) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        old = (lease or {}).get("spec") or {}
        same = old.get("holderIdentity") == holder
        metadata = {"name": self._settings.name, "namespace": self._settings.namespace}
        if lease is not None:
            metadata["resourceVersion"] = lease["metadata"]["resourceVersion"]
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": self._settings.duration_seconds,
                "acquireTime": old.get("acquireTime") if same else now,
                "renewTime": now,
                "leaseTransitions": int(old.get("leaseTransitions") or 0)
                + (bool(holder) and not same),
            },
        }
