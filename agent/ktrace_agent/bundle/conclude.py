# SPDX-License-Identifier: Apache-2.0
"""Runs the analysis while a bundle is sealed. If it fails, the bundle is still sealed."""

import os
from typing import NamedTuple

import duckdb

from ktrace_agent.analyze.findings import analyze
from ktrace_api.finding import DnsSummary, Findings
from ktrace_api.summary import NO_VERDICT
from ktrace_api.thresholds import Thresholds

_NOTE_CHARS = 400


class Concluded(NamedTuple):
    """The findings, and a note if there are none because the analysis failed."""

    found: Findings
    notes: tuple[str, ...] = ()


def conclude(
    con: duckdb.DuckDBPyConnection, thresholds: Thresholds, *, paired: bool = False
) -> Concluded:
    """Analyze the tables of tables/contract.py; `paired` as in analyze().

    With KTRACE_DEBUG set, errors of the analysis are raised.
    """
    try:
        return Concluded(analyze(con, thresholds, paired=paired))
    except Exception as error:  # the rows are worth more than their analysis
        if os.environ.get("KTRACE_DEBUG"):
            raise
        nothing = Findings(findings=(), verdict=NO_VERDICT, dns=DnsSummary())
        note = f"The analysis failed: {type(error).__name__}: {error}"
        return Concluded(nothing, (note[:_NOTE_CHARS],))
