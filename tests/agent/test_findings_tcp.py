# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest

from ktrace_api.finding import Cause, Confidence, Severity

from .captured import NET, SERVER, Captured, ends, serious


def lossy(segs: int, sent: int, **facts: Any) -> Captured:
    made = Captured()
    for number in range(segs):
        made.retransmit(number / 20, sock=number % 7 + 1, **facts)
    return made.flow(tx_bytes=sent * 1448, tx_calls=10, opened=1)


def test_loss():
    finding = lossy(40, 2000).finding("TCP_RETRANSMITS")
    assert finding.severity == Severity.WARNING
    assert finding.points_to == Cause.ROUTING
    assert finding.subject.peer == f"{SERVER}:443"
    assert finding.counts["segments_again"] == 40
    assert lossy(200, 2000).finding("TCP_RETRANSMITS").severity == Severity.CRITICAL


def test_few_or_rare_retransmits_are_healthy():
    assert serious(lossy(5, 100).analyze()) == set()
    assert serious(lossy(40, 20_000).analyze()) == set()


def test_needless_retransmits_are_healthy():
    made = lossy(40, 2000).counter("snmp", "Tcp.RetransSegs", 40)
    assert serious(made.counter("netstat", "TcpExt.TCPDSACKRecv", 38).analyze()) == set()


def test_syns_are_no_loss():
    assert lossy(40, 100, state="SYN_SENT").analyze().findings == ()


def test_a_server_has_its_clients_together():
    made = Captured()
    for number in range(60):
        made.retransmit(number / 20, sock=number + 1, role="server",
                        **ends("10.0.0.1", 443, SERVER, 40000 + number))  # fmt: skip
        made.insert("flows", {"net": NET, "tgid": 100, "proto": "tcp", "role": "server",
                              "tx_bytes": 30_000, "tx_calls": 1, "opened": 1,
                              **ends("10.0.0.1", 443, SERVER, 40000 + number)})  # fmt: skip
    finding = made.finding("TCP_RETRANSMITS")
    assert finding.severity == Severity.WARNING
    assert finding.subject.peer == SERVER


def stalled() -> Captured:
    made = Captured()
    for second in (1.0, 1.2, 1.6, 2.4, 4.0):
        made.retransmit(second, sock=5)
    return made.flow(tx_bytes=10_000_000, opened=1)


def test_one_connection_that_gets_nothing_acknowledged():
    finding = stalled().finding("TCP_RETRANSMITS")
    assert finding.severity == Severity.WARNING
    assert finding.counts["stalled"] == 1


@pytest.mark.parametrize(("again", "duplicates", "severe"), [(23, 19, True), (23, 20, False)])
def test_late_segments_of_a_busy_connection_are_no_stall(
    again: int, duplicates: int, severe: bool
) -> None:
    """The receiver reports each as a duplicate: that pauses grow is then chance."""
    made = stalled().counter("snmp", "Tcp.RetransSegs", again)
    made.counter("netstat", "TcpExt.TCPDSACKRecv", duplicates)
    assert bool(serious(made.analyze())) == severe


def test_probes_now_and_then_are_no_stall():
    made = Captured()
    for second in (1, 11, 22, 31, 42, 50):
        made.retransmit(second, sock=5)
    assert serious(made.flow(tx_bytes=10_000_000, opened=1).analyze()) == set()


# Resets


def cut(
    count: int, role: str = "client", first: bool = True, both: bool = False, **capture: Any
) -> Captured:
    made = Captured(**capture)
    for number in range(count):
        here, there = ("10.0.0.1", 40000 + number), (SERVER, 443)
        change = {"old_state": "ESTABLISHED", "new_state": "CLOSE"}
        made.row(1 + number, "tcp_state", role=role, sock=number, **change, **ends(*here, *there))
        if both:
            made.row(1 + number + (0.001 if first else -0.001), "tcp_state", role="server",
                     tgid=7, sock=900 + number, **change, **ends(*there, *here))  # fmt: skip
    return made.flow(opened=count)


def test_resets_by_the_peer_where_both_ends_are_seen():
    finding = cut(5, first=False, both=True).finding("TCP_RESETS")
    assert finding.severity == Severity.WARNING
    assert finding.subject.peer == f"{SERVER}:443"
    assert finding.points_to == Cause.APPLICATION


def test_clients_that_abort_themselves_are_healthy():
    """SO_LINGER 0, as load generators and health checks close."""
    assert cut(50, first=True, both=True).analyze().findings == ()
    made = cut(50).counter("snmp", "Tcp.EstabResets", 50)
    assert made.counter("netstat", "TcpExt.TCPAbortOnData", 50).analyze().findings == ()


