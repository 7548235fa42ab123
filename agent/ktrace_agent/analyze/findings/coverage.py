# SPDX-License-Identifier: Apache-2.0
"""The capture itself: what it lost, and why a capture without rows has no verdict."""

from collections.abc import Iterator

from ktrace_agent.analyze import sentences
from ktrace_agent.analyze.findings.case import Case, Coverage, Measured, Texts
from ktrace_agent.analyze.findings.wording import number
from ktrace_agent.analyze.titles import GAPS, Variant, fill, title
from ktrace_agent.kernel.observed import known_loss
from ktrace_agent.kernel.probes import roots
from ktrace_api.finding import Cause, Finding, FindingId, Severity
from ktrace_api.names import RowType

_ID = FindingId.CAPTURE_INCOMPLETE
_NOT_TRACED = _ID, Variant.NOT_TRACED


def find(case: Case) -> Iterator[Finding]:
    """CAPTURE_INCOMPLETE, if any requested events are missing."""
    coverage, limits = case.coverage, case.limits
    lost = sum(coverage.lost.values())
    skipped = coverage.skipped + coverage.skipped_calls
    others = lost - coverage.skipped or coverage.capped or coverage.overflow
    whole = not (skipped or others or coverage.ended_early)
    if whole and not coverage.hooks_missing:
        return
    rate = coverage.lost_share(RowType)
    few = lost == coverage.unseen < limits.unseen_count
    heavy = (rate > limits.lost_share and not few) or bool(coverage.hooks_missing)
    refuted_by = sentences.REFUTED_BY_VARIANT[_NOT_TRACED]
    yield case.find(
        FindingId.CAPTURE_INCOMPLETE,
        Severity.WARNING if heavy else Severity.INFO,
        Texts(
            title=_title(coverage, lost, whole=whole),
            refuted_by=refuted_by if coverage.hooks_missing else sentences.REFUTED_BY[_ID],
            next=_next(whole=whole, skipped=bool(skipped and not others)),
        ),
        subject={},
        points_to=Cause.UNKNOWN,
        measured=Measured(
            counts={
                "lost": known_loss(lost, coverage.hooks_missing),
                "skipped": skipped,
                "unseen": coverage.unseen,
                "capped": coverage.capped,
                "overflow": coverage.overflow,
            },
            numbers=[number("events lost", rate, limits.lost_share, "share")],
        ),
    )


def _next(*, whole: bool, skipped: bool) -> str:
    if whole:
        return sentences.NEXT_VARIANT[_NOT_TRACED]
    return sentences.NEXT_SKIPPED if skipped else sentences.NEXT[_ID]


def _title(coverage: Coverage, lost: int, *, whole: bool) -> str:
    """Missing hooks alone are not lost events."""
    hooks = roots(coverage.hooks_missing)
    if whole:
        return title(_ID, Variant.NOT_TRACED, hooks=_listed(hooks), count=len(hooks))
    counts = {
        "lost": lost - coverage.unseen - coverage.skipped,
        "skipped": coverage.skipped,
        "skipped_calls": coverage.skipped_calls,
        "unseen": coverage.unseen,
        "capped": coverage.capped,
        "overflow": coverage.overflow,
    }
    gaps = [fill(GAPS[name], count=count) for name, count in counts.items() if count > 0]
    if hooks:
        gaps.append(fill(GAPS["hooks"], hooks=_listed(hooks)))
    return title(_ID, gaps=", ".join(gaps or [GAPS["early"]]))


def _listed(names: tuple[str, ...]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def silence(case: Case) -> str:
    """Explain why a capture without rows has no verdict.

    A connection that exists before and after the capture makes no row, however many bytes it
    carries: the bytes are in the flows.
    """
    coverage = case.coverage
    (counts,) = case.query(
        """SELECT (SELECT count(*) FROM flows
                   WHERE greatest(tx_bytes, rx_bytes, tx_calls, rx_calls) > 0) AS flows,
             (SELECT coalesce(sum(greatest(seen::HUGEINT - coalesce(filtered, 0), 0)), 0)
              FROM accounting) AS events"""
    )
    if counts["events"]:
        events = int(counts["events"])
        if coverage.sample > 1:
            return fill(sentences.SAMPLED_OUT, count=events, sample=coverage.sample)
        return fill(sentences.NOT_KEPT, count=events)
    if coverage.unseen:
        return fill(sentences.NOT_CAPTURED, count=coverage.unseen)
    if counts["flows"]:
        return fill(sentences.NO_EVENTS, count=counts["flows"])
    if coverage.filters:
        return fill(sentences.NOT_MATCHED, filters=", ".join(coverage.filters))
    return fill(sentences.NO_TRAFFIC_IN, seconds=round(coverage.window_s))
