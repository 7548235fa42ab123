# SPDX-License-Identifier: Apache-2.0
"""A summary that is too large loses the ends of its lists, and counts what it lost."""

from contextlib import closing
from typing import Any, get_args

import pytest

from ktrace_agent.analyze.facts import Facts, gather
from ktrace_agent.analyze.summary import LIST_ENTRIES, summarize
from ktrace_agent.bundle import fitted_summary
from ktrace_agent.bundle.fitted_summary import fit
from ktrace_agent.tables.captured import Captured
from ktrace_agent.tables.load import load
from ktrace_api.capture import CaptureConfig
from ktrace_api.finding import DnsSummary, Findings
from ktrace_api.node import NodeInfo
from ktrace_api.summary import NO_VERDICT, Summary
from tests.agent.conftest import Make, make_events, make_flows

PROCESSES = 23
NOTHING_FOUND = Findings(findings=(), verdict=NO_VERDICT, dns=DnsSummary())


@pytest.fixture
def summary(make_recording: Make, config: CaptureConfig, node_info: NodeInfo) -> Summary:
    """More processes and flows than a list holds; of five flows a connection was opened."""
    who = [{"tgid": 100 + number} for number in range(PROCESSES)]
    flows = [
        {**one, "tx_bytes": 1000 - number, "opened": int(number < 5)}
        for number, one in enumerate(who)
    ]
    recording = make_recording(make_events(who), make_flows(flows))
    with closing(load(recording, "n")) as tables:
        facts = gather(Captured(recording, config, node_info), tables.types(), {})
        return summarize(tables, facts, NOTHING_FOUND)


def test_a_summary_that_fits_is_left_as_it_is(summary: Summary):
    assert fit(summary) == summary
    assert len(summary.processes.top) == LIST_ENTRIES
    assert summary.processes.left_out == PROCESSES - LIST_ENTRIES


@pytest.mark.parametrize("entries", fitted_summary.ENTRIES[1:])
def test_every_list_keeps_its_first_entries_and_counts_the_others(
    entries: int, summary: Summary, monkeypatch: pytest.MonkeyPatch
):
    size = len(fitted_summary._shorten(summary, entries).to_bytes())
    monkeypatch.setattr(fitted_summary, "SUMMARY_MAX_BYTES", size)
    short = fit(summary)
    assert len(short.to_bytes()) == size
    assert short.processes.top == summary.processes.top[:entries]
    assert short.processes.left_out == PROCESSES - entries
    assert short.talkers.by_bytes == summary.talkers.by_bytes[:entries]
    assert short.talkers.by_connections == summary.talkers.by_connections[:entries]
    assert short.talkers.left_out == PROCESSES - entries
    assert short.connects
    assert summary.connects
    assert short.connects.left_out == summary.connects.left_out


def test_lists_of_all_parts_are_shortened():
    """A new list of the summary must be bounded too."""

    def parts(annotation: Any) -> list[str]:
        """Fields of a model, or of the model that may be None."""
        models = get_args(annotation) or (annotation,)
        return [name for model in models for name in getattr(model, "model_fields", {})]

    lists: dict[str, Any] = {
        name: tuple(
            one for one in parts(field.annotation) if one in ("top", "owners")
            or one.startswith("by_")
        )
        for name, field in Summary.model_fields.items()
        if "left_out" in parts(field.annotation)
    }  # fmt: skip
    assert lists == fitted_summary._LISTS


def test_facts_are_read_back_from_a_summary(summary: Summary):
    facts = Facts.of(summary)
    assert (facts.node, facts.rows, facts.complete) == ("etcd-1", PROCESSES, True)
    assert facts.rows_by_type == summary.rows_by_type
