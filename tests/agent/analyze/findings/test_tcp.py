# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest

from ktrace_api.finding import Cause, Confidence, Severity
from tests.agent.analyze.capture_builder import NET, SERVER, Captured, ends, serious


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


def test_without_sends_there_is_no_share():
    """Where nothing reports sends, only the handshakes of the flow are known: 12 segments of 3."""
    made = Captured()
    for number in range(12):
        made.retransmit(number / 10)
    made.flow(tx_bytes=None, tx_calls=None, opened=1)
    finding = made.finding("TCP_RETRANSMITS")
    assert finding.severity == Severity.INFO
    assert "segments_sent" not in finding.counts
    assert finding.title == "12 segments from shop (100) to 10.0.0.2:443 were retransmitted"


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


def test_without_a_flow_there_is_no_share():
    """Rows of a client whose flow has no role, as where another process opened it."""
    made = Captured()
    for number in range(12):
        made.retransmit(number * 4)
    made.flow(tx_bytes=10_000_000_000, tx_calls=1_000_000, role=None)
    finding = made.finding("TCP_RETRANSMITS")
    assert finding.severity == Severity.INFO
    assert finding.title == f"12 segments from shop (100) to {SERVER}:443 were retransmitted"
    assert "segments_sent" not in finding.counts
    assert made.analyze().verdict.verdict == Cause.HEALTHY


def test_a_flow_without_traffic_gives_no_share():
    """The kernel makes it for the resend itself: what was sent went by unseen."""
    made = Captured()
    for number in range(12):
        made.retransmit(number * 4)
    assert serious(made.flow(retrans_segs=12).analyze()) == set()


def test_without_a_share_a_stall_is_one():
    made = Captured()
    for second in (1.0, 1.2, 1.6, 2.4, 4.0):
        made.retransmit(second, sock=5)
    finding = made.finding("TCP_RETRANSMITS")
    assert finding.severity == Severity.WARNING
    assert finding.title.startswith("1 connection from shop (100) to")


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


def aborts(port: int, count: int = 30) -> Captured:
    """A proxy that probes a backend: connect, and close with a RST."""
    return add_aborts(Captured(), port, count)


def add_aborts(made: Captured, port: int, count: int) -> Captured:
    add_cuts(made, port, count)
    return made.flow(opened=count, port=port)


def add_cuts(made: Captured, port: int, count: int, tgid: int = 100) -> None:
    for number in range(count):
        made.row(1 + number, "tcp_state", role="client", tgid=tgid, sock=port * 100 + number,
                 old_state="ESTABLISHED", new_state="CLOSE",
                 **ends("10.0.0.1", 40000 + number, SERVER, port))  # fmt: skip


def add_probes(made: Captured, count: int, role: str | None = "server") -> Captured:
    """Probes of this side's own listener that close with a RST."""
    for number in range(count):
        made.row(2 + number, "tcp_state", role=role, sock=90 + number,
                 old_state="ESTABLISHED", new_state="CLOSE",
                 **ends("10.0.0.1", 8404, "10.0.0.254", 30000 + number))  # fmt: skip
    return made


def counted(made: Captured, resets: int, aborted: int) -> Captured:
    made.counter("snmp", "Tcp.EstabResets", resets)
    return made.counter("netstat", "TcpExt.TCPAbortOnData", aborted)


@pytest.mark.parametrize("role", ["server", None])
def test_resets_that_a_server_received_are_not_its_clients(role: str | None) -> None:
    """Tcp.EstabResets counts both: of 36 cuts 30 are probes of its own, 6 of its listener."""
    made = add_probes(aborts(80), 6, role)
    assert counted(made, 36, 30).analyze().findings == ()


def test_nor_where_one_in_two_is_a_row():
    made = Captured(sample=2)
    add_aborts(made, 80, 15)
    assert counted(add_probes(made, 3), 36, 30).analyze().findings == ()


def test_nor_where_a_filter_hides_the_server():
    made = Captured(ports=[80])
    assert counted(add_aborts(made, 80, 30), 36, 30).analyze().findings == ()


def test_behind_a_filter_resets_are_found_as_well():
    made = Captured(ports=[80])
    finding = counted(add_aborts(made, 80, 30), 36, 6).finding("TCP_RESETS")
    assert (finding.severity, finding.counts["resets"]) == (Severity.WARNING, 24)


