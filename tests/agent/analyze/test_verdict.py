# SPDX-License-Identifier: Apache-2.0
"""The verdict: what explains what, and how much of it."""

from typing import Any

import pytest

from ktrace_agent.analyze.sentences import CAUSES
from ktrace_api.finding import Cause, Verdict
from tests.agent.analyze.capture_builder import NET, Captured, ends

CONNTRACK = "stat/nf_conntrack"
ELSEWHERE = 999
"""Another network namespace."""


def unanswered(failed: int, good: int = 0, made: Captured | None = None, **facts: Any) -> Captured:
    """Connects of one client, half a second apart; each sent a second SYN."""
    made = made or Captured()
    for number in range(failed + good):
        result = {"result": "abandoned", "us": 1_600_000} if number < failed else {}
        made.connect(number * 0.3, **{"local_port": 40000 + number, **result, **facts})
    return made


def overflows(made: Captured, count: int) -> Captured:
    return made.counter("netstat", "TcpExt.ListenOverflows", count, netns=ELSEWHERE)


def listening(made: Captured, port: int) -> Captured:
    made.insert("sockets", {"moment": "end", "state": "LISTEN", "net": ELSEWHERE, "tgid": 300,
                            "comm": "web", **ends("0.0.0.0", port, None, None)})  # fmt: skip
    return made


def clashes(made: Captured, count: int, netns: int = ELSEWHERE) -> Captured:
    return made.counter(CONNTRACK, "insert_failed", count, netns=netns)


def full(made: Captured, drops: int, netns: int = ELSEWHERE) -> Captured:
    made.counter("conntrack/max", "value", 0, netns=None, before=262144)
    made.counter(CONNTRACK, "entries", 0, before=262144, netns=netns)
    return made.counter(CONNTRACK, "drop", drops, netns=netns)


def also(verdict: Verdict) -> str:
    """The other causes that the verdict names, as values of Cause."""
    named = verdict.why.partition("Also found: ")[2]
    return ", ".join(cause for cause, text in CAUSES.items() if text in named.split(", "))


@pytest.mark.parametrize(
    ("made", "other"),
    [
        (clashes(unanswered(100), 3), "nat"),
        (overflows(unanswered(100), 3), "application"),
        (listening(overflows(unanswered(100), 3), 443), "application"),
        (full(unanswered(100), 3), "nat"),
    ],
    ids=["clashes", "overflows-of-nobody", "overflows", "full"],
)
def test_a_small_cause_explains_no_large_failure(made: Captured, other: str) -> None:
    """A policy drops every connect; something else happens three times somewhere."""
    verdict = made.analyze().verdict
    assert verdict.verdict == Cause.POLICY
    assert verdict.findings == ("TCP_SYN_UNANSWERED",)
    assert also(verdict) == other


@pytest.mark.parametrize(
    "made",
    [clashes(unanswered(100, 50), 3), overflows(unanswered(100, 50), 3), full(unanswered(15), 0)],
    ids=["clashes", "overflows-of-nobody", "full-but-nothing-dropped"],
)
def test_nor_does_it_lead_where_both_are_as_bad(made: Captured) -> None:
    verdict = made.analyze().verdict
    assert verdict.verdict == Cause.POLICY
    assert also(verdict)


def test_a_row_of_a_sampled_capture_stands_for_several():
    made = unanswered(10, 10, Captured(sample=10))
    assert clashes(made, 40).analyze().verdict.verdict == Cause.POLICY
    made = unanswered(10, 10, Captured(sample=10))
    assert clashes(made, 100).analyze().verdict.verdict == Cause.NAT


def test_what_the_flows_of_a_sampled_capture_count_is_all_there_was():
    """Queries without an answer are counted there by flows, which no sample thins."""
    made = Captured(sample=10)
    for number in range(5):
        made.flow("udp", port=53, local_port=42000 + number, tx_calls=1)
    verdict = clashes(made, 5).analyze().verdict
    assert (verdict.verdict, verdict.findings) == (
        Cause.NAT,
        ("CONNTRACK_INSERT_FAILED", "DNS_NO_REPLY"),
    )
    assert not also(verdict)


def test_a_listener_that_nobody_can_name_explains_nothing():
    verdict = overflows(unanswered(100), 300).analyze().verdict
    assert (verdict.verdict, also(verdict)) == (Cause.POLICY, "application")


def test_a_warning_explains_nothing_critical_of_another_namespace():
    """The counter is large enough, but it is any resolver's races, too."""
    verdict = clashes(unanswered(100), 500).analyze().verdict
    assert (verdict.verdict, also(verdict)) == (Cause.POLICY, "nat")
    assert clashes(unanswered(100), 500, NET).analyze().verdict.verdict == Cause.NAT


