# SPDX-License-Identifier: Apache-2.0
"""Findings from counters and from the capture itself: conntrack, host, coverage."""

from typing import Any

import pytest

from ktrace_api.finding import Cause, Severity
from tests.agent.analyze.capture_builder import NET, SERVER, Captured, ends, serious

CONNTRACK = "stat/nf_conntrack"


def busy(**capture: Any) -> Captured:
    return Captured(**capture).connect(1)


def filled(entries: float, drops: int) -> Captured:
    made = busy().counter("conntrack/max", "value", 0, netns=None, before=262144)
    made.counter(CONNTRACK, "entries", 0, before=entries)
    return made.counter(CONNTRACK, "drop", drops) if drops else made


def test_full_table():
    finding = filled(262144, 50).finding("CONNTRACK_FULL")
    assert finding.severity == Severity.CRITICAL
    assert finding.subject.netns == NET
    assert filled(262144, 50).analyze().verdict.verdict == Cause.NAT
    assert filled(262144, 0).finding("CONNTRACK_FULL").severity == Severity.WARNING


def test_a_table_with_room_is_healthy():
    assert filled(200_000, 0).analyze().findings == ()
    assert filled(100, 3).analyze().findings == ()


def test_a_full_table_explains_what_fails():
    made = filled(262144, 50)
    for number in range(20):
        made.connect(10 + number, "abandoned", us=1_600_000)
        made.query(10 + number, None, sock=number)
    verdict = made.analyze().verdict
    assert verdict.verdict == Cause.NAT
    assert set(verdict.findings) == {"CONNTRACK_FULL", "TCP_SYN_UNANSWERED", "DNS_NO_REPLY"}


LIMIT, HELD = 262144, 120_000


def drained(*, peak: float = 0, watched: bool = True, **rose: int) -> Captured:
    """A table that is not full at the start and at the end of the capture."""
    made = busy().counter("conntrack/max", "value", 0, netns=None, before=LIMIT)
    made.counter(CONNTRACK, "entries", 0, before=HELD)
    for name, count in rose.items():
        made.counter(CONNTRACK, name, count)
        if watched:
            made.counter("ctnetlink", name, count)
    if watched:
        made.counter("ctnetlink", "max", 0, before=LIMIT).counter(
            "ctnetlink", "count", 0, before=HELD
        )
    return made.counter("ctnetlink", "peak", 0, before=peak) if peak else made


@pytest.mark.parametrize(
    ("table", "severity", "words"),
    [
        ({"early_drop": 800, "drop": 5000}, Severity.CRITICAL, "800 entries evicted"),
        ({"early_drop": 1}, Severity.CRITICAL, "1 entry evicted"),
        ({"early_drop": 1, "watched": False}, Severity.CRITICAL, "1 entry evicted"),
        ({"peak": LIMIT}, Severity.WARNING, f"{LIMIT:,} of {LIMIT:,} entries"),
        ({"peak": LIMIT * 0.96, "drop": 9}, Severity.CRITICAL, "251,658 of 262,144 entries"),
        ({"peak": LIMIT, "drop": 9, "early_drop": 9}, Severity.CRITICAL, f"{LIMIT:,} of {LIMIT:,}"),
    ],
)
def test_a_table_that_was_full_in_between(table: dict[str, Any], severity: Severity, words: str):
    finding = drained(**table).finding("CONNTRACK_FULL")
    assert finding.severity == severity
    assert f"was full: {words}" in finding.title
    assert finding.subject.netns == NET


def test_a_table_that_was_full_in_between_explains_what_fails():
    made = drained(early_drop=800, drop=5000)
    for number in range(20):
        made.connect(10 + number, "abandoned", us=1_600_000, local_port=41000 + number)
    verdict = made.analyze().verdict
    assert verdict.verdict == Cause.NAT
    assert set(verdict.findings) == {"CONNTRACK_FULL", "TCP_SYN_UNANSWERED"}


def test_drops_alone_do_not_make_a_table_full():
    """Entries that clash are counted as dropped, too."""
    assert drained(peak=LIMIT * 0.9, drop=5000).analyze().findings == ()
    assert busy().counter(CONNTRACK, "drop", 50).analyze().findings == ()


def test_what_was_not_asked_at_the_start_did_not_rise():
    """It may be older than the capture: then its statistics are, too."""
    made = busy().counter("conntrack/max", "value", 0, netns=None, before=LIMIT)
    made.counter("ctnetlink", "max", LIMIT).counter("ctnetlink", "count", HELD)
    assert made.counter("ctnetlink", "early_drop", 500).analyze().findings == ()


