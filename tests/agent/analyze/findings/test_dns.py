# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest

from ktrace_api.finding import Cause, Confidence, Severity
from tests.agent.analyze.capture_builder import CLIENT, NET, SERVER, Captured, at, ends, serious


def answered(count: int = 20, **facts: Any):
    made = Captured()
    for number in range(count):
        made.query(number * 0.5, sock=number + 1, local_port=40000 + number, **facts)
    return made


def deaf(count: int = 5, made: Captured | None = None, **facts: Any):
    made = made or Captured()
    for number in range(count):
        made.query(5 + number, None, sock=900 + number, local_port=50000 + number, **facts)
    return made


def test_answered_queries_are_healthy():
    found = answered().analyze()
    assert found.findings == ()
    assert found.verdict.verdict == Cause.HEALTHY
    assert found.dns.queries == found.dns.answers == 20
    assert found.dns.ambiguous == found.dns.unanswered == 0
    (resolver,) = found.dns.resolvers
    assert resolver.peer == f"{SERVER}:53"
    assert resolver.rtt_us.p50 == resolver.rtt_us.max == 5000


def test_no_reply():
    found = deaf(12).analyze()
    (finding,) = found.findings
    assert finding.id == "DNS_NO_REPLY"
    assert finding.severity == Severity.CRITICAL
    assert finding.subject.tgid == 100
    assert finding.subject.peer == f"{SERVER}:53"
    assert finding.subject.netns == NET
    assert finding.counts["unanswered"] == 12
    assert finding.evidence.rows == tuple(range(8))
    assert found.verdict.verdict == Cause.DNS
    assert found.verdict.findings == ("DNS_NO_REPLY",)
    (suspect,) = found.dns.suspects
    assert suspect.unanswered == suspect.queries == 12
    assert suspect.since.replace(tzinfo=None) == at(5)


def test_one_lost_answer_is_no_finding_above_info():
    made = deaf(1, answered())
    assert serious(made.analyze()) == set()


def test_few_lost_among_many_are_no_finding_above_info():
    assert serious(deaf(5, answered(100)).analyze()) == set()


def test_queries_of_the_last_second_may_still_be_answered():
    made = Captured()
    for number in range(5):
        made.query(59.1 + number / 10, None, sock=number + 1)
    found = made.analyze()
    assert found.findings == ()
    assert found.dns.suspects == ()


def test_queries_at_the_end_of_a_capped_capture():
    made = Captured(capped=100, complete=False)
    for number in range(5):
        made.query(1 + number / 10, None, sock=number + 1)
    assert serious(made.analyze()) == set()


def test_of_two_resolvers_only_the_dead_one_is_named():
    made = answered(10, to="10.0.0.3")
    deaf(5, made)
    (finding,) = made.analyze().findings
    assert finding.subject.peer == f"{SERVER}:53"


def test_who_loses_a_race_is_not_silent():
    """musl and dnsmasq ask all servers at once from one socket and take the first answer."""
    made = Captured()
    for number in range(10):
        made.query(number, 0.002, sock=number + 1)
        made.query(number + 0.0001, None, sock=number + 1, to="10.0.0.3")
    found = made.analyze()
    assert serious(found) == set()
    assert found.dns.unanswered == 0


def test_who_never_comes_back_from_a_race_is_silent():
    made = Captured()
    for number in range(10):
        made.query(number, 0.002, sock=number + 1)
        made.query(number + 0.0001, None, sock=number + 1, to="10.0.0.3", ct_state="UNREPLIED")
    found = made.analyze()
    (finding,) = found.findings
    assert finding.severity == Severity.CRITICAL
    assert finding.subject.peer == "10.0.0.3:53"
    assert finding.counts["unanswered"] == 10
    assert len(finding.evidence.rows) == 8
    (suspect,) = found.dns.suspects
    assert suspect.peer == "10.0.0.3:53"
    assert suspect.unanswered == found.dns.unanswered == 10
    assert suspect.since is not None


def flow_race(made: Captured, second: str = "10.0.0.3", late_s: float = 0.0001, **facts: Any):
    """Twenty sockets ask two servers at once; only the first one's answer is read."""
    for number in range(20):
        asked: dict[str, Any] = {
            "port": 53,
            "tx_calls": 2,
            "local_port": 50000 + number,
            "local_ip": "0.0.0.0",
        }
        made.flow("udp", rx_calls=2, first_ts=at(number), **asked)
        made.flow("udp", to=second, first_ts=at(number + late_s), **{**asked, **facts})
    return made


