# SPDX-License-Identifier: Apache-2.0
"""Statuses: counts, conditions as kstatus reads them, findings over nodes, sizes, pace."""

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrace_api.finding import Cause, FindingId, Severity
from ktrace_api.names import ConditionReason, ConditionType, NodeReason, Outcome, Phase
from ktrace_api.result import AgentResult, Delivered, ReportedFinding
from ktrace_api.snapshot import SnapshotSpec
from ktrace_api.status import FindingRollup, NodeResult, SnapshotStatus
from ktrace_operator.plan import conditions
from ktrace_operator.plan.results import count_verdicts, roll_up
from ktrace_operator.plan.status_pace import wait_to_write
from ktrace_operator.plan.targets import Refusal
from tests.operator.serve.model import SHA, START

FINAL = (Outcome.SUCCEEDED, Outcome.FAILED, Outcome.SKIPPED)
outcomes = st.lists(st.sampled_from(tuple(Outcome)), min_size=1, max_size=12)


def entries(kinds: list[Outcome]) -> list[NodeResult]:
    reasons = {
        Outcome.SUCCEEDED: NodeReason.COMPLETED,
        Outcome.FAILED: NodeReason.OOM_KILLED,
        Outcome.SKIPPED: NodeReason.NODE_NOT_READY,
    }
    return [
        NodeResult(node=f"node-{number}", outcome=kind, reason=reasons.get(kind))
        for number, kind in enumerate(kinds)
    ]


def progress(
    kinds: list[Outcome],
    before: SnapshotStatus | None = None,
    *,
    stop: bool = False,
    now: datetime = START,
) -> SnapshotStatus:
    return conditions.progress(
        before or SnapshotStatus(), entries(kinds), stop=stop, generation=1, now=now
    )


def kstatus(status: SnapshotStatus, generation: int) -> str:
    """What cli-utils' kstatus computes for a kind that it does not know (generic.go)."""
    if status.observed_generation != generation:
        return "InProgress"
    truth = {one.type.value: one.status for one in status.conditions}
    if truth.get("Reconciling") == "True":
        return "InProgress"
    if truth.get("Stalled") == "True":
        return "Failed"
    return "Current" if truth.get("Ready") == "True" else "InProgress"


@given(kinds=outcomes, stop=st.booleans())
def test_counts_and_conditions_agree(kinds: list[Outcome], stop: bool):
    status = progress(kinds, stop=stop)
    counts = status.nodes
    assert counts.total == len(kinds)
    assert counts.total == (
        counts.pending + counts.running + counts.succeeded + counts.failed + counts.skipped
    )
    over = all(kind in FINAL for kind in kinds)
    assert status.finished is over
    assert (status.completion_time is not None) is over
    expected = "InProgress"
    if over:
        good = all(kind is Outcome.SUCCEEDED for kind in kinds) and not stop
        expected = "Current" if good else "Failed"
    assert kstatus(status, 1) == expected
    assert kstatus(status, 2) == "InProgress"
    assert len({one.type for one in status.conditions}) == 6


def test_a_new_object_is_in_progress():
    assert kstatus(SnapshotStatus(), 1) == "InProgress"


@pytest.mark.parametrize(
    ("kinds", "stop", "phase", "reason"),
    [
        ("SS", False, Phase.COMPLETED, ConditionReason.COMPLETED),
        ("SF", False, Phase.PARTIALLY_COMPLETED, ConditionReason.PARTIALLY_COMPLETED),
        ("SK", False, Phase.PARTIALLY_COMPLETED, ConditionReason.PARTIALLY_COMPLETED),
        ("FK", False, Phase.FAILED, ConditionReason.ALL_FAILED),
        ("KK", False, Phase.FAILED, ConditionReason.ALL_FAILED),
        ("SK", True, Phase.CANCELED, ConditionReason.CANCELED),
        ("PP", False, Phase.PENDING, ConditionReason.RUNNING),
        ("PR", False, Phase.RUNNING, ConditionReason.RUNNING),
    ],
)
def test_ends(kinds: str, stop: bool, phase: Phase, reason: ConditionReason):
    letters = dict(zip("PRSFK", Outcome, strict=True))
    status = progress([letters[one] for one in kinds], stop=stop)
    assert status.phase is phase
    assert {one.reason for one in status.conditions} <= {reason, ConditionReason.ACCEPTED}


def test_a_snapshot_that_no_image_can_serve_has_its_own_reason():
    arm = NodeResult(
        node="arm",
        outcome=Outcome.SKIPPED,
        reason=NodeReason.UNSUPPORTED_PLATFORM,
        message="no agent image for linux/arm64",
    )
    lost = arm.model_copy(update={"node": "lost", "reason": NodeReason.NODE_LOST})
    for results, reason in (
        ([arm, arm], ConditionReason.UNSUPPORTED_PLATFORM),
        ([arm, lost], ConditionReason.ALL_FAILED),
    ):
        status = conditions.progress(SnapshotStatus(), results, stop=False, generation=1, now=START)
        succeeded = status.condition(ConditionType.SUCCEEDED)
        assert succeeded is not None
        assert succeeded.reason is reason
        assert status.phase is Phase.FAILED


def test_times_of_transitions_change_only_with_the_status():
    first = progress([Outcome.PENDING])
    later = progress([Outcome.RUNNING], first, now=START + timedelta(seconds=7))
    assert {one.last_transition_time for one in later.conditions} == {START}
    end = progress([Outcome.SUCCEEDED], later, now=START + timedelta(seconds=67))
    times = {one.type.value: one.last_transition_time for one in end.conditions}
    assert times["Accepted"] == START
    assert times["Finished"] == START + timedelta(seconds=67)
    again = progress([Outcome.SUCCEEDED], end, now=START + timedelta(seconds=99))
    assert again == end


