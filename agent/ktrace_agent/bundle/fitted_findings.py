# SPDX-License-Identifier: Apache-2.0
"""The findings of a capture on their way into its summary: bounded, and never its undoing."""

import os
from dataclasses import dataclass

import duckdb

from ktrace_agent.analyze.findings import analyze
from ktrace_api.finding import DnsSummary, Findings
from ktrace_api.summary import NO_VERDICT, Summary
from ktrace_api.thresholds import Thresholds

MAX_BYTES = 40 * 1024
"""Of the summary: the rest is for counts and talkers."""


@dataclass(frozen=True, slots=True)
class Conclusions:
    """What was found; `note` says what went wrong instead."""

    found: Findings
    note: str = ""

    @property
    def bytes(self) -> int:
        """What they add to a summary at most."""
        return len(self.found.to_bytes()) * 9 // 8 + len(self.note)  # one indent deeper

    def apply(self, summary: Summary) -> Summary:
        """The summary with them."""
        notes = (*summary.notes, self.note) if self.note else summary.notes
        fields = {name: getattr(self.found, name) for name in Findings.model_fields}
        return summary.model_copy(update={**fields, "notes": notes})


def draw(con: duckdb.DuckDBPyConnection, thresholds: Thresholds) -> Conclusions:
    """Analyze the tables of sql.py; a failure costs the findings, not the bundle."""
    try:
        drawn = Conclusions(analyze(con, thresholds))
    except Exception as error:  # the rows are worth more than what is made of them
        if os.environ.get("KTRACE_DEBUG"):
            raise
        nothing = Findings(findings=(), verdict=NO_VERDICT, dns=DnsSummary())
        return Conclusions(nothing, f"The analysis failed: {type(error).__name__}: {error}"[:400])
    while drawn.bytes > MAX_BYTES and drawn.found.findings:
        fewer = {
            "findings": drawn.found.findings[:-1],
            "findings_left_out": drawn.found.findings_left_out + 1,
        }
        drawn = Conclusions(drawn.found.model_copy(update=fewer))
    return drawn