@pytest.mark.parametrize(
    ("made", "cause", "carried_by"),
    [
        (clashes(unanswered(24, 16), 48), Cause.NAT, "CONNTRACK_INSERT_FAILED"),
        (clashes(unanswered(24, 16), 24), Cause.NAT, "CONNTRACK_INSERT_FAILED"),
        (full(unanswered(15), 30), Cause.NAT, "CONNTRACK_FULL"),
        (listening(overflows(unanswered(13, 5), 26), 443), Cause.APPLICATION, "LISTEN_OVERFLOW"),
        (listening(overflows(unanswered(100), 200), 443), Cause.APPLICATION, "LISTEN_OVERFLOW"),
    ],
    ids=["clashes", "one-clash-each", "full", "backlog", "backlog-and-nobody-served"],
)
def test_a_cause_that_is_large_enough(made: Captured, cause: Cause, carried_by: str) -> None:
    """As the incidents of tests/lab count it: one lost packet at least for each that failed."""
    verdict = made.analyze().verdict
    assert verdict.verdict == cause
    assert verdict.findings == (carried_by, "TCP_SYN_UNANSWERED")
    assert also(verdict) == ""


def test_a_cause_that_explains_half_leads_and_the_rest_is_named():
    verdict = full(unanswered(100), 60).analyze().verdict
    assert (verdict.verdict, also(verdict)) == (Cause.NAT, "policy")
    assert verdict.findings == ("CONNTRACK_FULL",)


def test_what_a_cause_cost_is_used_once():
    """20 lost packets of two clients with 15 failures each: one of them has another reason."""
    made = unanswered(15, 15, tgid=100)
    unanswered(15, 15, made, tgid=200, comm="cart")
    verdict = clashes(made, 20).analyze().verdict
    assert (verdict.verdict, also(verdict)) == (Cause.NAT, "policy")


def test_the_table_of_the_namespace_explains_its_dns():
    made = Captured()
    for number in range(20):
        made.query(number, None, sock=number + 1, local_port=50000 + number)
    verdict = clashes(made, 40, NET).analyze().verdict
    assert verdict.verdict == Cause.NAT
    assert verdict.findings == ("CONNTRACK_INSERT_FAILED", "DNS_NO_REPLY")


@pytest.mark.parametrize(
    ("to", "routing"), [("10.0.0.2", True), ("fd00::2", True), ("fd00::3", False)]
)
def test_loss_explains_slow_connects_to_the_same_address(to: str, routing: bool) -> None:
    made = Captured()
    peer = "fd00::2" if ":" in to else "10.0.0.2"
    for number in range(200):
        made.retransmit(number / 20, **ends("10.0.0.1", 443, peer, 1000 + number), role="server")
    made.insert("flows", {"net": NET, "tgid": 100, "proto": "tcp", "role": "server",
                          "tx_bytes": 2_000_000, **ends("10.0.0.1", 443, peer, 1000)})  # fmt: skip
    for number in range(20):
        made.connect(number, us=1_050_000 if number % 2 else 400, to=to, port=53, tgid=300)
    verdict = made.analyze().verdict
    assert verdict.verdict == Cause.ROUTING
    assert ("TCP_CONNECT_SLOW" in verdict.findings) == routing
    assert bool(also(verdict)) != routing


def why_of_no_rows(made: Captured) -> str:
    found = made.analyze()
    assert not found.findings
    assert found.verdict.verdict == Cause.UNKNOWN
    assert not found.verdict.findings
    return found.verdict.why


def test_no_traffic_is_called_no_traffic():
    assert why_of_no_rows(Captured()) == ("No verdict: no socket activity in 60 s. Record longer.")
    assert "no socket activity" in why_of_no_rows(Captured().flow())


def test_traffic_that_makes_no_rows_is_not_called_none():
    """Connections that stood before and after: bytes are counted, nothing becomes a row."""
    made = Captured().flow(tx_bytes=1 << 20, tx_calls=9).flow(local_port=40001, rx_bytes=70)
    made.flow(local_port=40002)
    assert why_of_no_rows(made) == (
        "No verdict: 2 flows carried data, but no event was recorded. No fault is visible, and"
        " none is ruled out."
    )


def test_a_filter_is_named_where_nothing_passed_it():
    made = Captured(ports=[8443])
    made.insert("accounting", {"type": "tcp_state", "seen": 500, "filtered": 500})
    assert why_of_no_rows(made) == ("No verdict: nothing matched the filter (port 8443).")


def test_events_that_were_sampled_out_are_not_called_no_traffic():
    made = Captured(sample=1000).flow(tx_bytes=5)
    made.insert("accounting", {"type": "tcp_state", "seen": 5, "filtered": 2, "sampled": 3})
    assert why_of_no_rows(made) == ("No verdict: none of 3 events was kept (sample: 1 in 1,000).")
