# SPDX-License-Identifier: Apache-2.0
"""A hostile node's message: whatever is taken of it, the API server takes the status made of it."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

from ktrace_api.crd import definition
from ktrace_api.finding import Cause, FindingId, Severity
from ktrace_api.names import NodeReason
from ktrace_api.result import MAX_FINDINGS, BadResult
from ktrace_api.status import SnapshotStatus
from ktrace_operator.plan import conditions
from ktrace_operator.plan.results import count_verdicts, entry, read_result, roll_up
from tests.operator.serve.model import SHA, START

UID, NODE = "16d1be55-4d13-4e2e-b4bd-89861e542501", "node-a"
PATH = f"node={NODE}/ktrace.{NODE}.20260124T215754Z.bundle.tgz"
NOW = START + timedelta(minutes=5)
[VERSION] = definition()["spec"]["versions"]
STATUS = VERSION["schema"]["openAPIV3Schema"]["properties"]["status"]

WIDTHS = FormatChecker(formats=())
"""An integer's width is a format in OpenAPI, and the API server enforces it."""


@WIDTHS.checks("int32")
def _is_int32(value: object) -> bool:
    return not isinstance(value, int) or -(2**31) <= value < 2**31


@WIDTHS.checks("int64")
def _is_int64(value: object) -> bool:
    return not isinstance(value, int) or -(2**63) <= value < 2**63


ADMITTED = Draft202012Validator(STATUS, format_checker=WIDTHS)


def taken(message: str) -> bool:
    """Whether the message is a result; if so, the status made of it must be one for the CRD."""
    try:
        result = read_result(message, UID, NODE)
    except BadResult:
        return False
    before = SnapshotStatus(findings=roll_up((), [result]), verdicts=count_verdicts({}, [result]))
    made = conditions.progress(
        before, [entry(result, START, NOW)], stop=False, generation=1, now=NOW
    ).to_json()
    problems = [f"{one.json_path}: {one.message}" for one in ADMITTED.iter_errors(made)]
    assert problems == []
    return True


def said(**changes: Any) -> dict[str, Any]:
    """A message as an agent may send it."""
    return {
        "snapshot_uid": UID,
        "node": NODE,
        "reason": "Completed",
        "delivered": {"path": PATH, "bytes": 4711, "sha256": SHA},
        "events": 97,
        "started": "2026-01-24T21:58:00Z",
        "findings": [{"id": "DNS_SLOW", "severity": "info", "title": "t", "count": 3}],
    } | changes


COUNTS = ("events", "lost", "findings_left_out")
TOO_MANY = (2**53 + 1, 2**63 - 1, 2**63, 10**30)


@pytest.mark.parametrize("count", [-1, *TOO_MANY])
@pytest.mark.parametrize("field", [*COUNTS, "bytes", "count"])
def test_a_number_beyond_what_the_api_server_takes_is_no_result(field: str, count: int):
    message = said()
    assert taken(json.dumps(message))
    match field:
        case "bytes":
            message["delivered"]["bytes"] = count
        case "count":
            message["findings"][0]["count"] = count
        case _:
            message[field] = count
    with pytest.raises(BadResult, match=field):
        read_result(json.dumps(message), UID, NODE)


@pytest.mark.parametrize("field", [*COUNTS, "bytes", "count"])
def test_the_largest_number_is_one(field: str):
    message = said()
    where = {"bytes": message["delivered"], "count": message["findings"][0]}.get(field, message)
    where[field] = 2**53
    assert taken(json.dumps(message))


# Messages with one or two fields that are odd, and otherwise right: most of them are results.
INTEGERS = st.sampled_from([-1, 0, 1, 2**31, 2**53, *TOO_MANY, 10**400]) | st.integers()
TEXTS = st.text(max_size=700) | st.sampled_from(["\x00", "\u2028" * 256, "é" * 256, "😀" * 200])
TIMES = st.datetimes(timezones=st.none() | st.just(UTC)).map(datetime.isoformat) | st.sampled_from(
    [
        "2026-01-24T21:58:00Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59.999999-23:59",
        "2026-01-24T21:58:00.123456789Z",
        1e300,
    ]
)
PATHS = st.sampled_from([f"node={NODE}/{'a' * 628}", f"node={NODE}/{'a' * 640}"]) | TEXTS


def names(kind: type[Any]) -> st.SearchStrategy[str]:
    return st.sampled_from([one.value for one in kind])


ODD: dict[str, st.SearchStrategy[Any]] = {
    "reason": names(NodeReason),
    "message": TEXTS,
    "events": INTEGERS,
    "lost": INTEGERS,
    "findings_left_out": INTEGERS,
    "started": TIMES,
    "ended": TIMES,
    "ended_by": TEXTS,
    "verdict": names(Cause),
    "delivered.path": PATHS,
    "delivered.bytes": INTEGERS,
    "delivered.sha256": st.sampled_from([SHA + "\n", SHA.upper()]) | TEXTS,
    "findings.id": names(FindingId),
    "findings.severity": names(Severity),
    "findings.title": TEXTS,
    "findings.count": INTEGERS,
    "findings.subject": TEXTS,
}


@given(st.data())
def test_what_is_taken_makes_a_status_that_the_api_server_takes(data: st.DataObject):
    message = said()
    findings = data.draw(st.integers(1, MAX_FINDINGS))
    message["findings"] = [dict(message["findings"][0]) for _ in range(findings)]
    for name in data.draw(st.lists(st.sampled_from(sorted(ODD)), max_size=2)):
        outer, _, inner = name.rpartition(".")
        where = {"delivered": message["delivered"], "findings": message["findings"][-1]}
        where.get(outer, message)[inner] = data.draw(ODD[name])
    taken(json.dumps(message, ensure_ascii=data.draw(st.booleans())))


@given(st.integers(0, 2**53), st.integers(0, 2**53), st.integers(1, 2**53), TEXTS)
def test_a_result_within_the_bounds_is_taken(events: int, lost: int, count: int, text: str):
    finding = {"id": "DNS_SLOW", "severity": "info", "title": text[:160], "count": count}
    message = said(events=events, lost=lost, message=text[:256], findings=[finding])
    assert taken(json.dumps(message, ensure_ascii=False))


def test_what_the_kernel_cannot_record_is_in_the_entry():
    """How many events that costs is unknown, so `lost` is left out."""
    missing = ["socket_send", "udp_send_address"]
    message = json.dumps(
        said(complete=False, gaps=["not_traced"], hooks_missing=missing, lost=None)
    )
    made = entry(read_result(message, UID, NODE), START, NOW).to_json()
    assert made["complete"] is False
    assert made["gaps"] == ["not_traced"]
    assert made["hooksMissing"] == missing
    assert "lost" not in made
    assert taken(message)


@pytest.mark.parametrize("hooks", [["x"] * 33, ["<b>"], ["x" * 33]])
def test_names_of_hooks_are_bounded(hooks: list[str]):
    assert not taken(json.dumps(said(hooks_missing=hooks)))
