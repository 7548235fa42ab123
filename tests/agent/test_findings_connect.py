# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest

from ktrace_agent.analyze.findings import MAX_OF_ONE_ID
from ktrace_api.finding import Cause, Confidence, Severity
from ktrace_api.thresholds import Thresholds

from .captured import NET, SERVER, Captured, ends, serious


def made_of(
    count: int, result: str, error: str = "-", start: float = 1.0, **facts: Any
) -> Captured:
    return more(Captured(), count, result, error, start, **facts)


def more(
    made: Captured, count: int, result: str, error: str = "-", start: float = 1.0, **facts: Any
) -> Captured:
    for number in range(count):
        made.connect(start + number / 10, result, error, **{"local_port": 40000 + number, **facts})
    return made


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
    assert "SYN-ACK is lost" in finding.title
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


# Refused


def test_refused():
    finding = made_of(5, "failed", "ECONNREFUSED").finding("TCP_CONNECT_REFUSED")
    assert finding.severity == Severity.WARNING
    assert finding.points_to == Cause.APPLICATION
    assert made_of(20, "failed", "ECONNREFUSED").finding("TCP_CONNECT_REFUSED").severity == (
        Severity.CRITICAL
    )


def test_refused_twice_is_no_finding_above_info():
    assert made_of(2, "failed", "ECONNREFUSED").serious() == set()


def test_refused_until_the_server_was_up():
    made = made_of(20, "failed", "ECONNREFUSED")
    more(made, 5, "established", start=10)
    finding = made.finding("TCP_CONNECT_REFUSED")
    assert finding.severity == Severity.INFO
    assert "until it worked" in finding.title


def test_refused_from_some_time_on():
    made = made_of(20, "established")
    assert more(made, 5, "failed", "ECONNREFUSED", start=10).serious() == {"TCP_CONNECT_REFUSED"}


def test_refused_again_and_again_between_successes():
    made = Captured()
    for number in range(30):
        more(made, 1, "failed", "ECONNREFUSED", start=number)
        more(made, 2, "established", start=number + 0.5)
    assert made.serious() == {"TCP_CONNECT_REFUSED"}


def test_a_scan_of_ports_is_no_finding_above_info():
    made = Captured()
    for again in range(4):
        for port in range(1, 40):
            good = port % 10 == 0
            made.connect(
                again + port / 100, "established" if good else "failed",
                "-" if good else "ECONNREFUSED", port=port,
            )  # fmt: skip
    found = made.analyze()
    assert serious(found) == set()
    assert len(found.findings) == MAX_OF_ONE_ID
    assert found.findings[-1].counts["subjects_left_out"] > 0


def test_all_ports_of_a_dead_host_are_no_scan():
    """A scraper with 8 targets on one machine, which is gone."""
    made = Captured()
    for again in range(30):
        for port in range(8):
            made.connect(again * 2 + port / 10, "failed", "ECONNREFUSED", port=8000 + port)
    found = made.analyze()
    assert serious(found) == {"TCP_CONNECT_REFUSED"}
    assert found.verdict.verdict == Cause.APPLICATION
    assert "scan" not in found.findings[0].title


def scan(made: Captured, rounds: int, **facts: Any) -> Captured:
    for again in range(rounds):
        for port in range(40):
            facts = {"tgid": 1000 + 40 * again + port, "comm": "nc", **facts}
            made.connect(again * 10 + port / 10, "failed", "ECONNREFUSED", port=port, **facts)
    return made


@pytest.mark.parametrize("rounds", [1, 2, 3, 4])
def test_a_scan_with_a_process_for_each_port_is_healthy(rounds: int):
    assert scan(Captured(), rounds).serious() == set()


def test_a_scan_that_asks_some_ports_more_often_is_healthy():
    made = scan(Captured(), 2, tgid=7)
    for port in range(5):
        made.connect(30 + port, "failed", "ECONNREFUSED", port=port, tgid=7, comm="nc")
    assert made.serious() == set()


def test_who_scans_may_also_miss_a_server():
    made = scan(Captured(), 2, tgid=7)
    for number in range(30):
        made.connect(30 + number / 2, "failed", "ECONNREFUSED", port=5432, tgid=7, comm="nc")
    told = [one for one in made.analyze().findings if one.severity != Severity.INFO]
    assert [one.subject.peer for one in told] == [f"{SERVER}:5432"]


def test_localhost_over_the_other_ip_version():
    made = made_of(10, "failed", "ECONNREFUSED", to="::1")
    assert more(made, 10, "established", to="127.0.0.1", family="ipv4").serious() == set()


