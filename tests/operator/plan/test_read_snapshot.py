# SPDX-License-Identifier: Apache-2.0
"""A snapshot that another version wrote: what this one cannot read it does not write over."""

import copy
import logging
from datetime import timedelta
from typing import Any

import pytest

from ktrace_api.names import ConditionReason, ConditionType, NodeReason, Outcome, Phase
from ktrace_operator.serve.reconcile import SnapshotKey
from tests.operator.serve.model import ApiModel, Crash, Operator, Run, goes_on, later, names, result

NEW_FINDING = {"id": "NEW_FINDING", "severity": "info", "title": "t", "count": 1, "nodes": 1}


def new_finding(status: dict[str, Any]) -> None:
    status["findings"] = [NEW_FINDING | {"subject": "-"}]


def new_node_reason(status: dict[str, Any]) -> None:
    status["results"][0]["reason"] = "NewReason"


def new_condition_reason(status: dict[str, Any]) -> None:
    status["conditions"][0]["reason"] = "NewReason"


def new_condition(status: dict[str, Any]) -> None:
    status["conditions"].insert(0, status["conditions"][0] | {"type": "Delivered"})


def new_field(status: dict[str, Any]) -> None:
    status["bundles"] = {"count": 7}


ANOTHER_VERSIONS = [new_finding, new_node_reason, new_condition_reason, new_condition, new_field]


def changed_by(model: ApiModel, key: SnapshotKey, change: Any) -> dict[str, Any]:
    """The object after another version wrote its status."""
    found = model.snapshots[key]
    change(found["status"])
    found["metadata"]["resourceVersion"] = model.version()
    return copy.deepcopy(found)


def completed(model: ApiModel, operator: Operator) -> SnapshotKey:
    key = model.apply("ended", names("node-a", "node-b"))
    goes_on(model, operator, key, 80)
    assert model.status(key).phase is Phase.COMPLETED
    return key


@pytest.mark.parametrize("change", ANOTHER_VERSIONS)
@pytest.mark.parametrize("spec", [{}, {"newField": 1}], ids=["spec", "new spec"])
def test_an_end_that_cannot_be_read_stays(
    model: ApiModel, run: Run, change: Any, spec: dict[str, Any]
):
    operator = run()
    key = completed(model, operator)
    model.snapshots[key]["spec"] |= spec
    before = changed_by(model, key, change)
    writes = model.writes
    assert operator.settle(key) is None
    later(model, 1000)
    run().settle(key)
    assert model.snapshots[key] == before
    assert model.writes == writes


def test_pods_that_are_left_of_it_go(model: ApiModel, run: Run):
    operator = run()
    key = model.apply("ended", names("node-a"))
    operator.settle(key)
    model.succeed(model.pod_of("node-a"))
    operator.kube.crash_after = 1
    with pytest.raises(Crash):
        operator.settle(key)
    assert model.status(key).finished
    assert model.pods, "it died before it let them go"
    before = changed_by(model, key, new_finding)
    again = run()
    again.settle(key)
    assert not model.pods
    assert again.settle(key) is None
    assert model.snapshots[key] == before


@pytest.mark.parametrize("change", [new_finding, new_condition_reason, new_field])
def test_what_is_under_way_is_left_alone_until_it_can_be_read(
    model: ApiModel, run: Run, change: Any, caplog: pytest.LogCaptureFixture
):
    operator = run()
    key = model.apply("runs", names("node-a", "node-b"))
    goes_on(model, operator, key, 10)
    good = copy.deepcopy(model.snapshots[key]["status"])
    before = changed_by(model, key, change)
    pods, writes = copy.deepcopy(model.pods), model.writes
    for _ in range(10):
        assert operator.settle(key) == timedelta(seconds=30), "it is looked at again"
        later(model, 30)
    assert (model.snapshots[key], model.pods, model.writes) == (before, pods, writes)
    said = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert len(said) == 1, "once, not at each look"
    assert "status" in said[0].getMessage()
    assert str(key) in said[0].getMessage()
    model.snapshots[key]["status"] = good
    goes_on(model, operator, key, 80)
    assert model.status(key).phase is Phase.COMPLETED


def test_a_spec_that_cannot_be_read_keeps_what_the_status_has(model: ApiModel, run: Run):
    operator = run()
    key = model.apply("mixed", {"nodes": {"names": ["node-a", "node-b"], "parallelism": 1}})
    goes_on(model, operator, key, 80)
    before = result(model.status(key), "node-a")
    assert before.outcome is Outcome.SUCCEEDED
    model.snapshots[key]["spec"]["newField"] = 1
    operator.settle(key)
    status = model.status(key)
    assert result(status, "node-a") == before
    assert result(status, "node-b").reason is NodeReason.CANCELED
    succeeded = status.condition(ConditionType.SUCCEEDED)
    assert succeeded is not None
    assert succeeded.reason is ConditionReason.INVALID_SPEC


def test_a_snapshot_that_was_deleted_meanwhile_leaves_nothing(model: ApiModel, run: Run):
    operator = run()
    key = model.apply("runs", names("node-a"))
    goes_on(model, operator, key, 10)
    changed_by(model, key, new_finding)
    operator.settle(key)
    pod = model.pod_of("node-a")
    model.delete_snapshot(key)
    operator.settle(key)
    model.end(pod, "", 143)
    assert operator.settle(key) is None
    assert not model.pods