@pytest.mark.parametrize(
    "facts", [{}, {"second": "fd00::3", "local_ip": "::"}], ids=["one-family", "two-families"]
)
def test_who_loses_a_race_is_not_silent_by_flows(facts: dict[str, Any]):
    for made in (Captured().lose_one(), Captured(sample=10)):
        found = flow_race(made.connect(1), **facts).analyze()
        assert found.verdict.verdict == Cause.HEALTHY
        assert found.dns.unanswered == 0
        assert found.dns.suspects == ()


@pytest.mark.parametrize(
    "facts",
    [{"ct_state": "UNREPLIED"}, {"late_s": 1.0}, {"tgid": 7}, {"local_ip": "10.0.0.9"}, {"net": 9}],
    ids=["no-packet-back", "asked-later", "process", "address", "namespace"],
)
def test_who_is_silent_by_flows_and_lost_no_race(facts: dict[str, Any]):
    found = flow_race(Captured().lose_one(), **facts).analyze()
    (finding,) = [one for one in found.findings if one.id == "DNS_NO_REPLY"]
    assert finding.severity == Severity.CRITICAL
    assert finding.subject.peer == "10.0.0.3:53"
    (suspect,) = found.dns.suspects
    assert (suspect.unanswered, suspect.peer) == (40, "10.0.0.3:53")


def test_clients_that_give_up_early_leave_closed_ports():
    made = deaf(5).counter("snmp", "Udp.NoPorts", 5)
    finding = made.finding("DNS_NO_REPLY")
    assert finding.severity == Severity.INFO
    assert "too late: socket closed" in finding.title


CLOSED, CAME, WENT = "Udp.NoPorts", "Icmp.InDestUnreachs", "Icmp.OutDestUnreachs"


def statsd(made: Captured, to: str, count: int = 20, **facts: Any) -> Captured:
    """Datagrams to a port without a listener."""
    made.counter("snmp", CLOSED, count)
    return made.flow("udp", to=to, port=8125, tx_calls=count, tgid=7, comm="app", **facts)


def unreachable(made: Captured, came: int, went: int) -> Captured:
    return made.counter("snmp", CAME, came).counter("snmp", WENT, went)


@pytest.mark.parametrize(
    "noise",
    [
        lambda made: unreachable(statsd(made, "127.0.0.1", 600), 600, 600),
        lambda made: unreachable(made.counter("snmp", CLOSED, 20), 20, 20),
        lambda made: statsd(made, "127.0.0.1"),
        lambda made: statsd(made, CLIENT),
        lambda made: statsd(made, CLIENT, net=NET + 1, local_ip="10.0.0.77").connect(1).flow(),
        lambda made: made.counter("snmp", CLOSED, 600),
        lambda made: made.counter("snmp6", "Udp6NoPorts", 20),
        lambda made: made.counter("snmp", CLOSED, 20, netns=NET + 1),
    ],
    ids=[
        "statsd",
        "icmp",
        "loopback",
        "own-address",
        "from-a-pod",
        "too-many",
        "ipv6",
        "elsewhere",
    ],
)
def test_closed_ports_that_others_met_do_not_excuse_a_dead_resolver(noise: Any):
    finding = noise(deaf(20)).finding("DNS_NO_REPLY")
    assert finding.severity == Severity.CRITICAL
    assert finding.points_to == Cause.DNS


def test_nothing_came_late_where_conntrack_saw_nothing_come():
    made = deaf(20, ct_state="UNREPLIED").counter("snmp", CLOSED, 20)
    assert made.finding("DNS_NO_REPLY").severity == Severity.CRITICAL


def test_late_answers_of_one_client_do_not_excuse_another():
    """Twenty closed ports, and two resolvers that owe twenty answers each."""
    made = deaf(20).counter("snmp", CLOSED, 20)
    deaf(20, made, to="10.0.0.3", tgid=200)
    assert {one.severity for one in made.analyze().findings} == {Severity.CRITICAL}


