# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - every part of a statement is a constant or a number
"""How connects ended: unanswered, refused, timed out, unreachable, denied, slow, without a port."""

from collections.abc import Iterator

from ktrace_agent.analyze.findings import connect_reasons, connect_tables
from ktrace_agent.analyze.findings.case import Case
from ktrace_agent.analyze.findings.wording import (
    Row,
    grade,
    inside,
    literal,
    names,
    number,
    share,
    verb,
)
from ktrace_api.finding import Cause, Confidence, Finding, FindingId, Severity
from ktrace_api.names import RowType

_RESTS_ON = (RowType.CONNECT,)
_SECOND_US = 1_000_000
_FAST_US = 2_000_000
"""A machine that is not on its link is given up after 3 s (ARP, NDISC). A firewall answers at once,
which a blocking connect() may learn with its second SYN only."""


_SEE_ICMP = "tcpdump -nni any 'icmp or icmp6 or tcp[13] & 4 != 0'"


def find(case: Case) -> Iterator[Finding]:
    """All findings about connects; tcp.prepare() has run."""
    connect_tables.prepare(case)
    for row in connect_tables.worst(case, "unanswered"):
        yield _unanswered(case, row)
    for row in connect_tables.worst(case, "timeout"):
        yield _timeout(case, row)
    scanned = connect_reasons.scanned(case)
    for row in connect_tables.worst(case, "refused"):
        yield _refused(case, row, scan=row["client"] in scanned)
    for row in connect_tables.worst(case, "unreachable"):
        yield _unreachable(case, row)
    for row in connect_tables.worst(case, "denied"):
        yield _denied(case, row)
    for row in connect_tables.worst(case, "no_port"):
        yield _no_port(case, row)
    for row in connect_tables.slow(case):
        yield _slow(case, row)


def _counts(row: Row, outcome: str) -> dict[str, int]:
    """Connects of a client that ended so, of how many, and how many processes had one of them."""
    return {name: row[name] for name in (outcome, "connects", "established", "processes")}


def _unanswered(case: Case, row: Row) -> Finding:
    limits = case.limits
    failed, total = row["unanswered"], row["connects"]
    longest_s = (row["longest"] or 0) / _SECOND_US
    often = failed >= limits.min_count and connect_tables.many(case, row, failed)
    warn = often or longest_s >= limits.syn_long_wait_s
    cause, words = connect_reasons.behind_nat(case, row, "unanswered", Cause.POLICY)
    answered = case.ask(
        "SELECT count(*) AS segs, min(n, 2) AS shown FROM f_retransmits WHERE synack"
        f" AND local = {literal(row['remote'])}"
    )[0]
    if answered["segs"] and cause == Cause.POLICY:
        words = ": the peer on this node answers, its SYN-ACK is lost on the way"
    events = connect_tables.events(case, row, "unanswered")
    return case.find(
        FindingId.TCP_SYN_UNANSWERED,
        grade(limits, failed, total, warn=warn),
        f"{names(row)} got no answer to {failed} of {total} connects to {row['remote']}{words}",
        subject=row | {"peer": row["remote"]},
        points_to=cause,
        refuted_by="A SYN-ACK or RST for these ports in a packet capture at the client, or a peer"
        " that is meant to be gone.",
        look=inside(
            row,
            f"nc -vz -w 3 {row['remote_ip']} {row['remote_port']}",
            "nft list ruleset",
            f"ip route get {row['remote_ip']}",
        ),
        rests_on=_RESTS_ON,
        confidence=Confidence.HIGH if failed >= limits.min_count else Confidence.MEDIUM,
        counts=_counts(row, "unanswered")
        | {"synack_again": answered["segs"], "conntrack_unreplied": row["tracked"]},
        rows=[*events[:8], *(answered["shown"] or ())],
        numbers=[
            number("longest wait", longest_s, limits.syn_wait_s, "s"),
            number("connects without an answer", failed, limits.min_count, "connects"),
        ],
    )


def _timeout(case: Case, row: Row) -> Finding:
    failed, total = row["timeout"], row["connects"]
    cause, words = connect_reasons.behind_nat(case, row, "timeout", Cause.POLICY)
    return case.find(
        FindingId.TCP_CONNECT_TIMEOUT,
        grade(case.limits, failed, total, warn=True),
        f"{failed} of {total} connects of {names(row)} to {row['remote']} timed out{words}",
        subject=row | {"peer": row["remote"]},
        points_to=cause,
        refuted_by="An answer of the peer in a packet capture at the client.",
        look=inside(
            row,
            f"nc -vz -w 3 {row['remote_ip']} {row['remote_port']}",
            f"ip route get {row['remote_ip']}",
        ),
        rests_on=_RESTS_ON,
        counts=_counts(row, "timeout"),
        rows=connect_tables.events(case, row, "timeout"),
        numbers=[number("connects that ended with ETIMEDOUT", failed, 1, "connects")],
    )


