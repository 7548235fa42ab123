# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - every part of a statement is a constant or a number
"""Failed and slow connection attempts.

Unanswered, timed out, refused, unreachable, denied, without a local port, slow.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from ktrace_agent.analyze.findings import connect_reasons, connect_tables
from ktrace_agent.analyze.findings.case import Case, Measured, Texts, Trust
from ktrace_agent.analyze.findings.connect_reasons import Reason
from ktrace_agent.analyze.findings.wording import (
    Row,
    by,
    grade,
    inside,
    literal,
    number,
    share,
    who,
)
from ktrace_agent.analyze.sentences import REFUTED_BY, REFUTED_BY_VARIANT
from ktrace_agent.analyze.titles import Variant, fill, title
from ktrace_api.finding import Cause, Confidence, Finding, FindingId, Number, Severity
from ktrace_api.names import RowType

_RESTS_ON = (RowType.CONNECT,)
_SECOND_US = 1_000_000
_FAST_US = 2_000_000
"""ARP and NDISC give up on an absent neighbor after 3 s. A firewall rejects at once, but a blocking
connect() may notice that only with its second SYN."""

_SEE_ICMP = "tcpdump -nni any 'icmp or icmp6 or tcp[13] & 4 != 0'"


def find(case: Case) -> Iterator[Finding]:
    """All findings about connection attempts. Needs the tables of tcp.prepare()."""
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


def _finding(
    case: Case,
    row: Row,
    finding: FindingId,
    outcome: str,
    severity: Severity,
    *,
    reason: Reason,
    command: str,
    counts: Mapping[str, int | None],
    numbers: Sequence[Number],
    rows: Iterable[int | None] | None = None,
    title: str | None = None,
    refuted_by: str | None = None,
    confidence: Confidence = Confidence.HIGH,
) -> Finding:
    """A finding about a client and its peer, with the events and texts of its outcome and id."""
    return case.find(
        finding,
        severity,
        Texts(
            title or _title(finding, reason, row, row[outcome]),
            refuted_by or REFUTED_BY[finding],
            command,
        ),
        subject=row | {"peer": row["remote"]},
        points_to=reason.cause,
        measured=Measured(
            counts, numbers, connect_tables.events(case, row, outcome) if rows is None else rows
        ),
        trust=Trust(confidence, _RESTS_ON),
    )


def _counts(row: Row, outcome: str) -> dict[str, int]:
    """Counts of a client: attempts with this outcome, all attempts, successes, processes."""
    return {name: row[name] for name in (outcome, "connects", "established", "processes")}


def _title(finding: FindingId, reason: Reason, row: Row, failed: int) -> str:
    """A title of the form "FAILED of TOTAL connection attempts"."""
    return title(
        finding,
        reason.variant,
        peer=row["remote"],
        failed=failed,
        total=row["connects"],
        by=by(row),
        **reason.fields,
    )


def _unanswered(case: Case, row: Row) -> Finding:
    limits = case.limits
    failed, total = row["unanswered"], row["connects"]
    longest_s = (row["longest"] or 0) / _SECOND_US
    often = failed >= limits.min_count and connect_tables.many(case, row, failed)
    warn = often or longest_s >= limits.syn_long_wait_s
    reason = connect_reasons.behind_nat(case, row, "unanswered", Cause.POLICY)
    answered = case.query(
        "SELECT count(*) AS segs, min(n, 2) AS shown FROM f_retransmits WHERE synack"
        f" AND local = {literal(row['remote'])}"
    )[0]
    if answered["segs"] and reason.cause == Cause.POLICY:
        reason = Reason(Cause.POLICY, Variant.SYN_ACK_LOST)
    events = connect_tables.events(case, row, "unanswered")
    return _finding(
        case,
        row,
        FindingId.TCP_SYN_UNANSWERED,
        "unanswered",
        grade(limits, failed, total, warn=warn),
        command=inside(
            row,
            f"nc -vz -w 3 {row['remote_ip']} {row['remote_port']}",
            "nft list ruleset",
            f"ip route get {row['remote_ip']}",
        ),
        reason=reason,
        counts=_counts(row, "unanswered")
        | {"synack_again": answered["segs"], "conntrack_unreplied": row["tracked"]},
        numbers=[
            number("longest wait", longest_s, limits.syn_wait_s, "s"),
            number("unanswered attempts", failed, limits.min_count, "attempts"),
        ],
        rows=[*events[:8], *(answered["shown"] or ())],
        confidence=Confidence.HIGH if failed >= limits.min_count else Confidence.MEDIUM,
    )


def _timeout(case: Case, row: Row) -> Finding:
    failed, total = row["timeout"], row["connects"]
    reason = connect_reasons.behind_nat(case, row, "timeout", Cause.POLICY)
    return _finding(
        case,
        row,
        FindingId.TCP_CONNECT_TIMEOUT,
        "timeout",
        grade(case.limits, failed, total, warn=True),
        command=inside(
            row,
            f"nc -vz -w 3 {row['remote_ip']} {row['remote_port']}",
            f"ip route get {row['remote_ip']}",
        ),
        reason=reason,
        counts=_counts(row, "timeout"),
        numbers=[number("attempts that ended with ETIMEDOUT", failed, 1, "attempts")],
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
    reason = connect_reasons.behind_nat(
        case, row, "refused", Cause.POLICY if rejected else Cause.APPLICATION
    )
    if rejected and reason.cause == Cause.POLICY:
        reason = Reason(Cause.POLICY, Variant.FIREWALL)
    if scan:
        reason = Reason(reason.cause, Variant.SCAN)
    elif ended and not recurs:
        reason = Reason(reason.cause, Variant.RECOVERED)
    return _finding(
        case,
        row,
        FindingId.TCP_CONNECT_REFUSED,
        "refused",
        grade(limits, failed, total, warn=warn),
        refuted_by=_refusal_refuted_by(icmp, rejected=rejected, doubtful=doubtful),
        command=inside(
            row,
            f"nc -vz {row['remote_ip']} {row['remote_port']}",
            f"ss -ltn 'sport = :{row['remote_port']}'",
            *([_SEE_ICMP] if doubtful else []),
        ),
        reason=reason,
        counts=_counts(row, "refused") | {"episodes": episodes},
        numbers=[
            number("refused connections", failed, limits.refused_count, "connections"),
            number("episodes of refusals", episodes, limits.refused_episodes, "episodes"),
        ],
    )


def _refusal_refuted_by(icmp: connect_reasons.Icmp, *, rejected: bool, doubtful: bool) -> str:
    finding = FindingId.TCP_CONNECT_REFUSED
    if rejected:
        return REFUTED_BY_VARIANT[finding, Variant.FIREWALL]
    if doubtful:
        template = REFUTED_BY_VARIANT[finding, Variant.FIREWALL_POSSIBLE]
        return fill(template, count=icmp.others)
    return REFUTED_BY[finding]


def _unreachable(case: Case, row: Row) -> Finding:
    limits = case.limits
    failed, total = row["unreachable"], row["connects"]
    (facts,) = case.query(
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
    reason = Reason(Cause.ROUTING, fields={"error": facts["error"]})
    if rejected:
        reason = Reason(Cause.POLICY, Variant.FIREWALL)
    return _finding(
        case,
        row,
        FindingId.TCP_CONNECT_UNREACHABLE,
        "unreachable",
        grade(limits, failed, total, warn=warn),
        command=inside(
            row, f"ip route get {row['remote_ip']}", f"ip neigh show {row['remote_ip']}"
        ),
        reason=reason,
        counts=_counts(row, "unreachable"),
        numbers=[
            number("unreachable attempts", failed, limits.min_count, "attempts"),
            number("median time to the error", facts["us"] or 0, _FAST_US, "us"),
            number("ICMP unreachable from others", icmp.others, unit="packets"),
        ],
    )


def _denied(case: Case, row: Row) -> Finding:
    limits = case.limits
    failed, total = row["denied"], row["connects"]
    (facts,) = case.query(
        "SELECT mode(error) FILTER (WHERE error <> '-') AS error FROM f_watched"
        f" WHERE outcome = 'denied' AND client = {row['client']}"
    )
    return _finding(
        case,
        row,
        FindingId.CONNECT_DENIED,
        "denied",
        grade(limits, failed, total, warn=failed >= limits.min_count),
        title=title(
            FindingId.CONNECT_DENIED,
            failed=failed,
            total=total,
            who=who(row),
            peer=row["remote"],
            error=facts["error"] or "errno unknown",
        ),
        command=f"grep Seccomp /proc/{row['tgid']}/status; bpftool cgroup tree; "
        + inside(row, f"ip route get {row['remote_ip']}"),
        reason=Reason(Cause.POLICY),
        counts={"denied": failed, "connects": total, "processes": row["processes"]},
        numbers=[number("denied connections", failed, limits.min_count, "connections")],
    )


def _no_port(case: Case, row: Row) -> Finding:
    """EADDRNOTAVAIL can also mean that no source address exists: then nothing ever succeeded."""
    limits = case.limits
    failed, total = row["no_port"], row["connects"]
    held = case.query(
        f"SELECT count(*) AS count FROM sockets WHERE moment = 'end' AND"
        f" remote = {literal(row['remote'])} AND net IS NOT DISTINCT FROM {literal(row['net'])}"
    )[0]["count"]
    waiting = case.counter(row["net"], "sockstat", "TCP.tw")
    worked = row["established"] > 0 or held > 0 or (waiting is not None and waiting.after >= 1000)
    ranges = case.query(
        "SELECT max(value) AS value FROM sysctls WHERE name = 'net.ipv4.ip_local_port_range'"
    )
    warn = failed >= limits.ephemeral_failures and worked
    return _finding(
        case,
        row,
        FindingId.EPHEMERAL_PORTS_EXHAUSTED,
        "no_port",
        grade(limits, failed, total, warn=warn),
        command=inside(
            row,
            f"ss -tan dst {row['remote_ip']} | wc -l",
            "sysctl net.ipv4.ip_local_port_range",
        ),
        reason=Reason(Cause.HOST),
        counts={
            "failed": failed,
            "connects": total,
            "processes": row["processes"],
            "sockets_to_peer": held,
            "time_wait": int(waiting.after) if waiting else None,
        },
        numbers=[
            number("attempts without a port", failed, limits.ephemeral_failures, "attempts"),
            number(f"sockets to the peer (range {(ranges[0]['value'] or '?')[:16]})", held),
        ],
        confidence=Confidence.HIGH if held or row["established"] else Confidence.MEDIUM,
    )


def _slow(case: Case, row: Row) -> Finding:
    limits = case.limits
    least, p50, p90, most = row["took"]
    late, total = row["late"], row["good"]
    lossy = late >= limits.connect_slow_count and share(late, total) >= limits.connect_slow_share
    far = total >= limits.connect_slow_count and p50 >= limits.connect_slow_p50_us
    return _finding(
        case,
        row,
        FindingId.TCP_CONNECT_SLOW,
        "late",
        Severity.WARNING if lossy or far else Severity.INFO,
        title=_slow_title(case, row, by_loss=lossy or (late > 0 and not far)),
        command=inside(
            row,
            f"nc -vz {row['remote_ip']} {row['remote_port']}",
            f"mtr -rwc 20 -T -P {row['remote_port']} {row['remote_ip']}",
        ),
        reason=Reason(Cause.DNS if row["remote_port"] == 53 else Cause.ROUTING),
        counts={"established": total, "late": late, "processes": row["processes"]},
        numbers=[
            number("median handshake", p50, limits.connect_slow_p50_us, "us"),
            number("lost a SYN", share(late, total), limits.connect_slow_share, "share"),
            number("90th percentile", p90, unit="us"),
            number("shortest", least, unit="us"),
            number("longest", most, unit="us"),
        ],
        rows=row["slowest"] or (),
    )


def _slow_title(case: Case, row: Row, *, by_loss: bool) -> str:
    """Names lost SYNs if they are the problem, otherwise the median."""
    peer, total = row["remote"], row["good"]
    if by_loss:
        return title(
            FindingId.TCP_CONNECT_SLOW,
            Variant.LATE,
            late=row["late"],
            total=total,
            peer=peer,
            wait=f"{case.limits.syn_wait_s:g}",
            by=by(row),
        )
    ms = round(row["took"][1] / 1000)
    return title(FindingId.TCP_CONNECT_SLOW, peer=peer, ms=ms, total=total, who=who(row))
