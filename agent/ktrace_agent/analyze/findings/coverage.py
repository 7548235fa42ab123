# SPDX-License-Identifier: Apache-2.0
"""The capture itself: what it lost, and how much its silence is worth."""

from collections.abc import Iterator

from ktrace_agent.analyze.findings.case import Case, Coverage
from ktrace_agent.analyze.findings.wording import number
from ktrace_agent.analyze.verdict import NO_TRAFFIC
from ktrace_api.finding import Cause, Finding, FindingId, Severity
from ktrace_api.names import RowType

_REFUTED_BY_EVENTS = "`complete: true` in the summary of a capture of the same traffic."
_REFUTED_BY_HOOKS = (
    "`complete: true` and an empty `hooks_missing` in the summary of a capture of the same traffic."
)
_MORE_ROOM = "ktrace --duration=30s --ring-bytes=64Mi --max-events=2000000; "
_SO = "so nothing can be said"


def find(case: Case) -> Iterator[Finding]:
    """CAPTURE_INCOMPLETE, where anything is missing that was asked for."""
    coverage, limits = case.coverage, case.limits
    lost = sum(coverage.lost.values())
    whole = coverage.complete and not lost and not coverage.capped and not coverage.overflow
    if whole and not coverage.hooks_missing:
        return
    rate = coverage.lost_share(RowType)
    few = lost == coverage.unseen < limits.unseen_count
    heavy = (rate > limits.lost_share and not few) or bool(coverage.hooks_missing)
    yield case.find(
        FindingId.CAPTURE_INCOMPLETE,
        Severity.WARNING if heavy else Severity.INFO,
        _title(coverage, lost, whole=whole),
        subject={},
        points_to=Cause.UNKNOWN,
        refuted_by=_REFUTED_BY_HOOKS if coverage.hooks_missing else _REFUTED_BY_EVENTS,
        look=f"{'' if whole else _MORE_ROOM}ktrace doctor",
        counts={
            "lost": lost,
            "unseen": coverage.unseen,
            "capped": coverage.capped,
            "overflow": coverage.overflow,
        },
        numbers=[number("events lost", rate, limits.lost_share, "share")],
    )


def _title(coverage: Coverage, lost: int, *, whole: bool) -> str:
    """What is missing; what no program serves is no event that was lost."""
    unserved = f"no program for {', '.join(coverage.hooks_missing)}"
    if whole:
        return f"Facts are missing: {unserved} (no event was lost)"
    parts = [
        f"{lost - coverage.unseen} events lost" if lost > coverage.unseen else "",
        f"{coverage.unseen} events that no program saw" if coverage.unseen else "",
        f"{coverage.capped} not kept (limit of the capture)" if coverage.capped else "",
        f"{coverage.overflow} facts without room" if coverage.overflow else "",
        unserved if coverage.hooks_missing else "",
    ]
    return f"The capture is incomplete: {', '.join(filter(None, parts)) or 'it ended early'}"


def silence(case: Case) -> str:
    """Why a capture without a row says nothing, in a sentence.

    A connection that stands before and after makes no row, however much it carries: its bytes
    are in the flows.
    """
    coverage = case.coverage
    (told,) = case.ask(
        """SELECT (SELECT count(*) FROM flows
                   WHERE greatest(tx_bytes, rx_bytes, tx_calls, rx_calls) > 0) AS flows,
             (SELECT coalesce(sum(greatest(seen::HUGEINT - coalesce(filtered, 0), 0)), 0)
              FROM accounting) AS events"""
    )
    if told["events"]:
        kept = f"1 in {coverage.sample} is" if coverage.sample > 1 else "there was no room"
        return f"Events were seen ({told['events']}), but none of them is a row ({kept}), {_SO}."
    if coverage.unseen:
        return f"Events passed that no program saw ({coverage.unseen}), and no others, {_SO}."
    if told["flows"]:
        return (
            f"Traffic was seen (flows: {told['flows']}), but nothing happened in it that makes a"
            " row: no fault shows, and none is ruled out."
        )
    if coverage.filters:
        asked = ", ".join(coverage.filters)
        return f"Nothing of what was asked for ({asked}) was seen, {_SO}."
    return NO_TRAFFIC
