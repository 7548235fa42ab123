# SPDX-License-Identifier: Apache-2.0
import pytest

from ktrace_api.finding import Cause, Confidence, Severity
from ktrace_api.thresholds import Thresholds
from tests.agent.analyze.capture_builder import NET, SERVER, Captured, ends, made_of, more, serious


def test_established_connects_are_healthy():
    found = made_of(50, "established").analyze()
    assert found.findings == ()
    assert found.verdict.verdict == Cause.HEALTHY


# SYN unanswered


def test_unanswered():
    made = made_of(12, "abandoned", us=1_100_000)
    finding = made.finding("TCP_SYN_UNANSWERED")
    assert finding.severity == Severity.CRITICAL
    assert finding.subject.peer == f"{SERVER}:443"
    assert finding.subject.tgid == 100
    assert finding.evidence.rows == tuple(range(8))
    assert made.analyze().verdict.verdict == Cause.POLICY


def test_connection_tracking_saw_no_answer_either():
    made = made_of(5, "abandoned", us=1_100_000, ct_state="SYN_SENT")
    assert made.finding("TCP_SYN_UNANSWERED").counts["conntrack_unreplied"] == 5


def test_pending_at_the_end():
    made = made_of(3, "pending", us=5_000_000)
    assert made.serious() == {"TCP_SYN_UNANSWERED"}


def test_one_long_wait_is_enough_one_short_is_not():
    assert made_of(1, "pending", us=4_000_000).serious() == {"TCP_SYN_UNANSWERED"}
    assert made_of(1, "pending", us=1_500_000).serious() == set()


def test_pending_since_before_the_capture():
    assert made_of(2, "pending", us=None).serious() == {"TCP_SYN_UNANSWERED"}


def test_connects_that_just_began_are_healthy():
    assert made_of(30, "pending", us=300_000).analyze().findings == ()


def test_losers_of_a_race_between_addresses_are_healthy():
    """Happy eyeballs: the slower connect is abandoned as soon as the other one stands."""
    made = made_of(20, "abandoned", us=250_000, to="fd00::2")
    assert more(made, 20, "established").analyze().findings == ()


def test_one_way_drop_shows_the_syn_ack():
    made = made_of(5, "abandoned", us=1_100_000)
    for number in range(5):
        made.retransmit(2 + number, state="NEW_SYN_RECV", synack=True, role="server",
                        **ends(SERVER, 443, "10.0.0.1", 40000 + number))  # fmt: skip
    finding = made.finding("TCP_SYN_UNANSWERED")
    assert "SYN-ACKs of local server" in finding.title
    assert finding.counts["synack_again"] == 5
    assert finding.points_to == Cause.POLICY


def test_a_dead_backend_behind_a_service_is_nat():
    made = Captured()
    for number in range(30):
        dead = number % 3 == 0
        backend = f"10.1.0.{number % 3}:8080 -> 10.0.0.1:{40000 + number}"
        made.connect(
            number / 10, "abandoned" if dead else "established", us=1_100_000 if dead else 300,
            to="10.96.0.10", port=80, nat="dnat", ct_reply=backend,
        )  # fmt: skip
    finding = made.finding("TCP_SYN_UNANSWERED")
    assert finding.points_to == Cause.NAT
    assert "10.1.0.0:8080 of 3" in finding.title
    assert made.analyze().verdict.verdict == Cause.NAT


def test_timeout():
    finding = made_of(1, "failed", "ETIMEDOUT", us=130_000_000).finding("TCP_CONNECT_TIMEOUT")
    assert finding.severity == Severity.WARNING


# Unreachable


@pytest.mark.parametrize("error", ["ENETUNREACH", "EHOSTUNREACH"])
def test_unreachable(error: str):
    made = made_of(3, "failed", error, us=100)
    assert made.finding("TCP_CONNECT_UNREACHABLE").severity == Severity.WARNING
    assert made.analyze().verdict.verdict == Cause.ROUTING


def test_one_unreachable_connect_is_no_finding_above_info():
    assert made_of(1, "failed", "ENETUNREACH").serious() == set()


def test_no_ipv6_where_ipv4_works_is_healthy():
    made = made_of(10, "failed", "ENETUNREACH", to="2001:db8::1")
    assert more(made, 10, "established").serious() == set()


def test_a_node_without_ipv6_and_a_proxy_with_many_sites():
    """Each site has an address of either version; others, which only have IPv4, are busier."""
    made = Captured()
    for number in range(100):
        made.connect(number / 2, "failed", "ENETUNREACH", to=f"2001:db8::{number % 5}", us=30)
        made.connect(number / 2 + 0.02, to=f"10.0.1.{number % 5}", us=19_000)
    for number in range(1000):
        made.connect(number / 20, to="10.0.2.1")
    assert made.serious() == set()


def test_one_site_works_and_another_cannot_be_reached_over_ipv6():
    made = Captured()
    for number in range(50):
        made.connect(number, "failed", "EHOSTUNREACH", to="2001:db8::1", us=3_000_000)
        made.connect(number + 0.5, to="10.0.1.1")
    assert made.serious() == {"TCP_CONNECT_UNREACHABLE"}