def refused_each_second(count: int = 50, **facts: Any) -> Captured:
    made = Captured()
    for number in range(count):
        made.connect(number, "failed", "ECONNREFUSED", us=200, port=8443, **facts)
    return made


def test_another_backend_over_the_other_ip_version():
    """A proxy with two backends at the same port: one works, once, the other one is gone."""
    made = refused_each_second().connect(30, to="fd00::9", port=8443)
    assert made.serious() == {"TCP_CONNECT_REFUSED"}


@pytest.mark.parametrize("pause", [0.02, 0.1, 0.5])
def test_steady_traffic_over_the_other_ip_version_is_no_second_choice(pause: float):
    made = refused_each_second()
    for number in range(round(50 / pause)):
        made.connect(0.3 + number * pause, to="fd00::9", port=8443)
    assert made.serious() == {"TCP_CONNECT_REFUSED"}


@pytest.mark.parametrize(
    "facts", [{"tgid": 200}, {"port": 80}, {"net": NET + 1}, {"to": "10.0.0.3", "family": "ipv4"}]
)
def test_a_second_choice_is_of_the_same_process_and_port(facts: dict[str, Any]):
    made = refused_each_second()
    for number in range(50):
        made.connect(number + 0.001, **{"to": "fd00::9", "port": 8443, **facts})
    assert made.serious() == {"TCP_CONNECT_REFUSED"}


def test_a_burst_of_refusals_with_one_success_over_the_other_ip_version():
    made = Captured()
    for number in range(50):
        made.connect(5 + number / 1000, "failed", "ECONNREFUSED", port=8443)
    assert made.connect(5.06, to="fd00::9", port=8443).serious() == {"TCP_CONNECT_REFUSED"}


def test_many_threads_that_all_fall_back_at_once():
    made = Captured()
    for number in range(320):
        second = number // 16
        made.connect(second, "failed", "ECONNREFUSED", to="::1", us=50 + number)
        made.connect(second + 0.002 + number / 1e5, to="127.0.0.1", us=100)
    assert made.serious() == set()


def test_the_other_ip_version_won_the_race():
    """The second attempt is refused while the first one is on its way."""
    made = Captured()
    for number in range(20):
        made.connect(number + 0.251, "failed", "ECONNREFUSED", us=1000)
        made.connect(number + 0.28, to="fd00::9", us=280_000)
    assert made.serious() == set()


def test_processes_that_connect_once_over_either_ip_version():
    made = Captured()
    for number in range(40):
        facts: dict[str, Any] = {"tgid": 1000 + number, "comm": "curl"}
        made.connect(number, "failed", "ECONNREFUSED", to="::1", **facts)
        made.connect(number + 0.001, to="127.0.0.1", **facts)
    assert made.serious() == set()


def test_the_other_ip_version_in_a_sampled_capture():
    """One event in ten is a row: pairs are torn."""
    made = Captured(sample=10)
    for number in range(10):
        made.connect(number, "failed", "ECONNREFUSED", to="::1")
        made.connect(number + 0.5, to="127.0.0.1")
    assert made.serious() == set()
    made = refused_each_second(10).connect(5, to="fd00::9", port=8443)
    made.con.execute("UPDATE capture SET sample = 10")
    assert made.serious() == {"TCP_CONNECT_REFUSED"}


def test_rejected_by_icmp_is_policy():
    made = made_of(5, "failed", "ECONNREFUSED").counter("snmp", "Icmp.InDestUnreachs", 5)
    finding = made.finding("TCP_CONNECT_REFUSED")
    assert finding.points_to == Cause.POLICY
    assert "RST" in finding.refuted_by


def refused_with_icmp(messages: int, **changes: Any) -> Captured:
    made = more(Captured(**changes), 12, "failed", "ECONNREFUSED")
    return made.counter("snmp", "Icmp.InDestUnreachs", messages)


def assert_firewall_is_only_possible(made: Captured) -> None:
    finding = made.finding("TCP_CONNECT_REFUSED")
    assert finding.points_to == Cause.APPLICATION
    assert made.analyze().verdict.verdict == Cause.APPLICATION
    assert "firewall" not in finding.title
    assert "firewall" in finding.refuted_by
    assert "icmp" in finding.next


def test_icmp_for_udp_that_nobody_takes_says_nothing_of_connects():
    """Metrics to a collector that is not installed, beside a server that is not up."""
    made = refused_with_icmp(40).flow("udp", port=8125, tx_calls=40)
    assert_firewall_is_only_possible(made)


def test_icmp_for_answers_to_clients_that_left_says_nothing_of_connects():
    made = refused_with_icmp(40).flow("udp", role="server", tx_calls=40, rx_calls=40)
    assert_firewall_is_only_possible(made)