def _refused(case: Case, row: Row, *, scan: bool) -> Finding:
    limits = case.limits
    failed, total = row["refused"], row["connects"]
    ended = connect_tables.refusals_ended(case, row)
    episodes = connect_tables.episodes(case, row)
    recurs = episodes >= limits.refused_episodes and share(failed, total) >= limits.refused_share
    warn = failed >= limits.refused_count and not scan and (recurs or not ended)
    warn = warn and not connect_reasons.second_choice(case, row, "refused", limits.refused_count)
    icmp = connect_reasons.icmp(case, row)
    rejected = icmp.must_be(failed * case.coverage.sample)
    doubtful = not rejected and icmp.may_be(failed * case.coverage.sample)
    cause, words = connect_reasons.behind_nat(
        case, row, "refused", Cause.POLICY if rejected else Cause.APPLICATION
    )
    if rejected and cause == Cause.POLICY:
        words = ": a firewall rejects them with ICMP"
    if scan:
        words = ": it scans ports"
    elif ended and not recurs:
        words = ", until it worked"
    severity = grade(limits, failed, total, warn=warn)
    return case.find(
        FindingId.TCP_CONNECT_REFUSED,
        severity,
        f"{names(row)} {verb(row, 'was', 'were')} refused by {row['remote']},"
        f" {failed} of {total} connects{words}",
        subject=row | {"peer": row["remote"]},
        points_to=cause,
        refuted_by=connect_reasons.refuted_by(icmp, rejected=rejected, doubtful=doubtful),
        look=inside(
            row,
            f"nc -vz {row['remote_ip']} {row['remote_port']}",
            f"ss -ltn 'sport = :{row['remote_port']}'",
            *([_SEE_ICMP] if doubtful else []),
        ),
        rests_on=_RESTS_ON,
        counts=_counts(row, "refused") | {"episodes": episodes},
        rows=connect_tables.events(case, row, "refused"),
        numbers=[
            number("refused connects", failed, limits.refused_count, "connects"),
            number("episodes of refusals", episodes, limits.refused_episodes, "episodes"),
        ],
    )


def _unreachable(case: Case, row: Row) -> Finding:
    limits = case.limits
    failed, total = row["unreachable"], row["connects"]
    (facts,) = case.ask(
        "SELECT median(us) AS us, mode(error) AS error FROM f_watched"
        f" WHERE outcome = 'unreachable' AND client = {row['client']}"
    )
    icmp = connect_reasons.icmp(case, row)
    rejected = (
        facts["error"] == "EHOSTUNREACH"
        and (facts["us"] or 0) < _FAST_US
        and icmp.may_be(failed * case.coverage.sample)
    )
    warn = failed >= limits.min_count and connect_tables.many(case, row, failed)
    warn = warn and not connect_reasons.second_choice(case, row, "unreachable", limits.min_count)
    words = ": something on the path rejects them" if rejected else ""
    return case.find(
        FindingId.TCP_CONNECT_UNREACHABLE,
        grade(limits, failed, total, warn=warn),
        f"{names(row)} cannot reach {row['remote']}: {failed} of {total} connects,"
        f" {facts['error']}{words}",
        subject=row | {"peer": row["remote"]},
        points_to=Cause.POLICY if rejected else Cause.ROUTING,
        refuted_by="A route and an answering neighbour for the address, or a client that falls"
        " back to another IP version.",
        look=inside(row, f"ip route get {row['remote_ip']}", f"ip neigh show {row['remote_ip']}"),
        rests_on=_RESTS_ON,
        counts=_counts(row, "unreachable"),
        rows=connect_tables.events(case, row, "unreachable"),
        numbers=[
            number("unreachable connects", failed, limits.min_count, "connects"),
            number("median time to the error", facts["us"] or 0, _FAST_US, "us"),
            number("ICMP unreachable from others", icmp.others, unit="packets"),
        ],
    )


