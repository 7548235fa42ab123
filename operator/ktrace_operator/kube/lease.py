# SPDX-License-Identifier: Apache-2.0
"""Leader election with a Lease, and a fence that stops writes of a paused replica.

A Lease alone does not stop a process that was suspended while it expired. So may_write() is called
right before every write. The write, including its timeouts, must end while this replica holds the
Lease by its own monotonic clock, measured from before the renewal was sent.
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
    """One replica's view of the Lease. Requests block, so call it outside the event loop."""

    def __init__(
        self,
        kube: Kube,
        settings: LeaseSettings,
        identity: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube, self._settings, self._identity, self._clock = kube, settings, identity, clock
        self._good_until = float("-inf")
        self._observed: tuple[str, str] | None = None
        """Holder and renewal time of another replica's Lease."""
        self._observed_at = 0.0
        """When these two values were first read, by our own clock."""
        self._stop = threading.Event()

    @property
    def held(self) -> bool:
        """Whether this replica is the leader, by its own clock."""
        return not self._settings.enabled or self._clock() < self._good_until

    def may_write(self, seconds: float) -> None:
        """Raises Unavailable if a write of that many seconds might outlast the Lease."""
        if self._settings.enabled and self._clock() + seconds > self._good_until:
            raise Unavailable("Lease not renewed in time; write refused")

    def acquire(self) -> bool:
        """Waits until this replica is the leader. Returns False if stop() was called."""
        metrics.leading.labels(self._settings.name).set(0)
        while not self._stop.is_set():
            try:
                if not self._settings.enabled or self.try_once():
                    metrics.leading.labels(self._settings.name).set(1)
                    logger.info("%s is the leader", self._identity)
                    return True
            except ApiError as error:
                logger.warning("cannot acquire the Lease: %s", error)
            self._stop.wait(self._settings.renew_seconds)
        return False

    def stop(self) -> None:
        """Makes acquire() and keep() return soon."""
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
                continue  # read it again next time: it may still be ours
            except ApiError as error:
                logger.warning("cannot renew the Lease: %s", error)
            if not self.held:
                break
        metrics.leading.labels(self._settings.name).set(0)

    def close(self) -> None:
        """Stops and releases the Lease, so that another replica can take over at once."""
        self.stop()
        if not self._settings.enabled or not self.held:
            return
        self._good_until = float("-inf")
        try:
            lease = self._kube.lease(self._settings.namespace, self._settings.name)
            if lease and lease["spec"].get("holderIdentity") == self._identity:
                self._kube.write_lease(self._record(lease, holder=""))
        except ApiError as error:
            logger.warning("cannot release the Lease: %s", error)

    def seize(self) -> None:
        """Takes the Lease from its holder and returns when that replica can no longer write.

        The Lease is neither renewed nor released: other replicas wait for its whole duration.
        """
        while True:
            lease = self._kube.lease(self._settings.namespace, self._settings.name)
            try:
                self._kube.write_lease(self._record(lease, holder=self._identity))
            except (Conflict, AlreadyExists):
                continue  # its holder renewed it between the read and the write
            old = (lease or {}).get("spec") or {}
            if old.get("holderIdentity"):
                self._stop.wait(old.get("leaseDurationSeconds") or self._settings.duration_seconds)
            return

    def try_once(self) -> bool:
        """Takes or renews the Lease. Returns False if another replica holds it."""
        began = self._clock()
        lease = self._kube.lease(self._settings.namespace, self._settings.name)
        if lease is not None and not self._free(lease.get("spec") or {}, began):
            return False
        self._kube.write_lease(self._record(lease, holder=self._identity))
        self._good_until = began + self._settings.duration_seconds
        return True

    def _free(self, spec: Mapping[str, Any], now: float) -> bool:
        """Whether this replica may take the Lease: it is ours, has no holder, or has expired.

        It has expired if its values did not change for its whole duration by our own clock, so
        the clocks of other machines may be wrong.
        """
        holder, renewed = spec.get("holderIdentity") or "", str(spec.get("renewTime") or "")
        if holder in ("", self._identity):
            return True
        if self._observed != (holder, renewed):
            self._observed, self._observed_at = (holder, renewed), now
        length = spec.get("leaseDurationSeconds") or self._settings.duration_seconds
        return now - self._observed_at > length

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
