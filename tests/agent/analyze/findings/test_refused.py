# SPDX-License-Identifier: Apache-2.0
"""Refused connections: who refuses, and which counters are unrelated."""

from typing import Any

import pytest

from ktrace_agent.analyze.findings import MAX_OF_ONE_ID
from ktrace_api.finding import Cause, Severity
from tests.agent.analyze.capture_builder import NET, SERVER, Captured, made_of, more, serious


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
    assert "then recovered" in finding.title


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


def test_icmp_where_no_program_saw_udp():
    made = refused_with_icmp(12)
    made.insert("hooks", {"hook": "socket_send", "chosen": None, "refused": ["udp_sendmsg: no"]})
    assert_firewall_is_only_possible(made)


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
