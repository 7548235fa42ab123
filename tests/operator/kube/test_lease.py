# SPDX-License-Identifier: Apache-2.0
"""Who leads, and that who was paused does not write."""

from typing import Any

import pytest

from ktrace_operator.errors import ApiError, Conflict, Unavailable
from ktrace_operator.kube.lease import Lease
from ktrace_operator.settings import LeaseSettings
from ktrace_operator.timeouts import LONGEST_WRITE_SECONDS

SETTINGS = LeaseSettings(duration_seconds=15, renew_seconds=5)


class Cluster:
    """One Lease in an API server, and a clock for each replica."""

    def __init__(self) -> None:
        self.object: dict[str, Any] | None = None
        self.version = 0
        self.fails: ApiError | None = None

    def lease(self, namespace: str, name: str) -> dict[str, Any] | None:
        if self.fails:
            raise self.fails
        return self.object

    def write_lease(self, lease: dict[str, Any]) -> dict[str, Any]:
        mine = lease["metadata"].get("resourceVersion")
        theirs = self.object["metadata"]["resourceVersion"] if self.object else None
        if mine != theirs:
            raise Conflict("the Lease was changed", 409)
        self.version += 1
        metadata = lease["metadata"] | {"resourceVersion": str(self.version)}
        self.object = {"metadata": metadata, "spec": lease["spec"] | {"n": self.version}}
        self.object["spec"]["renewTime"] = f"time-{self.version}"
        return self.object


class Replica:
    def __init__(self, cluster: Cluster, name: str) -> None:
        self.now = 1000.0
        self.lease = Lease(cluster, SETTINGS, name, clock=lambda: self.now)  # type: ignore[arg-type]


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def test_one_leads_and_the_other_waits_for_its_whole_length(cluster: Cluster):
    one, two = Replica(cluster, "one"), Replica(cluster, "two")
    assert one.lease.try_once()
    assert not two.lease.try_once()
    two.now += 15
    assert not two.lease.try_once(), "it was looked at for 15 s, not for more"
    two.now += 0.1
    assert two.lease.try_once()
    assert cluster.object is not None
    assert cluster.object["spec"]["holderIdentity"] == "two"


def test_a_renewal_makes_the_other_wait_anew(cluster: Cluster):
    one, two = Replica(cluster, "one"), Replica(cluster, "two")
    one.lease.try_once()
    two.lease.try_once()
    two.now += 14
    one.lease.try_once()
    two.lease.try_once()
    two.now += 14
    assert not two.lease.try_once()


def test_who_was_paused_does_not_write(cluster: Cluster):
    one = Replica(cluster, "one")
    one.lease.try_once()
    one.lease.may_write(8)
    one.now += 7.5
    with pytest.raises(Unavailable):
        one.lease.may_write(8)
    assert one.lease.held
    one.now += 60
    with pytest.raises(Unavailable):
        one.lease.may_write(0.001)
    assert not one.lease.held


def test_a_write_that_was_begun_ends_before_another_can_lead(cluster: Cluster):
    one, two = Replica(cluster, "one"), Replica(cluster, "two")
    one.lease.try_once()
    two.lease.try_once()
    began = one.now
    while True:
        try:
            one.lease.may_write(8)
        except Unavailable:
            break
        began = one.now
        one.now += 0.5
    two.now = began + 8
    assert not two.lease.try_once(), "the last write that was allowed may still be under way"


def test_the_clock_starts_before_the_renewal_is_sent(cluster: Cluster):
    one = Replica(cluster, "one")
    read = cluster.lease

    def slow(namespace: str, name: str) -> dict[str, Any] | None:
        one.now += 9
        return read(namespace, name)

    cluster.lease = slow  # type: ignore[method-assign]
    assert one.lease.try_once()
    one.now += 6
    assert not one.lease.held


def test_two_at_the_same_time(cluster: Cluster):
    one, two = Replica(cluster, "one"), Replica(cluster, "two")
    read = cluster.lease

    def interrupted(namespace: str, name: str) -> dict[str, Any] | None:
        found = read(namespace, name)
        cluster.lease = read  # type: ignore[method-assign]
        two.lease.try_once()
        return found

    cluster.lease = interrupted  # type: ignore[method-assign]
    with pytest.raises(Conflict):
        one.lease.try_once()
    assert not one.lease.held
    assert two.lease.held


def test_a_replica_that_ends_gives_the_lease_back(cluster: Cluster):
    one, two = Replica(cluster, "one"), Replica(cluster, "two")
    one.lease.try_once()
    one.lease.close()
    assert not one.lease.held
    assert two.lease.try_once()
    assert cluster.object is not None
    assert cluster.object["spec"]["leaseTransitions"] == 2


def test_the_lease_ends_with_the_api_server_gone(cluster: Cluster):
    # Shorter than any that an administrator can set, so that the test need not wait.
    settings = LeaseSettings().model_copy(update={"duration_seconds": 1, "renew_seconds": 1})
    lease = Lease(cluster, settings, "one")  # type: ignore[arg-type]
    lease.acquire()
    cluster.fails = Unavailable("down")
    lease.keep()
    assert not lease.held


def test_a_lease_that_is_as_short_as_may_be_lets_writes_through(cluster: Cluster):
    shortest = LeaseSettings(renew_seconds=5, duration_seconds=13)
    now = [1000.0]
    lease = Lease(cluster, shortest, "one", clock=lambda: now[0])  # type: ignore[arg-type]
    lease.try_once()
    now[0] += shortest.renew_seconds
    lease.may_write(LONGEST_WRITE_SECONDS)
    with pytest.raises(ValueError, match="at least 13"):
        LeaseSettings(renew_seconds=5, duration_seconds=12)


def test_without_a_lease_everybody_may_write(cluster: Cluster):
    lease = Lease(cluster, LeaseSettings(enabled=False), "one")  # type: ignore[arg-type]
    lease.acquire()
    lease.may_write(1000)
    assert lease.held
    assert cluster.object is None


class OneLease:
    """An API server that holds one Lease; the next write fails as often as it is told to."""

    def __init__(self, spec: dict[str, Any], conflicts: int = 0) -> None:
        self.object = {"metadata": {"resourceVersion": "1"}, "spec": spec} if spec else {}
        self.conflicts = conflicts

    def lease(self, namespace: str, name: str) -> dict[str, Any] | None:
        return self.object or None

    def write_lease(self, lease: dict[str, Any]) -> dict[str, Any]:
        if self.conflicts:
            self.conflicts -= 1
            raise Conflict("the object has been modified", 409)
        self.object = lease
        return lease


@pytest.mark.parametrize("conflicts", [0, 3])
def test_an_uninstall_takes_the_lease_from_its_holder(conflicts: int):
    held = {"holderIdentity": "operator-1", "renewTime": "t", "leaseDurationSeconds": 1}
    kube = OneLease(held, conflicts)
    Lease(kube, LeaseSettings(duration_seconds=120), "release").seize()  # type: ignore[arg-type]
    assert kube.object["spec"]["holderIdentity"] == "release"
    assert kube.object["spec"]["leaseDurationSeconds"] == 120
    operator = Lease(kube, LeaseSettings(), "operator-1")  # type: ignore[arg-type]
    assert not operator.try_once()
    assert not operator.held


def test_a_lease_that_nobody_holds_is_taken_at_once():
    kube = OneLease({})
    Lease(kube, LeaseSettings(), "release").seize()  # type: ignore[arg-type]
    assert kube.object["spec"]["holderIdentity"] == "release"
