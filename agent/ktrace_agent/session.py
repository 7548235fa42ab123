# SPDX-License-Identifier: Apache-2.0
"""One capture from start to end: the only file that knows the order.

preflight -> load -> watches -> spool -> attach -> counters -> inventory -> wait -> counters ->
detach -> drain -> open connects -> inventory -> last looks -> names -> node facts -> seal. A
failure anywhere ends all that was begun.
"""

import os
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ktrace_agent.enrich.watches import Watches
from ktrace_agent.host.clock import boot_ns, wall_offset_ns
from ktrace_agent.host.counters import MAX_NETNS, Snapshot, snapshot
from ktrace_agent.host.netns import PROC, find_netns, run_in_netns
from ktrace_agent.host.tcp_counts import witness
from ktrace_agent.kernel import preflight
from ktrace_agent.kernel.collector import Collector
from ktrace_agent.kernel.probes import Choice
from ktrace_agent.kernel.recording import Clock, HookCounters, Recording, wall_clock
from ktrace_agent.kernel.spool import EVENT_BYTES, Spool
from ktrace_agent.signals import Stop
from ktrace_api.capture import CaptureConfig
from ktrace_api.names import RowType

if TYPE_CHECKING:
    from ktrace_agent.bundle.seal import Sealed
    from ktrace_agent.tables.captured import Captured

TICK_S = 0.25
STOCK_S = 1.0
"""Time to look for network namespaces at most."""


@dataclass(frozen=True)
class Live:
    """How the capture stands while it runs."""

    elapsed_s: float
    remaining_s: float
    events: int
    rate_per_s: float
    lost: int


class Observer(Protocol):
    """Who watches a session: the terminal, or nobody."""

    def ready(self) -> None:
        """Every program is attached; what happens from now on is recorded."""

    def tick(self, live: Live) -> None:
        """About four times a second."""

    def sealing(self, text: str) -> None:
        """What happens after the capture, a line a step."""


def run(
    config: CaptureConfig,
    out_dir: Path,
    observer: Observer,
    stop: Stop | None = None,
    host_root: Path = Path("/"),
) -> "Sealed":
    """A whole session: from the look at the kernel to the sealed bundle in `out_dir`.

    `stop` ends the capture early, what was recorded is sealed all the same. `host_root` is where
    the host's / is seen. Raises the leaves of KtraceError; then nothing is left behind.
    """
    platform = preflight.check()
    watches = Watches(config, host_root)
    recorded = record(
        config,
        out_dir,
        cgroup_v1=bool({"pids", "memory"} & set(platform.cgroup.v1_controllers)),
        observer=observer,
        stop=stop or Stop(),
        watches=watches,
    )
    try:
        # numpy and DuckDB come in only now: while an incident is recorded the agent stays small.
        from ktrace_agent.bundle import seal

        observer.sealing("resolving container names")
        captured = _complete(config, platform, recorded, watches)
        # Only `captured` may hold the names now: sealing releases them when they are loaded.
        del watches
        return seal.seal(captured, out_dir, observer.sealing)
    finally:
        os.close(recorded.recording.spool_fd)


def _complete(
    config: CaptureConfig, platform: preflight.Platform, recorded: "Recorded", watches: Watches
) -> "Captured":
    """Add names, node facts and changes of counters to a recording."""
    from ktrace_agent.bundle import node_info
    from ktrace_agent.host import counter_changes
    from ktrace_agent.tables import records
    from ktrace_agent.tables.captured import Captured
    from ktrace_agent.tables.load import Names

    recording = recorded.recording
    active = records.network_namespaces(recording)
    changes = counter_changes.compare(recorded.before, recorded.after, active)
    identities = watches.identify(recording.cgroups)
    facts = node_info.describe(
        config,
        platform,
        recorded.choices,
        recording,
        counter_changes.fit(changes),
        identities,
        watches.tracked,
    )
    names = Names(identities.by_cgroup, watches.tracked)
    return Captured(recording, config, facts, changes, names)