def test_a_namespace_may_have_a_limit_of_its_own():
    made = busy().counter("conntrack/max", "value", 0, netns=None, before=LIMIT)
    made.counter("ctnetlink", "max", 0, before=1000).counter("ctnetlink", "count", 990, before=9)
    assert made.finding("CONNTRACK_FULL").title.startswith(
        "Conntrack table full: 999 of 1,000 entries"
    )


def test_insert_failed():
    assert busy().counter(CONNTRACK, "insert_failed", 10).serious() == {"CONNTRACK_INSERT_FAILED"}
    assert busy().counter(CONNTRACK, "insert_failed", 1).serious() == set()


def udp(port: int, calls: int = 5, answered: bool = False, **facts: Any) -> Captured:
    made = busy().flow("udp", port=port, tx_calls=calls, ct_state="UNREPLIED", **facts)
    made.row(2, "udp_send", errno=0, sock=9, **ends("10.0.0.1", 40000, SERVER, port))
    if answered:
        made.flow("udp", port=port, to="10.0.0.8", tx_calls=9, rx_calls=9, ct_state="REPLIED")
    return made


def test_unreplied():
    finding = udp(123).finding("CONNTRACK_UNREPLIED")
    assert finding.severity == Severity.WARNING
    assert finding.subject.peer == f"{SERVER}:123"
    assert finding.points_to == Cause.POLICY
    assert finding.evidence.rows == (1,)
    assert udp(9999, answered=True).serious() == {"CONNTRACK_UNREPLIED"}
    assert udp(123, nat="dnat").finding("CONNTRACK_UNREPLIED").points_to == Cause.NAT


@pytest.mark.parametrize("port", [514, 8125, 4789, 5353])
def test_protocols_that_never_answer_are_healthy(port: int):
    assert udp(port).serious() == set()


def test_few_unreplied_are_no_finding_above_info():
    assert udp(123, calls=2).serious() == set()


@pytest.mark.parametrize(
    "group",
    ["239.255.255.250", "224.0.0.251", "255.255.255.255", "ff02::c", "ff0e::101", "10.0.0.255",
     "10.0.255.255"],
)  # fmt: skip
def test_a_group_is_no_conversation(group: str):
    """SSDP and the like: a question to all, answers from the addresses of some."""
    for port in (1900, 123):
        made = udp(port, answered=True, to=group, local_ip="0.0.0.0").flow()
        assert made.analyze().findings == ()


@pytest.mark.parametrize("host", ["223.1.1.1", "10.0.2.255", "10.0.0.63", "fe80::1", "fd00::ff02"])
def test_a_host_is_one(host: str):
    assert udp(123, to=host).flow().serious() == {"CONNTRACK_UNREPLIED"}


def test_a_translated_address_is_no_broadcast():
    assert udp(123, to="10.0.0.255", nat="dnat").flow().serious() == {"CONNTRACK_UNREPLIED"}


def test_receive_buffer():
    made = busy().counter("snmp", "Udp.RcvbufErrors", 500).counter("snmp", "Udp.InDatagrams", 9500)
    for number in range(5):
        made.row(2 + number, "udp_recv", tgid=700, comm="sink", errno=0,
                 **ends("10.0.0.1", 9000, SERVER, 40000))  # fmt: skip
    finding = made.finding("UDP_RCVBUF_DROPS")
    assert finding.severity == Severity.WARNING
    assert finding.subject.tgid == 700
    assert finding.evidence.numbers[1].value == 0.05


def test_few_or_rare_drops_are_healthy():
    assert busy().counter("snmp", "Udp.RcvbufErrors", 5).serious() == set()
    made = busy().counter("snmp", "Udp.RcvbufErrors", 50)
    assert made.counter("snmp", "Udp.InDatagrams", 1_000_000).serious() == set()


def test_drops_are_a_share_of_what_is_known():
    """A stuck reader receives nothing. If received datagrams are unknown, there is no share."""
    made = busy().counter("snmp", "Udp.RcvbufErrors", 25)
    assert "25 datagrams dropped (100.0 %)" in made.finding("UDP_RCVBUF_DROPS").title
    assert made.serious() == {"UDP_RCVBUF_DROPS"}
    finding = (
        busy(compared=False).counter("snmp", "Udp.RcvbufErrors", 25).finding("UDP_RCVBUF_DROPS")
    )
    assert finding.severity == Severity.INFO
    assert finding.title.startswith("UDP receive buffer full: 25 datagrams dropped")
    assert "received" not in finding.counts
    assert [one.unit for one in finding.evidence.numbers] == ["datagrams"]