@pytest.mark.parametrize(
    "others",
    [
        lambda made: made.counter("snmp", CAME, 40),  # a collector elsewhere is missing
        lambda made: made.flow("udp", to=CLIENT, port=8125, tx_calls=600).flow(
            "udp", to="10.0.0.9", local_port=8125, rx_calls=600
        ),
        lambda made: deaf(20, made, to="10.0.0.3", tgid=200, ct_state="UNREPLIED"),
    ],
    ids=["collector", "listener", "dead-resolver"],
)
def test_what_met_no_closed_port_here_takes_nothing_off_late_answers(others: Any):
    made = others(deaf(20).counter("snmp", CLOSED, 20))
    late = [one for one in made.analyze().findings if one.subject.tgid == 100]
    assert [one.severity for one in late] == [Severity.INFO]
    assert "too late: socket closed" in late[0].title


def test_pairs_in_flight_on_one_socket_are_ambiguous():
    made = Captured()
    for number in range(6):
        made.query(number, 0.010, sock=number + 1)
        made.query(number + 0.0001, 0.011, sock=number + 1)
    dns = made.analyze().dns
    assert dns.answers == 12
    assert dns.ambiguous == 12
    assert dns.unanswered == 0


def test_retry_on_the_same_socket():
    made = Captured().query(1, None).query(2, None).query(3, 0.02)
    found = made.analyze()
    assert found.dns.retries == 2
    assert found.dns.unanswered == 2
    pairs = made.con.execute("SELECT query_n, n, rtt_us, ambiguous FROM dns_answers").fetchall()
    assert pairs == [(2, 3, 20_000, True)]


def test_late_answers_make_up_for_open_queries():
    made = Captured()
    made.query(1, 1.5).query(2, 1.5).query(3, 1.5)
    assert made.analyze().dns.unanswered == 0


def test_receive_without_a_peer_belongs_to_the_server_asked_last():
    made = Captured().query(1, None)
    made.row(1.01, "udp_recv", sock=1, errno=0, **ends(CLIENT, 50000, None, None))
    dns = made.analyze().dns
    assert dns.answers == 1
    rtt = dns.resolvers[0].rtt_us
    assert rtt is not None
    assert rtt.p50 == 10_000


def test_peeks_and_other_traffic_are_no_answers():
    made = Captured().query(1, None).query(2, None)
    made.row(1.01, "udp_recv", sock=1, errno=0, flags=["PEEK"], **ends(CLIENT, 50000, SERVER, 53))
    made.row(1.02, "udp_recv", sock=7, errno=0, **ends(CLIENT, 50001, SERVER, 123))
    assert made.analyze().dns.answers == 0


def test_answer_from_another_address():
    made = Captured()
    for number in range(4):
        made.query(number, None, sock=number + 1, local_port=50000 + number)
        made.row(number + 0.01, "udp_recv", sock=number + 1, errno=0,
                 **ends(CLIENT, 50000 + number, "10.0.0.3", 53))  # fmt: skip
    finding = made.finding("DNS_NO_REPLY")
    assert finding.severity == Severity.WARNING
    assert finding.counts["answers_from_elsewhere"] == 4
    assert "10.0.0.3" in finding.title
    assert finding.points_to == Cause.DNS
    assert made.analyze().dns.suspects[0].answered_by == "10.0.0.3"


def test_answers_that_the_resolver_sent_were_lost_on_the_way():
    made = deaf(4)
    for number in range(4):
        made.row(5.001 + number, "udp_send", sock=5, errno=0, tgid=53,
                 **ends(SERVER, 53, CLIENT, 50000 + number))  # fmt: skip
    finding = made.finding("DNS_NO_REPLY")
    assert finding.points_to == Cause.POLICY
    assert finding.counts["answers_sent_by_resolver"] == 4


@pytest.mark.parametrize(
    ("error", "kind", "cause"),
    [
        ("EPERM", "udp_send", Cause.POLICY),
        ("ENETUNREACH", "udp_send", Cause.ROUTING),
        ("ECONNREFUSED", "udp_recv", Cause.DNS),
    ],
)
def test_errors_tell_the_cause(error: str, kind: str, cause: Cause):
    made = Captured()
    for number in range(4):
        if kind == "udp_recv":
            made.query(number, None, sock=number + 1)
        made.row(number + 0.1, kind, sock=number + 1, errno=1, error=error, flags=[],
                 **ends(CLIENT, 50000, SERVER, 53))  # fmt: skip
    found = made.analyze()
    (finding,) = found.findings
    assert finding.id == "DNS_NO_REPLY"
    assert finding.severity == Severity.WARNING
    assert finding.points_to == found.verdict.verdict == cause
    assert found.dns.suspects[0].errors == {error: 4}