def _denied(case: Case, row: Row) -> Finding:
    limits = case.limits
    failed, total = row["denied"], row["connects"]
    return case.find(
        FindingId.CONNECT_DENIED,
        grade(limits, failed, total, warn=failed >= limits.min_count),
        f"{names(row)} may not connect to {row['remote']}: {failed} of {total} denied",
        subject=row | {"peer": row["remote"]},
        points_to=Cause.POLICY,
        refuted_by="No seccomp filter, cgroup program, LSM rule or prohibiting route that covers"
        " the process.",
        look=f"grep Seccomp /proc/{row['tgid']}/status; bpftool cgroup tree; "
        + inside(row, f"ip route get {row['remote_ip']}"),
        rests_on=_RESTS_ON,
        counts={"denied": failed, "connects": total, "processes": row["processes"]},
        rows=connect_tables.events(case, row, "denied"),
        numbers=[number("denied connects", failed, limits.min_count, "connects")],
    )


def _no_port(case: Case, row: Row) -> Finding:
    """EADDRNOTAVAIL also says that there is no source address at all: then nothing ever worked."""
    limits = case.limits
    failed, total = row["no_port"], row["connects"]
    held = case.ask(
        f"SELECT count(*) AS count FROM sockets WHERE moment = 'end' AND"
        f" remote = {literal(row['remote'])} AND net IS NOT DISTINCT FROM {literal(row['net'])}"
    )[0]["count"]
    waiting = case.counter(row["net"], "sockstat", "TCP.tw")
    worked = row["established"] > 0 or held > 0 or (waiting is not None and waiting.after >= 1000)
    ranges = case.ask(
        "SELECT max(value) AS value FROM sysctls WHERE name = 'net.ipv4.ip_local_port_range'"
    )
    warn = failed >= limits.ephemeral_failures and worked
    return case.find(
        FindingId.EPHEMERAL_PORTS_EXHAUSTED,
        grade(limits, failed, total, warn=warn),
        f"{names(row)} {verb(row, 'finds', 'find')} no free local port for"
        f" {row['remote']}: {failed} of {total} connects",
        subject=row | {"peer": row["remote"]},
        points_to=Cause.HOST,
        refuted_by="Free ports in ip_local_port_range towards that address, or a bind() to an"
        " address that the namespace does not have.",
        look=inside(
            row, f"ss -tan dst {row['remote_ip']} | wc -l", "sysctl net.ipv4.ip_local_port_range"
        ),
        rests_on=_RESTS_ON,
        confidence=Confidence.HIGH if held or row["established"] else Confidence.MEDIUM,
        counts={
            "failed": failed,
            "connects": total,
            "processes": row["processes"],
            "sockets_to_peer": held,
            "time_wait": int(waiting.after) if waiting else None,
        },
        rows=connect_tables.events(case, row, "no_port"),
        numbers=[
            number("connects without a port", failed, limits.ephemeral_failures, "connects"),
            number(f"sockets to the peer (range {(ranges[0]['value'] or '?')[:16]})", held),
        ],
    )


def _slow(case: Case, row: Row) -> Finding:
    limits = case.limits
    least, p50, p90, most = row["took"]
    late, total = row["late"], row["good"]
    lossy = late >= limits.connect_slow_count and share(late, total) >= limits.connect_slow_share
    far = total >= limits.connect_slow_count and p50 >= limits.connect_slow_p50_us
    return case.find(
        FindingId.TCP_CONNECT_SLOW,
        Severity.WARNING if lossy or far else Severity.INFO,
        f"{names(row)} {verb(row, 'waits', 'wait')} {p50 / 1000:.0f} ms (median) for connects"
        f" to {row['remote']};"
        f" {late} of {total} took a lost SYN's second",
        subject=row | {"peer": row["remote"]},
        points_to=Cause.DNS if row["remote_port"] == 53 else Cause.ROUTING,
        refuted_by="A round trip time to the peer as long as the handshakes (a far peer), or a"
        " server whose accept queue is full.",
        look=inside(
            row,
            f"nc -vz {row['remote_ip']} {row['remote_port']}",
            f"mtr -rwc 20 -T -P {row['remote_port']} {row['remote_ip']}",
        ),
        rests_on=_RESTS_ON,
        counts={"established": total, "late": late, "processes": row["processes"]},
        rows=row["slowest"],
        numbers=[
            number("median handshake", p50, limits.connect_slow_p50_us, "us"),
            number("lost a SYN", share(late, total), limits.connect_slow_share, "share"),
            number("90th percentile", p90, unit="us"),
            number("shortest", least, unit="us"),
            number("longest", most, unit="us"),
        ],
    )
