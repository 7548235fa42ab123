# SPDX-License-Identifier: Apache-2.0
"""Decides when a changed status is written.

Every watcher of a snapshot receives the whole object at each write, and 1,000 nodes cause 2,000
changes. Changes of phase or conditions, and the end, are written at once. Other changes are
written every 2 seconds at the earliest, and only if many nodes have changed or the last write is
long ago. The maximum is 15 writes in all, plus one for each wave.
"""

from datetime import timedelta

from ktrace_api.snapshot import SnapshotSpec
from ktrace_api.status import SnapshotStatus

LEAST = timedelta(seconds=2)
_SMALL_CHANGE = timedelta(seconds=15)
_MUCH = 0.4
"""Share of nodes whose entry changed."""


def wait_to_write(
    before: SnapshotStatus,
    after: SnapshotStatus,
    spec: SnapshotSpec,
    since_write: timedelta | None,
    running_for: timedelta,
) -> timedelta | None:
    """Delay until `after` is written; None if there is nothing to write.

    since_write: time since the last write of this process, None if it made none.
    running_for: time since the start of the snapshot.
    """
    if before == after:
        return None
    if _signals(before) != _signals(after):
        return timedelta(0)
    old = {one.node: one for one in before.results}
    changed = [one for one in after.results if old.get(one.node) != one]
    much = len(changed) >= _MUCH * len(after.results)
    parallelism = spec.nodes.parallelism
    wave = bool(parallelism) and sum(one.final for one in changed) >= parallelism
    least = LEAST if much or wave else max(_SMALL_CHANGE, running_for)
    return max(timedelta(0), least - since_write) if since_write is not None else timedelta(0)


def _signals(status: SnapshotStatus) -> tuple[object, ...]:
    """The parts that clients wait for."""
    conditions = tuple((one.type, one.status, one.reason) for one in status.conditions)
    return status.phase, status.observed_generation, conditions
