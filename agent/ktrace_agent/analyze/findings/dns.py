# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - every part of a statement is a constant or a number
"""DNS: missing and slow answers. Reads the tables of dns_clients.py."""

from collections.abc import Iterator

from ktrace_agent.analyze import dns_summary
from ktrace_agent.analyze.dns_clients import CT_STATE, FAILING, WORST_FIRST
from ktrace_agent.analyze.findings.case import Case, Measured, Texts, Trust
from ktrace_agent.analyze.findings.dns_late_answers import Space, spaces
from ktrace_agent.analyze.findings.wording import (
    LOOPBACK,
    POOL,
    Row,
    by,
    grade,
    inside,
    number,
    share,
    who,
)
from ktrace_agent.analyze.sentences import REFUTED_BY
from ktrace_agent.analyze.titles import Variant, title
from ktrace_api.finding import Cause, Confidence, Finding, FindingId, Severity
from ktrace_api.names import RowType

_RESTS_ON = (RowType.UDP_SEND, RowType.UDP_RECV)
_CONSIDERED = 200
"""Maximum clients to examine; the summary has no space for more."""

_POLICY_ERRORS = frozenset({"EPERM", "EACCES"})
_ROUTING_ERRORS = frozenset({"ENETUNREACH", "EHOSTUNREACH", "ENETDOWN", "EHOSTDOWN"})

_SUMS = ("queries", "answers", "unanswered", "errored", "retries", "strange_answers",
         "answers_sent", "failed", "total")  # fmt: skip
_EVENTS = ("open_rows", "error_rows", "sent_rows")

# Processes below the limits are pooled, also those that got all their answers: of many queries
# some are always lost.
_NO_REPLY = f"""
WITH counted AS (
  SELECT c.*, map_keys(e.errors) AS kinds,
    coalesce(list_has_any(kinds, {sorted(_POLICY_ERRORS | _ROUTING_ERRORS)}), false) AS unsendable,
    greatest(unanswered, if(unsendable, errored, 0)) AS failed,
    greatest(queries + unsent, failed) AS total,
    failed >= {{min_count}} AND failed / greatest(total, 1) >= {{no_reply_share}} AS apart
  FROM dns_clients c LEFT JOIN dns_errors e USING (client)),
pools AS (
  SELECT *, if(apart, client, {POOL.format("remote_ip")}) AS pool FROM counted)
SELECT count(*) FILTER (WHERE {FAILING}) AS processes,
  first(tgid ORDER BY {WORST_FIRST}) AS tgid, any_value(net) AS net, any_value(comm) AS comm,
  any_value(pod) AS pod, any_value(namespace) AS namespace, any_value(remote_ip) AS remote_ip,
  any_value({LOOPBACK.format("remote_ip")}) AS loopback,
  {", ".join(f"sum({name}) AS {name}" for name in _SUMS)},
  list_distinct(flatten(list(kinds) FILTER (WHERE kinds IS NOT NULL))) AS errors,
  {CT_STATE} AS ct_state,
  max(answered_by) AS answered_by,
  {", ".join(f"list_sort(flatten(list({name})))[:8] AS {name}" for name in _EVENTS)}
FROM pools GROUP BY pool HAVING processes > 0 AND (unanswered IS NOT NULL OR failed > 0)
ORDER BY unanswered DESC, errored DESC, tgid, remote_ip, net LIMIT {_CONSIDERED}
"""
_SLOW = f"""
WITH counted AS (
  SELECT client, count(*) AS answers FROM dns_pairs WHERE answer_n IS NOT NULL GROUP BY client),
pools AS (
  SELECT client, if(answers >= {{enough}}, client, {POOL.format("remote_ip")}) AS pool
  FROM counted JOIN dns_who USING (client)),
slow AS (
  SELECT count(*) AS answers, count(DISTINCT client) AS processes,
    count(DISTINCT client) FILTER (WHERE rtt_us >= {{p90}}) AS late,
    count(*) FILTER (WHERE ambiguous) AS ambiguous, arg_max(client, rtt_us) AS client,
    quantile_disc(rtt_us, [0, 0.5, 0.9, 1]) AS rtt, arg_max(answer_n, rtt_us, 10) AS slowest
  FROM dns_pairs JOIN pools USING (client) WHERE answer_n IS NOT NULL GROUP BY pool
  HAVING quantile_disc(rtt_us, 0.5) >= {{p50}} OR quantile_disc(rtt_us, 0.9) >= {{p90}})
SELECT w.*, s.* EXCLUDE (client) FROM slow s JOIN dns_who w USING (client)
ORDER BY answers DESC, tgid, remote_ip, net LIMIT {_CONSIDERED}
"""


def find(case: Case) -> Iterator[Finding]:
    """DNS_NO_REPLY and DNS_SLOW. Needs the tables of dns_clients.prepare()."""
    limits = case.limits
    unanswered_sql = _NO_REPLY.format(
        min_count=limits.min_count, no_reply_share=limits.dns_no_reply_share
    )
    if unanswered := case.query(unanswered_sql):
        late = spaces(case)
        for row in unanswered:
            yield _no_reply(case, row, gave_up=_gave_up(row, late))
    if case.coverage.sample == 1:  # the query of a sampled answer may be missing
        slow = _SLOW.format(
            p50=limits.dns_slow_p50_us,
            p90=limits.dns_slow_p90_us,
            enough=limits.dns_slow_min_answers,
        )
        for row in case.query(slow):
            yield _slow(case, row)


