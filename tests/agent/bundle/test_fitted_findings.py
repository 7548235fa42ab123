# SPDX-License-Identifier: Apache-2.0
"""An analysis that fails costs the findings, never the bundle."""

from contextlib import closing

import duckdb
import pytest

from ktrace_agent.bundle import fitted_findings
from ktrace_api.finding import Cause
from ktrace_api.thresholds import Thresholds


def test_a_failure_is_told_and_concludes_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("KTRACE_DEBUG", raising=False)
    with closing(duckdb.connect()) as without_tables:
        drawn = fitted_findings.draw(without_tables, Thresholds())
    assert drawn.found.findings == ()
    assert drawn.found.verdict.verdict == Cause.UNKNOWN
    assert drawn.note.startswith("The analysis failed: CatalogException: ")
    assert len(drawn.note) <= 400


def test_whoever_looks_for_the_cause_gets_the_trace(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KTRACE_DEBUG", "1")
    with closing(duckdb.connect()) as without_tables, pytest.raises(duckdb.CatalogException):
        fitted_findings.draw(without_tables, Thresholds())