def test_softnet():
    made = busy().counter("softnet_stat", "dropped", 500, netns=None)
    assert made.counter("softnet_stat", "processed", 100_000, netns=None).serious() == {
        "SOFTNET_DROPS"
    }
    made = busy().counter("softnet_stat", "dropped", 10, netns=None)
    assert made.serious() == set()


def waited(file: str, share: float, kind: str = "some", **capture: Any) -> Captured:
    made = busy(**capture)
    window = capture.get("window_s", 60.0)
    return made.counter(f"pressure/{file}", f"{kind}.total", share * window * 1e6, netns=None)


def test_cpu():
    made = waited("cpu", 0.95)
    assert made.finding("CPU_PRESSURE").severity == Severity.WARNING
    assert made.analyze().verdict.verdict == Cause.HOST
    assert waited("cpu", 0.6).finding("CPU_PRESSURE").severity == Severity.INFO
    assert waited("cpu", 0.3).analyze().findings == ()
    assert waited("cpu", 1.0, window_s=2.0).serious() == set()


def test_memory():
    assert waited("memory", 0.2).serious() == {"MEMORY_PRESSURE"}
    assert waited("memory", 0.02).serious() == set()
    assert waited("memory", 0.001).analyze().findings == ()


def lost(count: int) -> Captured:
    made = busy(complete=False, lost=count)
    made.insert("accounting", {"type": "tcp_state", "seen": 1000, "lost_ring": count,
                               "lost_map": 0})  # fmt: skip
    return made


def test_losses():
    found = lost(500).analyze()
    assert serious(found) == {"CAPTURE_INCOMPLETE"}
    assert found.verdict.verdict == Cause.UNKNOWN
    assert lost(2).finding("CAPTURE_INCOMPLETE").severity == Severity.INFO
    assert lost(2).analyze().verdict.verdict == Cause.HEALTHY


def test_skipped_events_are_named_and_judged_by_their_share():
    def skipped(count: int, calls: int = 0) -> Captured:
        made = busy(complete=False, lost=count, skipped_calls=calls)
        made.insert("accounting", {"type": "udp_send", "seen": 12_000, "lost_ring": 0,
                                   "lost_map": 0, "skipped": count})  # fmt: skip
        return made

    few = skipped(10).finding("CAPTURE_INCOMPLETE")
    assert (few.severity, few.title) == (
        Severity.INFO, "Capture incomplete: 10 events skipped by the kernel")  # fmt: skip
    assert "ring-bytes" not in few.next
    assert skipped(10).analyze().verdict.verdict == Cause.HEALTHY
    tcp = skipped(0, calls=17).finding("CAPTURE_INCOMPLETE")
    assert (tcp.severity, tcp.title) == (
        Severity.INFO, "Capture incomplete: the bytes of 17 TCP calls")  # fmt: skip
    assert skipped(6000).finding("CAPTURE_INCOMPLETE").severity == Severity.WARNING


def test_limits_that_were_reached():
    finding = busy(complete=False, capped=5000).finding("CAPTURE_INCOMPLETE")
    assert finding.severity == Severity.INFO
    assert finding.counts["capped"] == 5000


def test_missing_hooks():
    made = busy()
    made.insert("hooks", {"hook": "tcp_retransmit", "chosen": None, "refused": ["x: no BTF"]})
    made.insert("hooks", {"hook": "connect", "chosen": None, "refused": []})
    finding = made.finding("CAPTURE_INCOMPLETE")
    assert finding.severity == Severity.WARNING
    assert "tcp_retransmit" in finding.title
    assert "connect" not in finding.title


def test_missing_hooks_are_no_lost_events():
    """`complete` is about events, so it must not contradict the finding."""
    made = busy()
    made.insert("hooks", {"hook": "accept", "chosen": None, "refused": ["exit_accept: no"]})
    finding = made.finding("CAPTURE_INCOMPLETE")
    assert finding.title == (
        "accept was not traced (no eBPF program available); nothing else is missing"
    )
    assert "hooks_missing" in finding.refuted_by
    assert finding.next == "ktrace doctor"
    both = lost(500)
    both.insert("hooks", {"hook": "accept", "chosen": None, "refused": ["exit_accept: no"]})
    finding = both.finding("CAPTURE_INCOMPLETE")
    assert finding.title == "Capture incomplete: 500 events lost, accept not traced"
    assert "hooks_missing" in finding.refuted_by
    assert "hooks_missing" not in lost(500).finding("CAPTURE_INCOMPLETE").refuted_by


def test_nothing_seen_is_not_healthy():
    assert Captured().analyze().verdict.verdict == Cause.UNKNOWN