def test_resets_by_the_counters():
    made = cut(5).counter("snmp", "Tcp.EstabResets", 5)
    assert made.serious() == {"TCP_RESETS"}


def test_two_resets_are_no_finding_above_info():
    assert serious(cut(2, first=False, both=True).analyze()) == set()


def test_resets_by_counters_that_cannot_be_held_against_aborts():
    """The clients may have done it themselves."""
    made = cut(50, compared=False).counter("snmp", "Tcp.EstabResets", 50)
    finding = made.finding("TCP_RESETS")
    assert (finding.severity, finding.confidence) == (Severity.INFO, Confidence.LOW)
    assert finding.coverage == (
        "Its namespace's counters could not be compared (TcpExt.TCPAbortOnClose, ...).",
    )


def test_resets_that_both_ends_show_need_no_counters():
    finding = cut(5, first=False, both=True, compared=False).finding("TCP_RESETS")
    assert (finding.severity, finding.confidence) == (Severity.WARNING, Confidence.HIGH)
    assert finding.coverage == ()


def test_loss_that_cannot_be_held_against_duplicates_is_less_certain():
    """The receiver may have had all of it: the rows themselves are seen all the same."""
    for compared, confidence in ((True, Confidence.HIGH), (False, Confidence.MEDIUM)):
        made = Captured(compared=compared).flow(tx_bytes=1_000_000, opened=1)
        for number in range(60):
            made.retransmit(number / 10, sock=1 + number)
        finding = made.finding("TCP_RETRANSMITS")
        assert (finding.severity, finding.confidence) == (Severity.WARNING, confidence)
        assert ("needless" in finding.counts) is compared
        assert len(finding.coverage) == (0 if compared else 1)


# CLOSE_WAIT


def close_wait(start: int, end: int, age_s: float = 20.0, step_s: float = 0.1) -> Captured:
    made = Captured()
    for _ in range(start):
        made.socket("start", "CLOSE_WAIT", 5.0)
    for number in range(end):
        made.socket("end", "CLOSE_WAIT", age_s + number * step_s)
    return made


def test_close_wait_grows():
    finding = close_wait(5, 60).finding("CLOSE_WAIT_GROWING")
    assert finding.severity == Severity.WARNING
    assert finding.subject.tgid == 100
    assert finding.points_to == Cause.APPLICATION
    assert finding.counts == {"before": 5, "after": 60, "stale": 60}


def test_close_wait_that_passes_or_stays_is_healthy():
    assert serious(close_wait(0, 60, age_s=0.001, step_s=0).analyze()) == set()
    assert serious(close_wait(60, 60).analyze()) == set()
    assert serious(close_wait(0, 5).analyze()) == set()


def test_a_peer_that_restarts_leaves_all_at_once():
    assert serious(close_wait(0, 60, step_s=0).analyze()) == set()


# Backlog


def listener(made: Captured, tgid: int, port: int) -> None:
    made.insert("sockets", {"moment": "end", "state": "LISTEN", "net": NET, "tgid": tgid,
                            "comm": "web", **ends("10.0.0.1", port, None, None)})  # fmt: skip


def overflowing(drops: int) -> Captured:
    made = Captured().counter("netstat", "TcpExt.ListenOverflows", drops)
    listener(made, 300, 8080)
    listener(made, 400, 9090)
    for number in range(5):
        made.row(number, "tcp_state", role="server", tgid=300, owner_source="listener",
                 old_state="SYN_RECV", new_state="ESTABLISHED", sock=number + 1,
                 **ends("10.0.0.1", 8080, SERVER, 40000 + number))  # fmt: skip
    return made


def test_backlog_full():
    finding = overflowing(20).finding("LISTEN_OVERFLOW")
    assert finding.severity == Severity.WARNING
    assert finding.subject.tgid == 300
    assert finding.subject.peer == "10.0.0.1:8080"
    assert finding.points_to == Cause.APPLICATION
    assert finding.counts["not_accepted"] == 5


def test_one_overflow_is_no_finding_above_info():
    assert serious(overflowing(1).analyze()) == set()


def test_a_full_backlog_explains_its_unanswered_syns():
    made = overflowing(20)
    for number in range(20):
        made.connect(10 + number, "abandoned", us=1_600_000, to="10.0.0.1", port=8080)
    verdict = made.analyze().verdict
    assert verdict.verdict == Cause.APPLICATION
    assert verdict.findings == ("LISTEN_OVERFLOW", "TCP_SYN_UNANSWERED")


def test_and_not_those_of_others():
    made = overflowing(20)
    for number in range(20):
        made.connect(10 + number, "abandoned", us=1_600_000, to="10.0.0.7", port=443)
    assert made.analyze().verdict.verdict == Cause.POLICY
