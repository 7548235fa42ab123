# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - SQL that people copy; its parts are numbers
"""Verdict, findings and the next commands for people."""

import shlex
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from ktrace_agent.analyze.sentences import CAUSES
from ktrace_agent.analyze.titles import clause
from ktrace_agent.view.style import (
    BAD,
    DIM,
    GOOD,
    HEAD,
    alarming,
    number,
    plain,
    quantiles,
    size,
    spaced,
    table_of,
    top,
)
from ktrace_api.finding import Cause, Confidence, Finding, Severity
from ktrace_api.names import UNKNOWN, ConnectResult
from ktrace_api.summary import Summary

_SEVERITIES = {
    Severity.CRITICAL: "bold red",
    Severity.WARNING: "yellow",
    Severity.INFO: DIM,
}


def verdict(summary: Summary) -> Group:
    """The likely cause and why, or the sentence that there is no problem or no verdict."""
    found = summary.verdict
    why = plain(found.why)
    if found.verdict in (Cause.HEALTHY, Cause.UNKNOWN):
        why.stylize(GOOD if found.verdict == Cause.HEALTHY else "yellow")
        return spaced(why)
    meaning = _meaning(summary)
    cause = CAUSES[found.verdict] + (f" ({plain(meaning)})" if meaning else "")
    headline = Text.assemble(("Likely cause: ", HEAD), (cause, BAD))
    return spaced(Group(headline, Padding(why, (0, 0, 0, 2))))


def _meaning(summary: Summary) -> str:
    """What the leading finding means in a few words; "" if its subjects differ."""
    found = summary.verdict
    lead = found.findings[0] if found.findings else None
    meanings = {
        clause(one.id, found.verdict, one.subject.peer)
        for one in summary.findings
        if one.id == lead and one.points_to == found.verdict
    }
    return meanings.pop() if len(meanings) == 1 else ""


def findings(summary: Summary) -> Group | None:
    """Findings, worst first: severity, id, confidence, title, subject."""
    if not summary.findings:
        return None
    shown, left_out = top(summary.findings, summary.findings_left_out)
    more = f"  (+{left_out:,} more)" if left_out else ""
    lines: list[RenderableType] = [Text.assemble(("Findings", HEAD), (more, DIM))]
    for one in shown:
        style = _SEVERITIES[one.severity]
        name = f"{one.severity.upper():<8}  {one.id}"
        lines.append(Text.assemble((name, style), (f"  {_certainty(one)}", DIM)))
        lines.append(Padding(plain(one.title), (0, 0, 0, 2)))
        if where := _where(one):
            lines.append(Padding(where, (0, 0, 0, 2)))
    return Group("", *lines)


def _certainty(finding: Finding) -> str:
    return f"confidence {finding.confidence}" if finding.confidence != Confidence.HIGH else ""


def _where(finding: Finding) -> Text:
    """Process, pod, peer and namespace if they are known and not in the title."""
    subject, parts = finding.subject, []
    if subject.tgid != UNKNOWN and str(subject.tgid) not in finding.title:
        parts.append(f"{subject.comm} ({subject.tgid})")
    if subject.pod != UNKNOWN:
        parts.append(f"pod {subject.namespace}/{subject.pod}")
    if subject.peer != UNKNOWN and subject.peer not in finding.title:
        parts.append(f"peer {subject.peer}")
    if subject.netns != UNKNOWN:
        parts.append(f"netns {subject.netns}")
    shown = plain(", ".join(parts))
    shown.stylize(DIM)
    return shown


def resolvers(summary: Summary) -> Group | None:
    """DNS servers as a table, if there were queries."""
    found = summary.dns
    if not found.resolvers:
        return None
    shown, left_out = top(found.resolvers, found.resolvers_left_out)
    columns = ("resolver", "queries", "no answer", "p50", "p99", "max")
    spare = ("p50", "max", "p99")
    table = table_of("DNS (estimated latency)", left_out, *columns, spare=spare)
    for one in shown:
        table.add_row(
            plain(one.peer), number(one.queries), alarming(one.unanswered), *quantiles(one.rtt_us)
        )
    return spaced(table)


def whereabouts(summary: Summary, bundle: Path, sent_to: str = "") -> tuple[str, ...]:
    """Path of the bundle and the next commands, as lines that can be copied whole."""
    lines = ["", f"Bundle       {plain(bundle)} ({size(bundle.stat().st_size)})"]
    if sent_to:
        lines.append(f"Copy         {sent_to}")
    worst = next((one for one in summary.findings if one.severity != Severity.INFO), None)
    if worst:
        lines.append(f"Next step    {plain(worst.next)}")
    lines.append(f"{'Evidence     ' if worst else 'Next step    '}{plain(_query(summary, bundle))}")
    return tuple(lines)


def _query(summary: Summary, bundle: Path) -> str:
    """The command that shows the most interesting rows of this capture."""
    columns = "ts, type, comm, tgid, local, remote"
    shown = next((one for one in summary.findings if one.evidence.rows), None)
    if shown:
        numbers = ", ".join(map(str, shown.evidence.rows))
        question = f"SELECT {columns}, new_state, error, result FROM rows WHERE n IN ({numbers})"
    elif summary.connects and set(summary.connects.results) - {ConnectResult.ESTABLISHED}:
        question = (
            f"SELECT {columns}, result, error, measure AS us FROM rows"
            " WHERE type = 'connect' AND result <> 'established'"
        )
    elif summary.retransmits.segs:
        question = f"SELECT {columns}, measure AS segs FROM rows WHERE type = 'tcp_retransmit'"
    else:
        question = f"SELECT {columns} FROM rows LIMIT 20"
    return f'ktrace query {shlex.quote(str(bundle))} "{question}"'