def test_icmp_for_packets_that_were_too_big_says_nothing_of_connects():
    made = refused_with_icmp(12).counter("snmp", "Tcp.RetransSegs", 12)
    assert_firewall_is_only_possible(made)
    made = refused_with_icmp(12).counter("snmp", "Tcp.RetransSegs", 12)
    made.counter("netstat", "TcpExt.TCPSynRetrans", 12)
    assert made.finding("TCP_CONNECT_REFUSED").points_to == Cause.POLICY


def test_icmp_that_another_refusal_may_have_met():
    made = more(refused_with_icmp(12), 12, "failed", "ECONNREFUSED", tgid=200, port=80)
    for finding in made.analyze().findings:
        assert finding.points_to == Cause.APPLICATION
        assert "firewall" in finding.refuted_by
    made = more(refused_with_icmp(24), 12, "failed", "ECONNREFUSED", tgid=200, port=80)
    assert {one.points_to for one in made.analyze().findings} == {Cause.POLICY}


@pytest.mark.parametrize("changes", [{"ports": [443]}, {"events": ["connect", "tcp"]}])
def test_icmp_where_udp_was_not_captured(changes: dict[str, Any]):
    assert_firewall_is_only_possible(refused_with_icmp(12, **changes))


def test_udp_that_is_answered_or_elsewhere_explains_no_icmp():
    made = refused_with_icmp(12).flow("udp", port=53, tx_calls=100, rx_calls=100)
    made.flow("udp", port=8125, tx_calls=100, net=NET + 1)
    made.flow("udp", to="fd00::9", port=8125, tx_calls=100, family="ipv6")
    assert made.finding("TCP_CONNECT_REFUSED").points_to == Cause.POLICY


def test_icmp_that_met_connecting_sockets_is_not_of_udp():
    """It came while connect() held the socket: the kernel counts that for TCP alone."""
    made = refused_with_icmp(52).flow("udp", port=514, tx_calls=1000)
    made.counter("netstat", "TcpExt.LockDroppedIcmps", 12)
    assert made.finding("TCP_CONNECT_REFUSED").points_to == Cause.POLICY


def test_nobody_else_rejects_what_goes_to_oneself():
    made = more(refused_with_icmp(12), 12, "failed", "ECONNREFUSED", to="127.0.0.1", port=80)
    found = {one.subject.peer: one for one in made.analyze().findings}
    assert found["127.0.0.1:80"].points_to == Cause.APPLICATION
    assert "firewall" not in found["127.0.0.1:80"].refuted_by
    assert found[f"{SERVER}:443"].points_to == Cause.POLICY


def test_icmp_of_the_other_ip_version_says_nothing():
    made = more(Captured(), 12, "failed", "ECONNREFUSED")
    made.counter("snmp6", "Icmp6InDestUnreachs", 40)
    finding = made.finding("TCP_CONNECT_REFUSED")
    assert finding.points_to == Cause.APPLICATION
    assert "firewall" not in finding.refuted_by
    six = made_of(12, "failed", "ECONNREFUSED", to="fd00::2")
    six.counter("snmp6", "Icmp6InDestUnreachs", 12).counter("snmp", "Tcp.RetransSegs", 12)
    assert six.finding("TCP_CONNECT_REFUSED").points_to == Cause.POLICY


# Processes that live for one connect


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
    assert finding.subject.tgid == 1059, "the latest one: it may still be looked at"
    assert "nc (1059) and 59 others" in finding.title
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
    assert "others" not in finding.title


def test_a_loop_that_ends_with_a_success_is_healthy():
    """`until nc -z db 5432; do sleep 1; done`, and the database comes up."""
    made = one_each(40, "failed", "ECONNREFUSED")
    made.connect(41, tgid=1041, comm="nc")
    finding = made.finding("TCP_CONNECT_REFUSED")
    assert finding.severity == Severity.INFO
    assert "until it worked" in finding.title


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
    assert "20.0%" in "".join(finding.coverage)


def test_thresholds_can_be_changed():
    made = made_of(3, "failed", "ECONNREFUSED")
    assert serious(made.analyze(Thresholds(refused_count=4))) == set()
    assert serious(made.analyze(Thresholds(refused_count=3))) == {"TCP_CONNECT_REFUSED"}


def test_text_in_names_is_only_text():
    made = made_of(5, "failed", "ECONNREFUSED", comm="x'; DROP TABLE rows; --", net=NET)
    assert "DROP TABLE" in made.finding("TCP_CONNECT_REFUSED").title
