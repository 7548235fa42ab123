# SPDX-License-Identifier: Apache-2.0
"""The facts of a capture that need no SQL: its window, what was lost and why, what is missing.

They are collected once. The summary copies them, and the findings read them as SQL tables
(bundle/fact_tables.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Self

from ktrace_agent.kernel.hooks import HOOKS
from ktrace_agent.kernel.probes import roots
from ktrace_agent.kernel.recording import Recording
from ktrace_agent.tables.captured import Captured
from ktrace_api.capture import CaptureConfig
from ktrace_api.names import Gap, RowType
from ktrace_api.summary import Accounting, MapOverflow, SkippedCalls, Summary

_CLOCK_STEP_NS = 100_000_000
"""A smaller step of the wall clock is not worth a note."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Fields of the summary, by the same names and with the same meaning."""

    node: str
    started: datetime
    ended: datetime
    ended_by: str
    window_s: float
    sample: int
    complete: bool
    gaps: tuple[Gap, ...]
    disk_full: bool
    hooks_missing: tuple[str, ...]
    notes: tuple[str, ...]
    rows: int
    rows_by_type: Mapping[RowType, int | None]
    accounting: Mapping[RowType, Accounting | None]
    overflow: MapOverflow
    skipped_calls: SkippedCalls

    @property
    def counted(self) -> Mapping[RowType, Accounting]:
        """The accounting of the types that were observed."""
        return _counted(self.accounting)

    @classmethod
    def of(cls, summary: Summary) -> Self:
        """Read the facts back from the summary of a sealed bundle."""
        return cls(**{one.name: getattr(summary, one.name) for one in fields(cls)})


def gather(
    captured: Captured,
    rows_by_type: Mapping[RowType, int],
    accounting: Mapping[RowType, Accounting | None],
    notes: Sequence[str] = (),
    *,
    disk_full: bool = False,
) -> Facts:
    """Collect the facts of a capture of which `rows_by_type` are in the bundle.

    `notes` are sentences about what sealing cut, `disk_full` is true if it cut rows because the
    disk was full.
    """
    recording, config = captured.recording, captured.config
    missing = tuple(one.hook for one in captured.node_info.hooks if one.missing)
    losses = [*_losses(recording, _counted(accounting)), *_untraced(missing)]
    gaps = frozenset(gap for gap, _ in losses)
    return Facts(
        node=config.node,
        started=recording.started,
        ended=recording.ended,
        ended_by=recording.ended_by,
        window_s=round(max((recording.ended - recording.started).total_seconds(), 0), 3),
        sample=config.sample,
        complete=not gaps,
        gaps=tuple(gap for gap in Gap if gap in gaps),
        disk_full=disk_full or any(recording.spool_lost.values()),
        hooks_missing=missing,
        notes=(*notes, *(text for _, text in losses), *_remarks(recording, config)),
        rows=sum(rows_by_type.values()),
        rows_by_type={
            row: count if row in recording.observed.rows else None
            for row, count in rows_by_type.items()
        },
        accounting=accounting,
        overflow=_overflow(recording),
        skipped_calls=SkippedCalls(
            tx=recording.overflow.skipped_tx_calls, rx=recording.overflow.skipped_rx_calls
        ),
    )


def _overflow(recording: Recording) -> MapOverflow:
    counts = {name: getattr(recording.overflow, name) for name in MapOverflow.model_fields}
    return MapOverflow(**counts)


def _counted(
    accounting: Mapping[RowType, Accounting | None],
) -> dict[RowType, Accounting]:
    return {row: one for row, one in accounting.items() if one is not None}


def _losses(
    recording: Recording, accounting: Mapping[RowType, Accounting]
) -> Iterator[tuple[Gap, str]]:
    """Everything that was lost, as sentences."""
    ring = sum(hook.lost_ring for hook in accounting.values())
    full = sum(hook.lost_map for hook in accounting.values())
    capped = sum(hook.capped for hook in accounting.values())
    disk = sum(recording.spool_lost.values())
    if ring:
        text = f"{ring} events were lost because the ring buffer or the disk was full"
        yield Gap.LOST_RING, f"{text} (see `accounting`)."
    if disk:
        text = f"{disk} of them were lost because the disk filled up during the capture."
        yield Gap.LOST_RING, text
    if full:
        text = f"{full} events were lost because a BPF map was full: raise max_sockets."
        yield Gap.LOST_MAP, text
    yield from _skipped(recording, accounting)
    if missed := {row: hook.unseen for row, hook in accounting.items() if hook.unseen}:
        which = ", ".join(f"{count} {row}" for row, count in missed.items())
        text = f"At least {sum(missed.values())} events were missed ({which}): the kernel counted"
        yield Gap.UNSEEN, f"{text} them but did not run the BPF program."
    if capped:
        yield Gap.CAPPED, f"{capped} events were not kept: max_events or max_bytes was reached."
    if any(_overflow(recording).model_dump().values()):
        text = "A BPF map was full, so some owners, addresses or flow counts are missing."
        yield Gap.OVERFLOW, text
    if recording.ended_by == "error":
        yield Gap.ENDED_EARLY, "The capture ended early because of an error."


def _skipped(
    recording: Recording, accounting: Mapping[RowType, Accounting]
) -> Iterator[tuple[Gap, str]]:
    cause = "the eBPF program was already running on the same CPU"
    if events := {row: hook.skipped for row, hook in accounting.items() if hook.skipped}:
        which = ", ".join(f"{count} {row}" for row, count in events.items())
        text = f"The kernel skipped {sum(events.values())} events ({which}), because {cause}."
        udp = events.keys() & {RowType.UDP_SEND, RowType.UDP_RECV}
        short = " Flows, talkers and DNS figures are short by them." if udp else ""
        yield Gap.SKIPPED, text + short
    found = recording.overflow
    if found.skipped_tx_calls or found.skipped_rx_calls:
        calls = f"{found.skipped_tx_calls} TCP sends and {found.skipped_rx_calls} TCP receives"
        text = f"The kernel skipped {calls}, because {cause}. Their bytes are in no flow or talker."
        yield Gap.SKIPPED, text


def _untraced(hooks_missing: Sequence[str]) -> Iterator[tuple[Gap, str]]:
    """Facts that no row can have. Nothing counts untraced calls, so how many is unknown."""
    if names := roots(hooks_missing):
        costs = {hook.name: hook.missing for hook in HOOKS}
        lacking = "; ".join(costs.get(name, name) for name in names)
        text = f"Not traced on this node: {', '.join(names)}. Missing: {lacking}."
        yield Gap.NOT_TRACED, f"{text} See `ktrace doctor`."


def _remarks(recording: Recording, config: CaptureConfig) -> Iterator[str]:
    """Facts that a reader must know even if nothing was lost."""
    if config.sample > 1:
        yield f"Only one event in {config.sample} is a row; talkers and flows count all events."
    step = recording.clock.offset_end_ns - recording.clock.offset_start_ns
    if abs(step) > _CLOCK_STEP_NS:
        yield (
            f"The wall clock was changed by {step / 1e9:+.1f} s during the capture;"
            " row times use the clock as it was at the start."
        )