def test_conntrack_makes_it_sure():
    assert deaf().finding("DNS_NO_REPLY").confidence == Confidence.MEDIUM
    sure = deaf(ct_state="UNREPLIED")
    assert sure.finding("DNS_NO_REPLY").confidence == Confidence.HIGH
    assert sure.analyze().dns.suspects[0].ct_state == "UNREPLIED"


def test_sampled_captures_count_by_flows():
    """One row in ten: most answers are not rows, but the flows count them."""
    made = Captured(sample=10)
    for number in range(20):
        made.query(number, None, sock=number + 1, local_port=41000 + number)
        made.flow("udp", port=53, local_port=41000 + number, tx_calls=1, rx_calls=1)
    assert made.analyze().findings == ()
    for number in range(5):
        made.flow("udp", port=53, to="10.0.0.3", local_port=42000 + number, tx_calls=1)
    found = made.analyze()
    (finding,) = found.findings
    assert finding.subject.peer == "10.0.0.3:53"
    assert finding.counts["unanswered"] == 5
    assert found.dns.resolvers[-1].rtt_us is None


def test_answers_without_a_peer_are_answers_of_the_flows():
    """A client that uses recv() on an unconnected socket, and one lost row."""
    made = Captured()
    made.insert("accounting", {"type": "udp_send", "seen": 3000, "skipped": 7, "lost_map": 0})
    made.flow("udp", port=53, local_port=41000, tx_calls=2993)
    made.flow("udp", remote_ip=None, remote_port=None, local_port=41000, rx_calls=2990)
    made.flow("udp", port=53, local_port=41001, tx_calls=2, rx_calls=2)
    dns = made.analyze().dns
    assert (dns.queries, dns.answers, dns.unanswered) == (2995, 2992, 3)


def test_answers_without_a_peer_count_once():
    """Two servers that one socket asked share them."""
    made = Captured()
    made.insert("accounting", {"type": "udp_send", "seen": 30, "skipped": 1, "lost_map": 0})
    for server in ("10.0.0.2", "10.0.0.3"):
        made.flow("udp", port=53, to=server, local_port=41000, tx_calls=10)
    made.flow("udp", remote_ip=None, remote_port=None, local_port=41000, rx_calls=12)
    dns = made.analyze().dns
    assert (dns.queries, dns.answers) == (20, 12)


def test_lost_answers_do_not_make_a_resolver_silent():
    made = deaf(5)
    made.insert("accounting", {"type": "udp_recv", "seen": 100, "lost_ring": 50, "lost_map": 0})
    for number in range(5):
        made.flow("udp", port=53, local_port=50000 + number, tx_calls=1, rx_calls=1)
    assert "DNS_NO_REPLY" not in {one.id for one in made.analyze().findings}


def test_slow():
    finding = answered(10, rtt=0.4).finding("DNS_SLOW")
    assert finding.severity == Severity.WARNING
    assert finding.evidence.numbers[0].value == 400_000
    assert finding.points_to == Cause.DNS


@pytest.mark.parametrize(("count", "rtt"), [(3, 0.4), (20, 0.1)])
def test_not_slow_enough_or_too_few(count: int, rtt: float):
    assert serious(answered(count, rtt=rtt).analyze()) == set()


def test_one_slow_lookup_among_many_is_healthy():
    made = answered(20)
    made.query(30, 3.0, sock=99)
    assert serious(made.analyze()) == set()


def test_tcp_is_seen_too():
    made = Captured().connect(1, port=53).connect(2, "failed", "ECONNREFUSED", port=53)
    dns = made.analyze().dns
    assert (dns.tcp_connects, dns.tcp_failed) == (2, 1)


def test_a_server_is_no_client():
    made = Captured()
    for number in range(5):
        made.row(number, "udp_recv", sock=1, errno=0, **ends(SERVER, 53, CLIENT, 50000))
        made.row(number + 0.1, "udp_send", sock=1, errno=0, **ends(SERVER, 53, CLIENT, 50000))
    assert made.analyze().dns.queries == 0
