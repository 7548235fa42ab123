# SPDX-License-Identifier: Apache-2.0
"""Processes that live for one connect."""

from typing import Any

import pytest

from ktrace_api.finding import Cause, Severity
from tests.agent.analyze.capture_builder import Captured, made_of


def one_each(
    count: int, result: str, error: str = "-", made: Captured | None = None, **facts: Any
) -> Captured:
    """A connect a second, each by a process of its own: a loop around nc or curl."""
    made = made or Captured()
    for number in range(count):
        usual = {"tgid": 1000 + number, "comm": "nc", "local_port": 40000 + number}
        made.connect(number, result, error, **{**usual, **facts})
    return made


@pytest.mark.parametrize(
    ("result", "error", "us", "name", "verdict"),
    [
        ("failed", "ECONNREFUSED", 200, "TCP_CONNECT_REFUSED", Cause.APPLICATION),
        ("abandoned", "-", 2_000_000, "TCP_SYN_UNANSWERED", Cause.POLICY),
        ("abandoned", "-", 5_000_000, "TCP_SYN_UNANSWERED", Cause.POLICY),
        ("failed", "ETIMEDOUT", 10_000_000, "TCP_CONNECT_TIMEOUT", Cause.POLICY),
        ("failed", "EHOSTUNREACH", 3_000_000, "TCP_CONNECT_UNREACHABLE", Cause.ROUTING),
        ("failed", "EPERM", 10, "CONNECT_DENIED", Cause.POLICY),
    ],
)
def test_processes_that_each_fail_once_are_one_finding(
    result: str, error: str, us: int, name: str, verdict: Cause
):
    made = one_each(60, result, error, us=us, port=5432)
    finding = made.finding(name)
    assert finding.severity == Severity.CRITICAL
    assert finding.points_to == verdict
    assert finding.counts["processes"] == 60
    assert finding.counts["connects"] == 60
    assert finding.subject.tgid == 1059, "the latest one may still be running"
    assert "60 processes" in finding.title
    assert made.analyze().verdict.verdict == verdict


def test_no_port_for_processes_that_connect_once():
    made = one_each(30, "established", tgid=1)
    for number in range(20):
        made.connect(30 + number, "failed", "EADDRNOTAVAIL", tgid=2000 + number, comm="nc")
    for number in range(20):
        made.connect(30 + number, tgid=3000 + number, comm="nc")
    finding = made.finding("EPHEMERAL_PORTS_EXHAUSTED")
    assert finding.severity == Severity.WARNING
    assert finding.counts["processes"] == 20


def test_slow_handshakes_of_processes_that_connect_once():
    finding = one_each(20, "established", us=600_000).finding("TCP_CONNECT_SLOW")
    assert finding.severity == Severity.WARNING
    assert finding.counts["processes"] == 20


def test_a_single_process_is_said_to_be_alone():
    finding = made_of(5, "failed", "ECONNREFUSED").finding("TCP_CONNECT_REFUSED")
    assert finding.counts["processes"] == 1
    assert "processes" not in finding.title


def test_a_loop_that_ends_with_a_success_is_healthy():
    """`until nc -z db 5432; do sleep 1; done`, and the database comes up."""
    made = one_each(40, "failed", "ECONNREFUSED")
    made.connect(41, tgid=1041, comm="nc")
    finding = made.finding("TCP_CONNECT_REFUSED")
    assert finding.severity == Severity.INFO
    assert "then recovered" in finding.title


def test_a_service_that_dies_under_processes_that_connect_once():
    made = one_each(60, "established")
    for number in range(5):
        made.connect(59 + number / 10, "failed", "ECONNREFUSED", tgid=2000 + number, comm="nc")
    assert made.serious() == {"TCP_CONNECT_REFUSED"}


@pytest.mark.parametrize(
    ("result", "error", "us"),
    [
        ("failed", "ECONNREFUSED", 200),
        ("abandoned", "-", 1_000_000),
        ("failed", "EHOSTUNREACH", 3_000_000),
    ],
)
def test_few_failures_among_many_processes_are_healthy(result: str, error: str, us: int):
    """A restarted backend, a lost packet: no process had it twice."""
    made = Captured()
    for number in range(600):
        odd = number % 100 == 99
        made.connect(
            number / 10, result if odd else "established", error if odd else "-",
            us if odd else 400, tgid=1000 + number, comm="curl",
        )  # fmt: skip
    assert made.serious() == set()


def test_half_of_the_processes_fail():
    """One of two backends is gone, in the place of every second process."""
    made = Captured()
    for number in range(40):
        bad = number % 2
        made.connect(
            number, *(("failed", "ECONNREFUSED") if bad else ()), tgid=1000 + number, comm="curl"
        )
    finding = made.finding("TCP_CONNECT_REFUSED")
    assert finding.severity == Severity.WARNING
    assert finding.counts["established"] == 20
    assert finding.counts["processes"] == 20


def test_other_programs_containers_and_peers_are_not_pooled():
    made = Captured()
    for number in range(12):
        facts: dict[str, Any] = {"tgid": 1000 + number, "comm": "nc", "cgroup_id": 7, "port": 80}
        other = {"comm": f"tool{number}", "cgroup_id": number, "port": number, "net": number}
        name = [*other][number % 4]
        made.connect(number, "failed", "ECONNREFUSED", **{**facts, name: other[name]})
    assert made.serious() == set()


def test_a_process_that_fails_often_keeps_its_own_finding():
    made = made_of(12, "failed", "ECONNREFUSED", tgid=77, comm="nc", start=20)
    one_each(10, "failed", "ECONNREFUSED", made)
    found = {one.subject.tgid: one for one in made.analyze().findings}
    assert found[77].counts["connects"] == 12
    assert found[77].counts["processes"] == 1
    assert found[1009].counts["connects"] == 10
    assert found[1009].counts["processes"] == 10