@dataclass(frozen=True)
class Recorded:
    """A recording, the programs that made it, and the host's counters while they were attached."""

    recording: Recording
    choices: tuple[Choice, ...]
    before: Snapshot
    after: Snapshot


def record(
    config: CaptureConfig,
    folder: Path,
    *,
    cgroup_v1: bool,
    observer: Observer,
    stop: Stop,
    watches: Watches,
) -> Recorded:
    """Record until the duration is over or `stop` is set.

    The spool's descriptor in the Recording is the caller's to close.
    """
    with ExitStack() as stack:
        collector = stack.enter_context(closing(Collector(config, cgroup_v1=cgroup_v1)))
        spool = stack.enter_context(closing(Spool(collector.ring_fd, folder)))
        offset = wall_offset_ns()
        stack.enter_context(watches)
        spool.start()
        collector.attach()
        started = wall_clock(boot_ns(), offset)
        before = snapshot()
        collector.iterate("prime_owners")
        stock_start = _stock(collector)
        observer.ready()
        ended_by = _wait(config, collector, spool, observer, stop)
        ended = wall_clock(boot_ns(), offset)
        after = snapshot()
        observer.sealing("detaching eBPF programs")
        collector.detach()
        collector.iterate("list_held")  # into the ring
        spool.finish()
        # At once: nothing tells any more which of these sockets are closed meanwhile.
        counters = _with_pending(collector, spool)
        stock_end = _stock(collector)
        watches.stop()
        keys, values = collector.flows()
        recording = Recording(
            spool_fd=os.dup(spool.fd),
            stock_start=stock_start,
            stock_end=stock_end,
            flow_keys=keys,
            flow_values=values,
            counters=counters,
            overflow=collector.overflow(),
            cgroups=collector.cgroups(),
            clock=Clock(offset, wall_offset_ns()),
            started=started,
            ended=ended,
            ended_by=ended_by,
            spool_lost=spool.lost,
            witness=witness(before, after),
        )
        return Recorded(recording, collector.choices, before, after)


def _stock(collector: Collector) -> bytes:
    """KT_STOCK records of every network namespace that a process lives in.

    Without the right to enter others it is that of the agent's own.
    """
    deadline = time.monotonic() + STOCK_S
    namespaces = find_netns(PROC, lambda: time.monotonic() > deadline)
    found = []
    for inode, pids in list(namespaces.items())[:MAX_NETNS]:
        try:
            records = run_in_netns(int(pids[0]), inode, lambda: collector.iterate("list_sockets"))
        except PermissionError:
            return collector.iterate("list_sockets")
        found.append(records or b"")
    return b"".join(found)


def _wait(
    config: CaptureConfig,
    collector: Collector,
    spool: Spool,
    observer: Observer,
    stop: Stop,
) -> str:
    """Until the duration is over ("duration") or someone asks to stop ("signal")."""
    begun = time.monotonic()
    deadline = begun + config.duration.total_seconds()
    last_time, last_events, rate = begun, 0, 0.0
    while (remaining := deadline - time.monotonic()) > 0:
        if stop.wait(min(TICK_S, remaining)):
            return "signal"
        now, events = time.monotonic(), spool.records
        rate = 0.7 * rate + 0.3 * (events - last_events) / max(now - last_time, 1e-3)
        last_time, last_events = now, events
        lost = sum(c.lost_ring + c.lost_map for c in collector.counters().values())
        lost += sum(spool.lost.values())
        observer.tick(Live(now - begun, max(deadline - now, 0.0), events, rate, lost))
    return "duration"


def _with_pending(collector: Collector, spool: Spool) -> dict[RowType, HookCounters]:
    """Append the connects without an answer as rows; the counters, spool losses settled."""
    pending = collector.iterate("list_pending")
    lost = dict(spool.lost)
    if refused := len(pending) // EVENT_BYTES - spool.append(pending):
        lost[RowType.CONNECT] = lost.get(RowType.CONNECT, 0) + refused
    counters = collector.counters(with_misses=True)
    for row, count in lost.items():
        was = counters[row]
        counters[row] = replace(was, written=was.written - count, lost_ring=was.lost_ring + count)
    return counters
