# SPDX-License-Identifier: Apache-2.0
"""A process for each lookup: each sends few queries, all together send many."""

from collections.abc import Sequence
from typing import Any

import pytest

from ktrace_api.finding import Cause, Finding, Severity
from tests.agent.analyze.capture_builder import CLIENT, SERVER, Captured, at, ends, serious


def curls(
    rtts: Sequence[float | None], made: Captured | None = None, first: int = 1000,
    start: float = 0.0, **facts: Any,
) -> Captured:  # fmt: skip
    """One process per second that queries A and waits this long."""
    made = made or Captured()
    usual = {"comm": "curl", "cgroup_id": 7, **facts}
    for number, rtt in enumerate(rtts):
        tgid = first + number
        made.query(start + number, rtt, sock=tgid, local_port=40000 + tgid,
                   **{"tgid": tgid, **usual})  # fmt: skip
    return made


def lookups(rtts: list[float]) -> Captured:
    """Like curls(), but each process queries A and AAAA at once."""
    return curls(rtts, curls(rtts), start=1e-4)


def of(name: str, made: Captured) -> list[Finding]:
    return [one for one in made.analyze().findings if one.id == name]


def test_sixty_processes_with_one_unanswered_query_each():
    found = curls([None] * 58, pod="web-1").analyze()
    (finding,) = found.findings
    assert finding.id == "DNS_NO_REPLY"
    assert finding.severity == Severity.CRITICAL
    assert finding.subject.tgid == 1057, "the latest, which may still be there"
    assert finding.subject.comm == "curl"
    assert finding.subject.pod == "web-1"
    assert finding.subject.peer == f"{SERVER}:53"
    assert finding.counts["processes"] == finding.counts["queries"] == 58
    assert finding.title == (
        "DNS server 10.0.0.2:53 did not answer 58 of 58 queries (curl, 58 processes)"
    )
    assert finding.evidence.rows == tuple(range(8))
    assert found.verdict.verdict == Cause.DNS
    suspects = found.dns.suspects
    assert [one.tgid for one in suspects] == [*range(1057, 1047, -1)], "the same one first"
    assert len(suspects) + found.dns.suspects_left_out == 58
    assert found.dns.unanswered == finding.counts["unanswered"]


def test_processes_that_each_ask_once_counted_by_flows():
    made = Captured().lose_one()
    for number in range(40):
        made.flow("udp", port=53, local_port=40000 + number, tgid=1000 + number, comm="curl",
                  tx_calls=1, first_ts=at(number), cgroup_id=7)  # fmt: skip
    (finding,) = of("DNS_NO_REPLY", made)
    assert finding.severity == Severity.CRITICAL
    assert finding.counts["processes"] == 40
    assert finding.subject.tgid == 1039


def test_processes_that_may_not_ask():
    made = Captured()
    for number in range(20):
        made.row(number, "udp_send", sock=number + 1, tgid=1000 + number, comm="curl", errno=1,
                 error="EPERM", flags=[], **ends(CLIENT, 40000 + number, SERVER, 53))  # fmt: skip
    (finding,) = made.analyze().findings
    assert finding.severity == Severity.CRITICAL
    assert finding.points_to == Cause.POLICY
    assert finding.counts["processes"] == finding.counts["errors"] == 20


def test_processes_that_gave_up_before_the_answer_came():
    made = curls([None] * 20).counter("snmp", "Udp.NoPorts", 20)
    (finding,) = made.analyze().findings
    assert finding.severity == Severity.INFO
    assert "too late: socket closed" in finding.title


def test_few_lost_answers_among_those_of_many_processes_are_healthy():
    """Processes with answers count too: 5 of 58 are less than 10 %."""
    rtts = [None if number % 12 == 0 else 0.005 for number in range(58)]
    found = curls(rtts).analyze()
    assert serious(found) == set()
    (finding,) = found.findings
    assert finding.counts["processes"] == finding.counts["unanswered"] == 5
    assert finding.counts["queries"] == 58


@pytest.mark.parametrize(
    "apart",
    [
        lambda number: {"comm": f"job-{number}"},
        lambda number: {"cgroup_id": number},
        lambda number: {"net": number + 1},
        lambda number: {"to": f"10.0.9.{number}"},
    ],
    ids=["program", "container", "namespace", "server"],
)
def test_what_others_lose_is_theirs(apart: Any):
    made = Captured()
    for number in range(12):
        curls([None], made, first=1000 + number, **apart(number))
    assert serious(made.analyze()) == set()


def test_a_process_above_the_limits_has_a_finding_of_its_own():
    made = curls([None] * 20)
    for number in range(12):
        made.query(number, None, sock=9000 + number, tgid=99, comm="curl", cgroup_id=7)
    found = {one.subject.tgid: one for one in of("DNS_NO_REPLY", made)}
    assert found[99].counts["processes"] == 1
    assert found[99].counts["unanswered"] == 12
    assert found[1019].counts["processes"] == found[1019].counts["unanswered"] == 20
    assert {one.severity for one in found.values()} == {Severity.CRITICAL}


def test_thirty_processes_whose_lookups_take_two_seconds():
    (finding,) = lookups([1.9] * 30).analyze().findings
    assert finding.id == "DNS_SLOW"
    assert finding.severity == Severity.WARNING
    assert finding.counts == {"answers": 60, "processes": 30, "ambiguous": 60}
    assert finding.title == (
        "Slow DNS: 10.0.0.2:53 took 1,900 ms (median of 60 answers) for curl (30 processes)"
    )


def test_some_of_the_processes_wait_for_long():
    rtts = [1.2 if number % 6 == 0 else 0.01 for number in range(30)]
    assert serious(lookups(rtts).analyze()) == {"DNS_SLOW"}


@pytest.mark.parametrize(
    "rtts",
    [[1.9] * 3, [1.9, *[0.01] * 8], [0.01] * 50, [0.12] * 50, [*[1.9] * 3, *[0.01] * 55]],
    ids=["three", "one-of-nine", "fast", "not-slow-enough", "three-of-58"],
)
def test_few_slow_processes_or_quick_ones_are_healthy(rtts: list[float]):
    assert serious(lookups(rtts).analyze()) == set()


def test_a_slow_process_does_not_slow_others():
    """With four answers it has quantiles of its own."""
    made = curls([0.01] * 5)
    for number in range(8):
        made.query(number, 1.9, sock=9000 + number, tgid=99, comm="curl", cgroup_id=7)
    (finding,) = made.analyze().findings
    assert (finding.subject.tgid, finding.counts["processes"]) == (99, 1)
