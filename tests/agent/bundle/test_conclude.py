# SPDX-License-Identifier: Apache-2.0
"""A failed analysis costs the findings, never the bundle."""

from contextlib import closing

import duckdb
import pytest

from ktrace_agent.bundle.conclude import conclude
from ktrace_api.finding import Cause
from ktrace_api.thresholds import Thresholds


def test_a_failure_leaves_a_note_and_no_findings(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("KTRACE_DEBUG", raising=False)
    with closing(duckdb.connect()) as without_tables:
        concluded = conclude(without_tables, Thresholds())
    assert concluded.found.findings == ()
    assert concluded.found.verdict.verdict == Cause.UNKNOWN
    (note,) = concluded.notes
    assert note.startswith("The analysis failed: CatalogException: ")
    assert len(note) <= 400


def test_a_failure_is_raised_for_debugging(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KTRACE_DEBUG", "1")
    with closing(duckdb.connect()) as without_tables, pytest.raises(duckdb.CatalogException):
        conclude(without_tables, Thresholds())
