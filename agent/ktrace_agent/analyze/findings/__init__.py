# SPDX-License-Identifier: Apache-2.0
"""Findings: derives models by SQL from the tables of ktrace_agent/tables/contract.py.

One module per family. Healthy traffic causes no finding above info. Every limit is in
ktrace_api/thresholds.py with its reason.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import duckdb

from ktrace_agent.analyze.dns_clients import Directions, prepare
from ktrace_agent.analyze.dns_summary import summarize
from ktrace_agent.analyze.findings import (
    connect_failures,
    conntrack,
    coverage,
    dns,
    host,
    tcp,
    tcp_resets,
)
from ktrace_agent.analyze.findings.case import Case
from ktrace_agent.analyze.verdict import NO_TRAFFIC, judge, worst_first
from ktrace_agent.tables.dns_pairs import pair
from ktrace_api.finding import MAX_FINDINGS, DnsSummary, Finding, FindingId, Findings
from ktrace_api.model import Model
from ktrace_api.names import RowType
from ktrace_api.thresholds import Thresholds

MAX_OF_ONE_ID = 4
"""Maximum findings with one id, so that they do not displace findings with other ids."""

FINDINGS_BYTES = 28 * 1024
"""Maximum size of all findings in the summary, which is limited to 64 KiB."""
DNS_BYTES = 8 * 1024

_DEFAULT = Thresholds()
_FAMILIES = (
    (dns.find, ("dns_messages", "dns_shapes")),
    (connect_failures.find, ("f_connects", "f_clients", "f_watched")),
    (tcp.find, ("f_stalls",)),
    (tcp_resets.find, ()),
    (conntrack.find, ()),
    (host.find, ()),
    (coverage.find, ("f_retransmits",)),
)
"""Families in order, each with the large tables that are dropped after it."""


def analyze(
    con: duckdb.DuckDBPyConnection, thresholds: Thresholds = _DEFAULT, *, paired: bool = False
) -> Findings:
    """Derive findings, verdict and the DNS summary from the tables of a capture.

    Creates temporary tables in `con`. `paired` states that dns_pairs.pair() has run on exactly
    these rows; otherwise it runs here. The view dns_answers stays: the round trip of each answer.
    """
    if not paired:
        pair(con, thresholds)
    case = Case(con, thresholds)
    covered = case.coverage
    timed = covered.sample == 1
    exact = timed and not covered.lost_share((RowType.UDP_SEND, RowType.UDP_RECV))
    observed = Directions(
        sent=RowType.UDP_SEND not in covered.unobserved,
        received=RowType.UDP_RECV not in covered.unobserved,
    )
    prepare(con, covered.end, thresholds, exact=exact, observed=observed)
    tcp.prepare(case)
    found: list[Finding] = []
    for find, tables in _FAMILIES:
        found += find(case)
        for table in tables:
            con.execute(f"DROP TABLE {table}")
    shown = _fit(_limit(worst_first(found))[:MAX_FINDINGS], FINDINGS_BYTES)
    attempts = RowType.CONNECT not in covered.unobserved
    summary = summarize(con, timed=timed, observed=observed, attempts=attempts)
    no_rows = NO_TRAFFIC if covered.rows else coverage.silence(case)
    return Findings(
        findings=tuple(shown),
        findings_left_out=len(found) - len(shown),
        verdict=judge(found, covered.rows, covered.sample, no_rows),
        dns=_shorten(summary),
    )


def _limit(findings: Iterable[Finding]) -> list[Finding]:
    """Keep the first few findings of each id; the last one counts the subjects left out."""
    shown: list[Finding] = []
    found: Counter[FindingId] = Counter()
    last: dict[FindingId, int] = {}
    for one in findings:
        found[one.id] += 1
        if found[one.id] <= MAX_OF_ONE_ID:
            last[one.id] = len(shown)
            shown.append(one)
    for name, count in found.items():
        if more := count - MAX_OF_ONE_ID:
            if more < 0:
                continue
            one = shown[last[name]]
            counts = dict([*one.counts.items()][:7]) | {"subjects_left_out": more}
            shown[last[name]] = one.model_copy(update={"counts": counts})
    return shown


def _fit(findings: Sequence[Finding], limit: int) -> list[Finding]:
    """Keep the first findings that fit into `limit` bytes."""
    shown: list[Finding] = []
    left = limit
    for one in findings:
        left -= _bytes(one)
        if left < 0:
            break
        shown.append(one)
    return shown


def _shorten(summary: DnsSummary) -> DnsSummary:
    """The same with fewer suspects and resolvers, where names are too long for DNS_BYTES."""
    while _bytes(summary) > DNS_BYTES and (summary.suspects or summary.resolvers):
        left = {
            "suspects": summary.suspects[:-1],
            "suspects_left_out": summary.suspects_left_out + bool(summary.suspects),
        }
        if len(summary.suspects) <= 1:
            left |= {
                "resolvers": summary.resolvers[:-1],
                "resolvers_left_out": summary.resolvers_left_out + bool(summary.resolvers),
            }
        summary = summary.model_copy(update=left)
    return summary


def _bytes(model: Model) -> int:
    """Size as indented JSON; in the summary each line stands three deeper."""
    text = model.to_bytes()
    return len(text) + 3 * text.count(b"\n")
