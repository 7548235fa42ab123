# SPDX-License-Identifier: Apache-2.0
"""The facts of a capture that need no SQL: its window, what was lost and why, what is missing.

They are collected once. The summary copies them, and the findings read them as SQL tables
(bundle/fact_tables.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Self

from ktrace_agent.kernel.probes import HOOKS
from ktrace_agent.kernel.recording import Recording
from ktrace_agent.tables.captured import Captured
from ktrace_api.capture import CaptureConfig
from ktrace_api.names import RowType
from ktrace_api.summary import Accounting, MapOverflow, Summary

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
    disk_full: bool
    hooks_missing: tuple[str, ...]
    notes: tuple[str, ...]
    rows: int
    rows_by_type: Mapping[RowType, int]
    accounting: Mapping[RowType, Accounting]
    overflow: MapOverflow

    @classmethod
    def of(cls, summary: Summary) -> Self:
        """Read the facts back from the summary of a sealed bundle."""
        return cls(**{one.name: getattr(summary, one.name) for one in fields(cls)})


def gather(
    captured: Captured,
    rows_by_type: Mapping[RowType, int],
    accounting: Mapping[RowType, Accounting],
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
    losses = _losses(recording, accounting)
    return Facts(
        node=config.node,
        started=recording.started,
        ended=recording.ended,
        ended_by=recording.ended_by,
        window_s=round(max((recording.ended - recording.started).total_seconds(), 0), 3),
        sample=config.sample,
        complete=not losses,
        disk_full=disk_full or any(recording.spool_lost.values()),
        hooks_missing=missing,
        notes=(*notes, *losses, *_untraced(missing), *_remarks(recording, config)),
        rows=sum(rows_by_type.values()),
        rows_by_type=rows_by_type,
        accounting=accounting,
        overflow=MapOverflow(
            **{name: getattr(recording.overflow, name) for name in MapOverflow.model_fields}
        ),
    )


def _losses(recording: Recording, accounting: Mapping[RowType, Accounting]) -> list[str]:
    """Sentences about everything that makes the bundle incomplete."""
    ring = sum(hook.lost_ring for hook in accounting.values())
    full = sum(hook.lost_map for hook in accounting.values())
    capped = sum(hook.capped for hook in accounting.values())
    disk = sum(recording.spool_lost.values())
    found = []
    if ring:
        found.append(
            f"{ring} events were lost because the ring buffer or the disk was full"
            " (see `accounting`)."
        )
    if disk:
        found.append(f"{disk} of them were lost because the disk filled up during the capture.")
    if full:
        found.append(f"{full} events were lost because a BPF map was full: raise max_sockets.")
    if missed := {row: hook.unseen for row, hook in accounting.items() if hook.unseen}:
        which = ", ".join(f"{count} {row}" for row, count in missed.items())
        found.append(
            f"At least {sum(missed.values())} events were missed ({which}): the kernel counted"
            " them but did not run the BPF program."
        )
    if capped:
        found.append(f"{capped} events were not kept: max_events or max_bytes was reached.")
    if recording.overflow.any():
        found.append("A BPF map was full, so some owners, addresses or flow counts are missing.")
    if recording.ended_by == "error":
        found.append("The capture ended early because of an error.")
    return found


def _untraced(hooks_missing: Sequence[str]) -> Iterator[str]:
    """Facts that no row can have. They do not count as lost: nothing counts untraced calls."""
    if hooks_missing:
        costs = {hook.name: hook.missing for hook in HOOKS}
        lacking = "; ".join(costs.get(name, name) for name in hooks_missing)
        names = ", ".join(hooks_missing)
        yield f"Not traced on this node: {names}. Missing: {lacking}. See `ktrace doctor`."


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
