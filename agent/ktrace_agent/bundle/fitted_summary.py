# SPDX-License-Identifier: Apache-2.0
"""Fits a summary into SUMMARY_MAX_BYTES by shortening its lists.

Why it is bounded: summary.json is read whole by people, programs and language models, travels in
one piece through APIs, and must stay readable after a capture of any size. Counts, accounting,
notes and the verdict have a fixed size. Findings and DNS are bounded when they are made
(analyze/findings). The lists of processes and peers take what is left: each list is ordered by
importance, so only its least important entries go, and `left_out` counts them. A bundle keeps all
of it in its tables.
"""

from collections.abc import Iterable
from typing import Any

from ktrace_agent.analyze.summary import LIST_ENTRIES
from ktrace_api.model import Model
from ktrace_api.summary import SUMMARY_MAX_BYTES, Summary

ENTRIES = (LIST_ENTRIES, 10, 5, 2)
"""Entries kept of each list; the first number that makes the summary small enough is used."""
_LISTS = {
    "processes": ("top",),
    "talkers": ("by_bytes", "by_connections"),
    "flows": ("top",),
    "connects": ("top",),
    "stock_start": ("owners",),
    "stock_end": ("owners",),
    "retransmits": ("top",),
}
"""Field of the summary -> its lists, all with the same number of entries; `left_out` counts what
is missing in the first."""


def fit(summary: Summary) -> Summary:
    """Return the summary with the longest lists, then the most findings, that fit."""
    for entries in ENTRIES:
        short = _shorten(summary, entries)
        if _fits(short):
            return short
    while short.findings and not _fits(short):
        short = short.model_copy(
            update={
                "findings": short.findings[:-1],
                "findings_left_out": short.findings_left_out + 1,
            }
        )
    return short


def _fits(summary: Summary) -> bool:
    return len(summary.to_bytes()) <= SUMMARY_MAX_BYTES


def _shorten(summary: Summary, entries: int) -> Summary:
    parts = {
        name: _cut(part, lists, entries)
        for name, lists in _LISTS.items()
        if (part := getattr(summary, name)) is not None
    }
    return summary.model_copy(update=parts)


def _cut(part: Any, lists: Iterable[str], entries: int) -> Model:
    shown: dict[str, tuple[Any, ...]] = {name: getattr(part, name) for name in lists}
    first, *_ = shown.values()
    left_out = part.left_out + max(len(first) - entries, 0)
    short = {name: one[:entries] for name, one in shown.items()}
    cut: Model = part.model_copy(update={**short, "left_out": left_out})
    return cut