def test_icmp_from_others_is_policy_own_is_not():
    quick = made_of(3, "failed", "EHOSTUNREACH", us=300).counter("snmp", "Icmp.InDestUnreachs", 3)
    assert quick.finding("TCP_CONNECT_UNREACHABLE").points_to == Cause.POLICY
    own = made_of(3, "failed", "EHOSTUNREACH", us=300).counter("snmp", "Icmp.InDestUnreachs", 3)
    own.counter("snmp", "Icmp.OutDestUnreachs", 3)
    assert own.finding("TCP_CONNECT_UNREACHABLE").points_to == Cause.ROUTING
    late = made_of(3, "failed", "EHOSTUNREACH", us=3_000_000)
    late.counter("snmp", "Icmp.InDestUnreachs", 3)
    assert late.finding("TCP_CONNECT_UNREACHABLE").points_to == Cause.ROUTING


# Denied


@pytest.mark.parametrize(
    ("result", "error"), [("denied", "EACCES"), ("failed", "EPERM"), ("denied", "ENETUNREACH")]
)
def test_denied(result: str, error: str):
    made = made_of(3, result, error, us=None)
    assert made.serious() == {"CONNECT_DENIED"}
    assert made.analyze().verdict.verdict == Cause.POLICY


def test_denied_once_is_no_finding_above_info():
    assert made_of(1, "denied", "EPERM").serious() == set()


# Ephemeral ports


def test_ports_exhausted():
    made = more(made_of(50, "established"), 20, "failed", "EADDRNOTAVAIL", start=10)
    finding = made.finding("EPHEMERAL_PORTS_EXHAUSTED")
    assert finding.severity == Severity.WARNING
    assert made.analyze().verdict.verdict == Cause.HOST


def test_sockets_from_before_the_capture_hold_the_ports():
    made = made_of(5, "failed", "EADDRNOTAVAIL")
    for number in range(5):
        made.socket("end", "ESTABLISHED", **ends("10.0.0.1", 40000 + number, SERVER, 443))
    assert made.serious() == {"EPHEMERAL_PORTS_EXHAUSTED"}


def test_no_source_address_is_not_exhaustion():
    """connect(::1) where IPv6 is disabled."""
    made = made_of(10, "failed", "EADDRNOTAVAIL", to="::1")
    assert more(made, 10, "established", to="127.0.0.1").serious() == set()


# Slow


def test_slow():
    finding = made_of(10, "established", us=600_000).finding("TCP_CONNECT_SLOW")
    assert finding.severity == Severity.WARNING
    assert finding.points_to == Cause.ROUTING


def test_lost_syns():
    made = more(made_of(50, "established"), 5, "established", us=1_040_000, start=20)
    assert made.serious() == {"TCP_CONNECT_SLOW"}


def test_a_far_peer_and_a_rare_lost_syn_are_healthy():
    assert made_of(20, "established", us=250_000).serious() == set()
    made = more(made_of(300, "established"), 2, "established", us=1_040_000, start=40)
    assert made.serious() == set()


# All of them


def test_each_process_and_peer_is_a_subject():
    made = made_of(5, "failed", "ECONNREFUSED")
    more(made, 5, "failed", "ECONNREFUSED", port=80)
    more(made, 5, "failed", "ECONNREFUSED", tgid=200, comm="other")
    found = made.analyze().findings
    assert {(one.subject.comm, one.subject.peer) for one in found} == {
        ("shop", f"{SERVER}:443"),
        ("shop", f"{SERVER}:80"),
        ("other", f"{SERVER}:443"),
    }


def test_losses_and_sampling_lower_the_confidence():
    finding = made_of(5, "failed", "ECONNREFUSED").finding("TCP_CONNECT_REFUSED")
    assert (finding.confidence, finding.coverage) == (Confidence.HIGH, ())

    made = Captured(sample=10, ports=[443])
    made.insert(
        "hooks", {"hook": "connect", "chosen": None, "refused": ["exit_connect: no tracefs"]}
    )
    made.insert("accounting", {"type": "connect", "seen": 100, "lost_ring": 20, "lost_map": 0})
    finding = more(made, 5, "failed", "ECONNREFUSED").finding("TCP_CONNECT_REFUSED")
    assert finding.confidence == Confidence.LOW
    assert len(finding.coverage) == 4
    assert "20.0 %" in "".join(finding.coverage)


def test_thresholds_can_be_changed():
    made = made_of(3, "failed", "ECONNREFUSED")
    assert serious(made.analyze(Thresholds(refused_count=4))) == set()
    assert serious(made.analyze(Thresholds(refused_count=3))) == {"TCP_CONNECT_REFUSED"}


def test_text_in_names_is_only_text():
    made = made_of(5, "failed", "ECONNREFUSED", comm="x'; DROP TABLE rows; --", net=NET)
    assert "DROP TABLE" in made.finding("TCP_CONNECT_REFUSED").title