def test_messages_are_one_line_and_cut():
    refusal = Refusal(ConditionReason.INVALID_SPEC, "a\nb\x1b[31m" + "x" * 5000)
    status = conditions.refused(SnapshotStatus(), refusal, 1, START)
    message = status.conditions[0].message
    assert message.startswith("a b [31m")
    assert len(message) == 1024


def test_who_failed_is_named_and_many_are_counted():
    text = conditions.summary(entries([Outcome.SUCCEEDED, *[Outcome.FAILED] * 7]))
    assert text == "1 of 8 nodes delivered a bundle; OOMKilled: node-1, node-2, node-3 and 4 more"


def reported(identifier: FindingId, severity: Severity, count: int = 1) -> ReportedFinding:
    return ReportedFinding(
        id=identifier, severity=severity, title=f"{severity} {count}", count=count
    )


def result(
    *findings: ReportedFinding, verdict: Cause = Cause.DNS, good: bool = True
) -> AgentResult:
    path = Delivered(path="node=a/b.tgz", bytes=1, sha256=SHA)
    return AgentResult(
        snapshot_uid="12345678",
        node="a",
        verdict=verdict,
        findings=findings,
        reason=NodeReason.COMPLETED if good else NodeReason.UPLOAD_FAILED,
        delivered=path if good else None,
    )


def test_findings_over_nodes_are_summed_and_the_worst_speaks():
    info, bad = Severity.INFO, Severity.CRITICAL
    found = roll_up((), [result(reported(FindingId.DNS_SLOW, info, 5))])
    found = roll_up(
        found,
        [
            result(reported(FindingId.DNS_SLOW, bad, 2), reported(FindingId.DNS_SLOW, info, 3)),
            result(reported(FindingId.TCP_RESETS, Severity.WARNING)),
        ],
    )
    assert found == (
        FindingRollup(id=FindingId.DNS_SLOW, severity=bad, title="critical 2", count=10, nodes=2),
        FindingRollup(
            id=FindingId.TCP_RESETS, severity=Severity.WARNING, title="warning 1", count=1, nodes=1
        ),
    )


def test_findings_stay_within_what_the_api_server_takes():
    every = [result(reported(one, Severity.INFO, 2**53)) for one in FindingId] * 3
    found = roll_up((), every)
    assert len(found) == 20
    assert all(one.count <= 2**53 for one in found)


def test_verdicts_are_of_nodes_that_delivered():
    given_results = [result(), result(verdict=Cause.NAT), result(), result(good=False)]
    assert count_verdicts({Cause.NAT: 1}, given_results) == {Cause.NAT: 2, Cause.DNS: 2}


def size(name_chars: int) -> int:
    """Bytes of the status of 1,000 nodes whose names have so many characters."""
    names = [f"{number:04d}".ljust(name_chars, "n") for number in range(1000)]
    results = [
        NodeResult(
            node=name,
            outcome=Outcome.SUCCEEDED,
            reason=NodeReason.COMPLETED,
            events=200_000,
            lost=100_000,
            complete=False,
            bytes=2**28,
            sha256=SHA,
            started_at=START,
            path=f"node={name}/ktrace.{name}.20260124T215754Z.bundle.tgz",
            ended_at=START,
        )
        for name in names
    ]
    path = "s3://" + "p" * 500 + "/"
    before = SnapshotStatus(start_time=START, path=path)
    status = conditions.progress(before, results, stop=False, generation=1, now=START)
    return len(json.dumps(status.to_json(), separators=(",", ":")))


def test_a_thousand_nodes_fit_into_one_object():
    assert size(63) < 512 * 1024, "63: kubernetes.io/hostname holds no longer names"
    assert size(253) < 1536 * 1024, "etcd's limit, at the longest names that there can be"


SPEC = SnapshotSpec.model_validate({"nodes": {"selector": {}}})
RUNNING = [Outcome.RUNNING] * 10
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("after", "since_write", "running_for", "wait"),
    [
        (RUNNING, 0, 10, None),
        ([Outcome.SUCCEEDED] * 10, 0, 60, 0),
        ([Outcome.SUCCEEDED] * 4 + RUNNING[4:], 0.5, 60, 1.5),
        ([Outcome.SUCCEEDED] * 4 + RUNNING[4:], 2, 60, 0),
        ([Outcome.SUCCEEDED] * 1 + RUNNING[1:], 2, 5, 13),
        ([Outcome.SUCCEEDED] * 1 + RUNNING[1:], 2, 60, 58),
        ([Outcome.SUCCEEDED] * 1 + RUNNING[1:], None, 60, 0),
    ],
)
def test_pace(after: list[Outcome], since_write: Any, running_for: float, wait: float | None):
    since = None if since_write is None else timedelta(seconds=since_write)
    found = wait_to_write(
        progress(RUNNING), progress(after), SPEC, since, timedelta(seconds=running_for)
    )
    assert found == (None if wait is None else timedelta(seconds=wait))


def test_a_wave_is_worth_a_write():
    spec = SnapshotSpec.model_validate({"nodes": {"selector": {}, "parallelism": 1}})
    before, after = progress(RUNNING), progress([Outcome.SUCCEEDED, *RUNNING[1:]])
    assert wait_to_write(before, after, spec, 2 * SECOND, 60 * SECOND) == timedelta(0)
