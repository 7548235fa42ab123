# SPDX-License-Identifier: Apache-2.0
"""Nodes on which no agent can be started yet: for how long, and what others have to do with it."""

import logging
from datetime import timedelta

import pytest

from ktrace_api.names import NodeReason, Outcome, Phase
from ktrace_operator.errors import Denied
from ktrace_operator.serve.reconcile import SnapshotKey
from tests.operator.serve.model import (
    NAMESPACE,
    ApiModel,
    Crash,
    Run,
    begun,
    goes_on,
    later,
    names,
    result,
)


def test_a_busy_node_is_waited_for_but_not_for_ever(model: ApiModel, run: Run):
    operator = run()
    begun(model, operator, "first", names("node-a"))
    second = model.apply("second", names("node-a"))
    assert operator.settle(second) == timedelta(seconds=5)
    assert len(model.pods) == 1
    later(model, 899)
    operator.settle(second)
    assert not model.status(second).finished
    later(model, 1)
    operator.settle(second)
    busy = result(model.status(second), "node-a")
    assert (busy.outcome, busy.reason) == (Outcome.SKIPPED, NodeReason.NODE_BUSY)
    assert "first" in (busy.message or "")


@pytest.mark.parametrize("served", [("team-a", NAMESPACE), (NAMESPACE, "team-a")], ids=str)
def test_a_namespace_without_rights_stops_no_other(
    model: ApiModel, run: Run, served: tuple[str, ...], caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "ktrace_operator")
    operator = run(namespaces=served)
    model.closed = {"team-a"}
    for name in ("one", "two"):
        key = model.apply(name, names(f"node-{'a' if name == 'one' else 'b'}"))
        goes_on(model, operator, key, 100)
        assert model.status(key).phase is Phase.COMPLETED
    said = [one.getMessage() for one in caplog.records if "team-a" in one.getMessage()]
    assert len(said) == 1, "once, not at each look"
    model.closed.clear()
    goes_on(model, operator, model.apply("three", names("node-a")), 10)
    said = [one.getMessage() for one in caplog.records if "team-a" in one.getMessage()]
    assert len(said) == 2


def test_a_denial_in_its_own_namespace_is_no_empty_list(model: ApiModel, run: Run):
    operator = run()
    key = model.apply("own", names("node-a"))
    model.closed = {NAMESPACE}
    with pytest.raises(Denied):
        operator.look(key)


@pytest.fixture
def waves(model: ApiModel) -> SnapshotKey:
    """20 nodes, four at a time."""
    for number in range(17):
        model.node(f"node-{number:02d}")
    return model.apply("waves", {"nodes": {"selector": {}, "parallelism": 4}})


@pytest.mark.parametrize("refusal", ["403: denied by a policy", "403: exceeded quota: pods"])
def test_a_short_denial_costs_no_later_wave(
    model: ApiModel, run: Run, waves: SnapshotKey, refusal: str
):
    operator = run()
    goes_on(model, operator, waves, 130)
    model.refusal = Denied(refusal, 403)
    goes_on(model, operator, waves, 100)
    assert not model.status(waves).nodes.skipped
    model.refusal = None
    goes_on(model, operator, waves, 300)
    assert model.status(waves).phase is Phase.COMPLETED


@pytest.mark.parametrize(
    ("refusal", "limit"), [("403: denied by a policy", 120), ("403: exceeded quota: pods", 900)]
)
def test_a_denial_that_stays_ends_the_snapshot_in_time(
    model: ApiModel, run: Run, waves: SnapshotKey, refusal: str, limit: int
):
    operator = run()
    goes_on(model, operator, waves, 130)
    model.refusal = Denied(refusal, 403)
    goes_on(model, operator, waves, 30)
    ended = max(one.ended_at for one in model.status(waves).results if one.ended_at)
    model.now = ended + timedelta(seconds=limit - 1)
    operator.settle(waves)
    assert not model.status(waves).nodes.skipped
    later(model, 1)
    goes_on(model, operator, waves, 30)
    status = model.status(waves)
    assert status.phase is Phase.PARTIALLY_COMPLETED
    skipped = [one for one in status.results if one.outcome is Outcome.SKIPPED]
    assert {one.reason for one in skipped} == {NodeReason.UNSCHEDULABLE}
    assert len(skipped) == 12


def test_a_busy_node_is_waited_for_when_its_turn_has_come(model: ApiModel, run: Run):
    operator = run()
    other = begun(model, operator, "other", names("node-b", "node-c"))
    nodes = {"names": ["node-a", "node-b", "node-c"], "parallelism": 1}
    key = model.apply("waits", {"nodes": nodes, "duration": "600s"})
    goes_on(model, operator, key, 960, each=950)
    status = model.status(key)
    assert (status.nodes.succeeded, status.nodes.pending) == (1, 2), "their turn comes only now"
    goes_on(model, operator, key, 60)
    for node in ("node-b", "node-c"):
        model.succeed(model.pod_of(node))
    operator.settle(other)
    goes_on(model, operator, key, 200)
    assert model.status(key).phase is Phase.COMPLETED


def test_a_node_that_stays_busy_is_given_up_after_its_turn(model: ApiModel, run: Run):
    operator = run()
    operator.settle(model.apply("other", names("node-a", "node-c")))
    key = model.apply("waits", {"nodes": {"names": list(model.nodes), "parallelism": 1}})
    goes_on(model, operator, key, 100)
    [ended] = [one.ended_at for one in model.status(key).results if one.ended_at]
    model.now = ended + timedelta(seconds=899)
    operator.settle(key)
    assert model.status(key).nodes.pending == 2
    later(model, 1)
    operator.settle(key)
    status = model.status(key)
    assert status.phase is Phase.PARTIALLY_COMPLETED
    assert result(status, "node-a").reason is NodeReason.NODE_BUSY
    assert result(status, "node-c").reason is NodeReason.NODE_BUSY


def test_a_node_that_is_given_up_holds_its_place_until_that_is_written(model: ApiModel, run: Run):
    operator = run()
    key = model.apply("one", {"nodes": {"names": ["node-a", "node-b"], "parallelism": 1}})
    operator.settle(key)
    later(model, 120)
    operator.kube.crash_after = 1
    with pytest.raises(Crash):
        operator.settle(key)
    late = model.pod_of("node-a")
    assert "deletionTimestamp" not in late["metadata"]
    assert len(model.pods) == 1, "it may still start"
    run().settle(key)
    assert result(model.status(key), "node-a").reason is NodeReason.START_TIMEOUT
    assert "deletionTimestamp" in late["metadata"] or late not in model.pods.values()
    assert model.pod_of("node-b")