def test_a_reset_is_one_of_one_peer():
    """Six of 60 aborts were received. They are shared by ten peers, so each sent at most one."""
    made = Captured()
    for port in range(8000, 8010):
        add_aborts(made, port, 6)
    assert counted(made, 60, 54).analyze().verdict.verdict == Cause.HEALTHY


def test_resets_of_several_peers_by_the_counters():
    made = Captured()
    for port in (8000, 8001):
        add_aborts(made, port, 6)
    findings = counted(made, 12, 0).analyze().findings
    assert [(one.subject.peer, one.severity) for one in findings] == [
        (f"{SERVER}:8000", Severity.WARNING), (f"{SERVER}:8001", Severity.WARNING)
    ]  # fmt: skip
    assert [one.counts["resets"] for one in findings] == [6, 6]


def test_resets_that_are_known_are_taken_off_the_rest():
    """Five resets by a peer that closed first; aborts of the client itself do not count."""
    made = cut(5, first=False, both=True)
    add_aborts(made, 80, 30)
    findings = counted(made, 40, 35).analyze().findings
    assert [one.subject.peer for one in findings] == [f"{SERVER}:443"]


def test_a_server_that_aborts_by_itself_took_no_reset_of_a_client():
    """All on one node: its own ends were first, so the counters' resets are the clients'."""
    made = Captured()
    change = {"old_state": "ESTABLISHED", "new_state": "CLOSE"}
    for number in range(5):
        here, there = (SERVER, 50000 + number), ("10.0.0.1", 9000)
        made.row(1, "tcp_state", role="server", sock=50 + number, **change, **ends(*there, *here))
        made.row(1.001, "tcp_state", role="client", net=7, tgid=9, sock=70 + number, **change,
                 **ends(*here, *there))  # fmt: skip
    add_aborts(made, 443, 5)
    findings = counted(made, 10, 5).analyze().findings
    assert {one.subject.peer for one in findings} == {f"{SERVER}:443", "10.0.0.1:9000"}


def test_who_did_not_open_them_is_measured_by_who_did():
    """A child that uses connections of its parent: 4 of 2,000, not all."""
    made = Captured().flow(opened=2000)
    add_cuts(made, 443, 4, tgid=200)
    finding = counted(made, 4, 0).finding("TCP_RESETS")
    assert finding.severity == Severity.INFO


def test_resets_without_a_count_of_connections_have_no_share():
    made = Captured().flow(role=None, tx_bytes=100)
    add_cuts(made, 443, 4)
    finding = counted(made, 4, 0).finding("TCP_RESETS")
    assert finding.severity == Severity.INFO
    assert "opened" not in finding.counts


def test_two_resets_are_no_finding_above_info():
    assert serious(cut(2, first=False, both=True).analyze()) == set()


def test_resets_by_counters_that_cannot_be_compared_with_aborts():
    """The clients may have done it themselves."""
    made = cut(50, compared=False).counter("snmp", "Tcp.EstabResets", 50)
    finding = made.finding("TCP_RESETS")
    assert (finding.severity, finding.confidence) == (Severity.INFO, Confidence.LOW)
    assert finding.coverage == (
        "Counters of its network namespace are missing (TcpExt.TCPAbortOnClose, ...).",
    )


def test_resets_that_both_ends_show_need_no_counters():
    finding = cut(5, first=False, both=True, compared=False).finding("TCP_RESETS")
    assert (finding.severity, finding.confidence) == (Severity.WARNING, Confidence.HIGH)
    assert finding.coverage == ()


def test_loss_that_cannot_be_compared_with_duplicates_is_less_certain():
    """The receiver may already have had all segments, but the rows exist."""
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


def test_without_accept_nobody_knows_who_waits():
    """Every accepted connection then keeps the listener as its owner."""
    made = overflowing(20)
    made.insert("hooks", {"hook": "accept", "chosen": None, "refused": ["exit_accept: no event"]})
    finding = made.finding("LISTEN_OVERFLOW")
    assert (
        finding.title == "Accept queue full on an unknown listener: 20 connection attempts dropped"
    )
    assert finding.subject.tgid == "-"
    assert "not_accepted" not in finding.counts


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
