# SPDX-License-Identifier: Apache-2.0
"""Every state of a pod and its node that research and kubelets know of, and what it comes to."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from ktrace_api.names import FINALIZER, NodeReason, Outcome
from ktrace_api.result import AgentResult, Delivered
from ktrace_operator.objects import AgentPod, Node, Running, Terminated, Waiting
from ktrace_operator.plan.agent_state import Case, Ended, Going, in_doubt, observe
from tests.operator.serve.model import SHA, START

UID = "0a1b2c3d-0000-4000-8000-000000000000"
START_LIMIT, RUN_LIMIT = timedelta(seconds=120), timedelta(seconds=424)
SECOND = timedelta(seconds=1)
POD = AgentPod(
    namespace="agents",
    name="pod",
    uid="pod-1",
    created=START,
    snapshot="snap",
    snapshot_uid=UID,
    node_hash="x",
    node_name="node-a",
    finalizers=(FINALIZER,),
    phase="Running",
)
RUNS = replace(POD, container=Running(START + 2 * SECOND))
END_OF_RUN = START + 2 * SECOND + RUN_LIMIT
READY, NOT_READY = Node("node-a"), Node("node-a", {}, False, "NodeStatusUnknown")


def case(pod: AgentPod, after: float, **changes: Any) -> Case:
    known: dict[str, Any] = {"stop": False} | changes
    if "host" in known:
        known["host_read"] = True
    return Case(
        pod=pod,
        node="node-a",
        start_limit=START_LIMIT,
        run_limit=RUN_LIMIT,
        now=START + timedelta(seconds=after),
        **known,
    )


def message(**changes: Any) -> str:
    path = "node=node-a/ktrace.node-a.20260124T215754Z.bundle.tgz"
    fields: dict[str, Any] = {
        "snapshot_uid": UID,
        "node": "node-a",
        "reason": NodeReason.COMPLETED,
        "delivered": Delivered(path=path, bytes=1, sha256=SHA),
    }
    return AgentResult(**(fields | changes)).to_message().decode()


def ended(code: int, text: str = "", reason: str = "Error", **changes: Any) -> AgentPod:
    state = Terminated(code, reason, text, START + 2 * SECOND, START + 60 * SECOND)
    return replace(RUNS, phase="Failed", container=state, **changes)


FAILED_UPLOAD: dict[str, Any] = {"reason": NodeReason.UPLOAD_FAILED, "delivered": None}
DELETED: dict[str, Any] = {"deleting": START + 60 * SECOND}
OTHER_FOLDER = Delivered(path="node=node-b/x.tgz", bytes=1, sha256=SHA)
ABOVE = Delivered(path="node=node-a/../x.tgz", bytes=1, sha256=SHA)


@pytest.mark.parametrize(
    ("pod", "after", "changes", "reason"),
    [
        (ended(0, message(), "Completed"), 61, {}, "Completed"),
        (ended(1, message()), 61, {}, "Completed"),
        (ended(137, message(), reason="Evicted"), 61, {}, "Completed"),
        (ended(0, message(), **DELETED), 61, {"stop": True}, "Completed"),
        (ended(1, message(**FAILED_UPLOAD)), 61, {}, "UploadFailed"),
        (ended(0, message(**FAILED_UPLOAD)), 61, {}, "UploadFailed"),
        (
            ended(1, message(reason="UnsupportedKernel", delivered=None)),
            61,
            {},
            "UnsupportedKernel",
        ),
        (ended(1, message(reason="PermissionDenied", delivered=None)), 61, {}, "PermissionDenied"),
        (ended(1, message(reason="NodeBusy", delivered=None)), 61, {}, "NodeBusy"),
        (ended(1, message(reason="AgentError", delivered=None)), 61, {}, "AgentError"),
        (ended(1, message(reason="NodeLost", delivered=None)), 61, {}, "ProtocolError"),
        (ended(0), 61, {}, "ProtocolError"),
        (ended(0, "{}"), 61, {}, "ProtocolError"),
        (ended(0, message(snapshot_uid="another-one")), 61, {}, "ProtocolError"),
        (ended(1, message(snapshot_uid="", **FAILED_UPLOAD)), 61, {}, "ProtocolError"),
        (ended(0, message(node="node-b")), 61, {}, "ProtocolError"),
        (ended(0, message(delivered=OTHER_FOLDER)), 61, {}, "ProtocolError"),
        (ended(0, message(delivered=ABOVE)), 61, {}, "ProtocolError"),
        (ended(1, "x" * 4097), 61, {}, "ProtocolError"),
        (ended(1), 61, {}, "AgentError"),
        (ended(137, "", "ContainerStatusUnknown"), 61, {}, "AgentError"),
        (ended(128, "", "StartError"), 61, {}, "ImageError"),
        (ended(137, "", "OOMKilled"), 61, {}, "OOMKilled"),
        (ended(137, "", **DELETED), 61, {}, "PodDeleted"),
        (ended(137, "", **DELETED), 61, {"stop": True}, "Canceled"),
        (ended(137, "", **DELETED), 500, {}, "DeadlineExceeded"),
        (replace(ended(137), reason="Evicted"), 61, {}, "Evicted"),
        (replace(ended(143), reason="DeadlineExceeded"), 61, {}, "DeadlineExceeded"),
        (replace(POD, phase="Failed", reason="Evicted", message="disk"), 61, {}, "Evicted"),
        (replace(POD, phase="Failed", reason="OutOfcpu"), 3, {}, "Unschedulable"),
        (replace(POD, phase="Failed", reason="OutOfpods"), 3, {}, "Unschedulable"),
        (replace(POD, phase="Failed", reason="NodeAffinity"), 3, {}, "Unschedulable"),
        (replace(POD, phase="Failed", reason="UnexpectedAdmissionError"), 3, {}, "Unschedulable"),
        (replace(POD, phase="Failed", reason="DeadlineExceeded"), 3, {}, "DeadlineExceeded"),
        (replace(POD, phase="Failed", reason="NodeLost"), 3, {}, "NodeLost"),
        (replace(POD, phase="Failed", reason="Terminated"), 3, {}, "Evicted"),
        (replace(POD, phase="Failed"), 3, {"host": None}, "NodeLost"),
        (replace(POD, phase="Failed"), 3, {"host": READY}, "AgentError"),
        (replace(POD, phase="Failed", **DELETED), 3, {"host": READY}, "PodDeleted"),
        (replace(RUNS, phase="Failed", **DELETED), 3, {"host": None}, "NodeLost"),
        (RUNS, 500, {"host": None}, "NodeLost"),
        (RUNS, 500, {"host": NOT_READY}, "NodeLost"),
        (replace(RUNS, **DELETED), 91, {"host": NOT_READY}, "NodeLost"),
        (replace(RUNS, **DELETED), 91, {"host": READY}, "PodDeleted"),
        (replace(RUNS, **DELETED), 91, {"host": READY, "stop": True}, "Canceled"),
        (replace(POD, node_name="", phase="Pending", **DELETED), 3, {}, "PodDeleted"),
        (replace(POD, node_name="", **DELETED), 3, {"stop": True}, "Canceled"),
        (replace(POD, unschedulable="0/2 nodes: cpu", phase="Pending"), 120, {}, "Unschedulable"),
        (replace(POD, container=Waiting("ContainerCreating")), 120, {}, "StartTimeout"),
        (replace(POD, container=Waiting("CreateContainerConfigError")), 120, {}, "StartTimeout"),
        (replace(POD, container=Waiting("ContainerCreating")), 120, {"host": None}, "NodeLost"),
        (replace(POD, container=None), 120, {"host": NOT_READY}, "NodeLost"),
        (replace(POD, container=Waiting("ErrImagePull")), 40, {}, "ImageError"),
        (replace(POD, container=Waiting("ImagePullBackOff")), 40, {}, "ImageError"),
        (replace(POD, container=Waiting("InvalidImageName")), 40, {}, "ImageError"),
        (replace(POD, container=Waiting("ErrImageNeverPull")), 40, {}, "ImageError"),
    ],
)
def test_ends(pod: AgentPod, after: float, changes: dict[str, Any], reason: str):
    seen = observe(case(pod, after, **changes))
    assert isinstance(seen, Ended), seen
    assert seen.entry.reason == reason
    good = reason == "Completed"
    assert (seen.entry.outcome is Outcome.SUCCEEDED) is good
    assert (seen.entry.sha256 == SHA) is good
    assert good or seen.entry.message or seen.result


def test_every_reason_that_a_pod_can_come_to_is_reached():
    table = next(mark for mark in test_ends.pytestmark if mark.name == "parametrize")
    reached = {row[3] for row in table.args[1]}
    by_the_planner_alone = {"NodeNotReady", "UnsupportedPlatform"}
    assert reached == {reason.value for reason in NodeReason} - by_the_planner_alone


@pytest.mark.parametrize(
    ("pod", "after", "changes", "outcome", "wake", "end"),
    [
        (POD, 3, {}, Outcome.PENDING, 120, False),
        (replace(POD, container=Waiting("ErrImagePull")), 39, {}, Outcome.PENDING, 40, False),
        (replace(POD, unschedulable="full", phase="Pending"), 119, {}, Outcome.PENDING, 120, False),
        (replace(POD, container=Waiting()), 3, {"stop": True}, Outcome.PENDING, 33, True),
        (replace(POD, node_name=""), 3, {"stop": True}, Outcome.PENDING, 33, True),
        (RUNS, 3, {}, Outcome.RUNNING, 426, False),
        (RUNS, 3, {"stop": True}, Outcome.RUNNING, 33, True),
        (RUNS, 426, {"host": READY}, Outcome.RUNNING, 456, True),
        (replace(RUNS, **DELETED), 89, {}, Outcome.RUNNING, 90, False),
        (replace(POD, **DELETED), 89, {}, Outcome.PENDING, 90, False),
        (replace(RUNS, phase="Failed"), 89, {"host": READY}, Outcome.RUNNING, 456, False),
    ],
)
def test_what_goes_on(
    pod: AgentPod, after: float, changes: dict[str, Any], outcome: Outcome, wake: float, end: bool
):
    seen = observe(case(pod, after, **changes))
    assert isinstance(seen, Going), seen
    assert (seen.outcome, seen.end) == (outcome, end)
    assert seen.wake == START + timedelta(seconds=wake)


@pytest.mark.parametrize(
    ("pod", "after", "doubt"),
    [
        (RUNS, 3, False),
        (RUNS, 426, True),
        (POD, 119, False),
        (POD, 120, True),
        (replace(RUNS, phase="Failed"), 3, True),
        (replace(RUNS, **DELETED), 89, False),
        (replace(RUNS, **DELETED), 90, True),
        (ended(0, message()), 999, False),
    ],
)
def test_a_node_is_looked_up_only_where_it_decides(pod: AgentPod, after: float, doubt: bool):
    assert in_doubt(case(pod, after)) is doubt


def test_times_that_an_agent_cannot_know_are_not_believed():
    pod = ended(0, message(started="0001-01-01T00:00:00Z", ended="9999-12-31T23:59:59Z"))
    seen = observe(case(pod, 61))
    assert isinstance(seen, Ended)
    assert seen.entry.started_at is None
    assert seen.entry.ended_at == START + 61 * SECOND
    assert seen.entry.to_json()


def test_what_never_ran_is_skipped_when_it_is_stopped():
    state = Terminated(137, "ContainerStatusUnknown", "", START.replace(year=1970), None)
    pod = replace(POD, phase="Failed", container=state, **DELETED)
    seen = observe(case(pod, 3, stop=True))
    assert isinstance(seen, Ended)
    assert (seen.entry.outcome, seen.entry.reason) == (Outcome.SKIPPED, NodeReason.CANCELED)


SLOW, FAST = START - timedelta(hours=1), START + timedelta(hours=1)
EARLIEST, LATEST = START.replace(year=2), START.replace(9999, 12, 31, 23, 59, 59)


@pytest.mark.parametrize(
    ("since", "believed"),
    [(SLOW, START), (EARLIEST, START), (FAST, START + START_LIMIT), (LATEST, START + START_LIMIT)],
    ids=["slow", "earliest", "fast", "latest"],
)
def test_no_clock_of_a_node_moves_a_deadline_out_of_its_bounds(since: datetime, believed: datetime):
    pod = replace(POD, container=Running(since))
    end = believed + RUN_LIMIT
    seen = observe(case(pod, 130))
    assert seen == Going(Outcome.RUNNING, end, believed)
    for early in (1, (end - START).total_seconds() - 1):
        seen = observe(case(pod, early, host=READY))
        assert isinstance(seen, Going)
        assert not seen.end
    assert in_doubt(case(pod, (end - START).total_seconds()))
    seen = observe(case(pod, (end - START).total_seconds(), host=READY))
    assert isinstance(seen, Going)
    assert seen.end


@pytest.mark.parametrize("since", [SLOW, EARLIEST, FAST, LATEST])
@pytest.mark.parametrize(
    "changes", [{}, {"phase": "Failed"}, {"deleting": START + 60 * SECOND}], ids=str
)
def test_a_start_is_between_the_creation_and_now(since: datetime, changes: dict[str, Any]):
    pod = replace(POD, container=Running(since), **changes)
    seen = observe(case(pod, 5, host=READY))
    assert isinstance(seen, Going)
    assert seen.started is not None
    assert START <= seen.started <= START + 5 * SECOND


@pytest.mark.parametrize("started", [SLOW, FAST, LATEST])
def test_what_ran_by_a_wrong_clock_is_not_skipped_when_it_is_stopped(started: datetime):
    state = Terminated(137, "Error", "", started, LATEST)
    seen = observe(case(replace(POD, phase="Failed", container=state, **DELETED), 9, stop=True))
    assert isinstance(seen, Ended)
    assert (seen.entry.outcome, seen.entry.reason) == (Outcome.FAILED, NodeReason.CANCELED)
    assert seen.entry.started_at is not None
    assert START <= seen.entry.started_at <= START + 9 * SECOND


def test_texts_of_a_node_are_one_line_and_cut():
    pod = replace(POD, phase="Failed", reason="Evicted", message="x" * 500)
    seen = observe(case(pod, 3))
    assert isinstance(seen, Ended)
    assert len(seen.entry.message or "") <= 256