def _gave_up(row: Row, late: set[Space]) -> bool:
    """True if the answers arrived after the client closed its socket.

    False if conntrack recorded no reply, or if the server has a loopback address: then the
    queries themselves may have met a closed port.
    """
    return (
        (row["unanswered"] or 0) > 0
        and row["answers_sent"] == 0
        and row["ct_state"] != "UNREPLIED"
        and not row["loopback"]
        and Space(row["net"], ":" in str(row["remote_ip"])) in late
    )


def _reason(row: Row, errors: frozenset[str]) -> tuple[Cause, Variant]:
    """What the missing answers point to, as far as the rows show it."""
    if errors & _POLICY_ERRORS:
        return Cause.POLICY, Variant.BLOCKED
    if errors & _ROUTING_ERRORS:
        return Cause.ROUTING, Variant.UNREACHABLE
    if "ECONNREFUSED" in errors:
        return Cause.DNS, Variant.PORT_CLOSED
    if row["answered_by"] is not None:
        return Cause.DNS, Variant.WRONG_ADDRESS
    if row["answers_sent"]:
        return Cause.POLICY, Variant.REPLY_LOST
    return Cause.DNS, Variant.PLAIN


def _no_reply(case: Case, row: Row, *, gave_up: bool) -> Finding:
    limits = case.limits
    errors = frozenset(row["errors"] or ())
    failed, total = row["failed"], row["total"]
    warn = (
        failed >= limits.min_count
        and share(failed, total) >= limits.dns_no_reply_share
        and not gave_up
    )
    cause, variant = _reason(row, errors)
    if gave_up:
        variant = Variant.GAVE_UP
    other = {"other": row["answered_by"]} if variant == Variant.WRONG_ADDRESS else {}
    peer = dns_summary.resolver_name(row["remote_ip"])
    sure = row["ct_state"] == "UNREPLIED" or bool(row["answered_by"]) or bool(errors)
    return case.find(
        FindingId.DNS_NO_REPLY,
        grade(limits, failed, total, warn=warn),
        Texts(
            title=title(
                FindingId.DNS_NO_REPLY,
                variant,
                peer=peer,
                failed=failed,
                total=total,
                by=by(row),
                **other,
            ),
            refuted_by=REFUTED_BY[FindingId.DNS_NO_REPLY],
            next=inside(row, f"dig @{row['remote_ip']} +tries=1 +time=2 . NS"),
        ),
        subject=row | {"peer": peer},
        points_to=cause,
        measured=Measured(
            counts={
                "queries": row["queries"],
                "answers": row["answers"],
                "unanswered": row["unanswered"],
                "processes": row["processes"],
                "retries": row["retries"],
                "errors": row["errored"],
                "answers_from_elsewhere": row["strange_answers"],
                "answers_sent_by_resolver": row["answers_sent"],
            },
            numbers=[
                number("unanswered queries", failed, limits.min_count, "queries"),
                number("of all queries", share(failed, total), limits.dns_no_reply_share, "share"),
            ],
            rows=[*(row["open_rows"] or row["error_rows"]), *row["sent_rows"]],
        ),
        trust=Trust(Confidence.HIGH if sure else Confidence.MEDIUM, _RESTS_ON),
    )


def _slow(case: Case, row: Row) -> Finding:
    limits = case.limits
    least, p50, p90, most = row["rtt"]
    peer = dns_summary.resolver_name(row["remote_ip"])
    few = limits.dns_slow_min_answers
    if row["processes"] > 1:  # the A and AAAA answers of one process are one wait
        often = p50 >= limits.dns_slow_p50_us or row["late"] >= limits.min_count
        warn = row["processes"] >= few and often
    else:
        warn = row["answers"] >= few
    return case.find(
        FindingId.DNS_SLOW,
        Severity.WARNING if warn else Severity.INFO,
        Texts(
            title=title(
                FindingId.DNS_SLOW,
                peer=peer,
                ms=round(p50 / 1000),
                total=row["answers"],
                who=who(row),
            ),
            refuted_by=REFUTED_BY[FindingId.DNS_SLOW],
            next=inside(row, f"dig @{row['remote_ip']} . NS | grep 'Query time'"),
        ),
        subject=row | {"peer": peer},
        points_to=Cause.DNS,
        measured=Measured(
            counts={
                "answers": row["answers"],
                "processes": row["processes"],
                "ambiguous": row["ambiguous"],
            },
            numbers=[
                number("median time to an answer", p50, limits.dns_slow_p50_us, "us"),
                number("90th percentile", p90, limits.dns_slow_p90_us, "us"),
                number("shortest", least, unit="us"),
                number("longest", most, unit="us"),
            ],
            rows=row["slowest"],
        ),
        trust=Trust(
            Confidence.MEDIUM if row["ambiguous"] < row["answers"] else Confidence.LOW, _RESTS_ON
        ),
    )
