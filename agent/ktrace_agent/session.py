# SPDX-License-Identifier: Apache-2.0
"""One capture from start to end. Only this file defines the order of the steps.

preflight -> load -> warnings -> watches -> spool -> attach -> counters -> inventory -> wait ->
counters -> detach -> drain -> pending connects -> inventory -> last polls -> names -> node facts ->
seal.
A failure anywhere ends everything that was started.
"""

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ktrace_agent.enrich.watches import Watches
from ktrace_agent.errors import UnsupportedKernel
from ktrace_agent.host.clock import boot_ns, wall_offset_ns
from ktrace_agent.host.counters import MAX_NETNS, Snapshot, snapshot
from ktrace_agent.host.netns import PROC, find_netns, run_in_netns
from ktrace_agent.host.tcp_counts import rise
from ktrace_agent.kernel import preflight
from ktrace_agent.kernel.collector import Collector
from ktrace_agent.kernel.hooks import LEFT
from ktrace_agent.kernel.observed import Observed, observe
from ktrace_agent.kernel.probes import Choice, unserved
from ktrace_agent.kernel.recording import Clock, HookCounters, Recording, wall_clock
from ktrace_agent.kernel.spool import Spool
from ktrace_agent.signals import Stop
from ktrace_api.capture import CaptureConfig
from ktrace_api.names import BackendName, EventKind, RowType

if TYPE_CHECKING:
    from ktrace_agent.bundle.seal import Sealed
    from ktrace_agent.tables.captured import Captured

TICK_S = 0.25
INVENTORY_S = 1.0
"""Maximum time to search for network namespaces."""


@dataclass(frozen=True)
class Live:
    """Progress of a running capture."""

    elapsed_s: float
    remaining_s: float
    events: int
    rate_per_s: float
    lost: int


class Observer(Protocol):
    """Receives the progress of a session, for example to show it on a terminal."""

    def warn(self, text: str) -> None:
        """Called before ready(), with one line for each fact that this kernel cannot record."""

    def ready(self) -> None:
        """Called once all programs are attached; events are recorded from now on."""

    def tick(self, live: Live) -> None:
        """Called about four times a second."""

    def sealing(self, text: str) -> None:
        """Called with one line for each step after the capture."""


def run(
    config: CaptureConfig,
    out_dir: Path,
    observer: Observer,
    stop: Stop | None = None,
    host_root: Path = Path("/"),
) -> "Sealed":
    """Run a whole session, from the preflight to the sealed bundle in `out_dir`.

    `stop` ends the capture early; its recording is still sealed. `host_root` is the path of the
    host's /. Raises subclasses of KtraceError; then no file is left.
    """
    platform = preflight.check(config.backend)
    watches = Watches(config, host_root)
    recorded = record(
        config,
        out_dir,
        cgroup_v1=bool({"pids", "memory"} & set(platform.cgroup.v1_controllers)),
        backend=platform.backend or "core",
        observer=observer,
        stop=stop or Stop(),
        watches=watches,
    )
    try:
        # numpy and DuckDB are imported only now, so that the agent stays small while it records.
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
    """A recording, its programs, and the host's counters from before and after."""

    recording: Recording
    choices: tuple[Choice, ...]
    before: Snapshot
    after: Snapshot


def record(
    config: CaptureConfig,
    folder: Path,
    *,
    cgroup_v1: bool,
    backend: BackendName = "core",
    observer: Observer,
    stop: Stop,
    watches: Watches,
) -> Recorded:
    """Record until the duration is over or `stop` is set.

    The caller must close the spool's descriptor in the Recording. Raises UnsupportedKernel if the
    capture would record nothing that was requested.
    """
    with ExitStack() as stack:
        collector = Collector(config, cgroup_v1=cgroup_v1, backend=backend)
        stack.enter_context(closing(collector))
        observed = _examine(config, collector.choices, observer)
        spool = stack.enter_context(closing(Spool(collector.ring_fd, folder)))
        offset = wall_offset_ns()
        stack.enter_context(watches)
        spool.start()
        collector.attach()
        started = wall_clock(boot_ns(), offset)
        before = snapshot()
        collector.iterate("prime_owners")
        sockets_start = _inventory(collector)
        observer.ready()
        ended_by = _wait(config, collector, spool, observer, stop)
        ended = wall_clock(boot_ns(), offset)
        after = snapshot()
        observer.sealing("detaching eBPF programs")
        collector.detach()
        # At once: with the programs detached, nothing shows which of these sockets close later.
        for name in LEFT:
            collector.iterate(name)
        spool.finish()
        counters = _counters(collector, spool)
        sockets_end = _inventory(collector)
        watches.stop()
        keys, values = collector.flows()
        recording = Recording(
            spool_fd=os.dup(spool.fd),
            stock_start=sockets_start,
            stock_end=sockets_end,
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
            tcp_counts=rise(before, after),
            observed=observed,
        )
        return Recorded(recording, collector.choices, before, after)


def _examine(config: CaptureConfig, choices: Sequence[Choice], observer: Observer) -> Observed:
    """Return what the programs can record, and warn of everything requested that they cannot."""
    observed = observe({choice.hook for choice in choices if choice.programs}, config.events)
    udp = {RowType.UDP_SEND, RowType.UDP_RECV}
    if config.dns_only and EventKind.UDP in config.events and not udp & observed.rows:
        raise UnsupportedKernel(
            "no eBPF program can record UDP sends or receives on this kernel, so a capture of DNS"
            " only would show no query and no answer: capture without --dns-only to record TCP;"
            " `ktrace doctor` lists the reasons"
        )
    for choice in unserved(choices):
        observer.warn(
            f"cannot record on this kernel: {choice.missing} ({choice.refused[0].reason})"
        )
    return observed


def _inventory(collector: Collector) -> bytes:
    """Return KT_STOCK records of every network namespace that has a process.

    Without permission to enter other namespaces, only the agent's own is listed.
    """
    deadline = time.monotonic() + INVENTORY_S
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
    """Wait for the end of the duration ("duration") or for `stop` ("signal")."""
    begun = time.monotonic()
    deadline = begun + config.duration.total_seconds()
    last_time, last_events, rate = begun, 0, 0.0
    while (remaining := deadline - time.monotonic()) > 0:
        if stop.wait(min(TICK_S, remaining)):
            return "signal"
        now, events = time.monotonic(), spool.records
        rate = 0.7 * rate + 0.3 * (events - last_events) / max(now - last_time, 1e-3)
        last_time, last_events = now, events
        lost = sum(c.lost_ring + c.lost_map + c.skipped for c in collector.counters().values())
        lost += sum(spool.lost.values())
        observer.tick(Live(now - begun, max(deadline - now, 0.0), events, rate, lost))
    return "duration"


def _counters(collector: Collector, spool: Spool) -> dict[RowType, HookCounters]:
    """Return the accounting of every hook, corrected by losses of the spool."""
    counters = collector.counters(with_skipped=True)
    for row, count in spool.lost.items():
        was = counters[row]
        counters[row] = replace(was, written=was.written - count, lost_ring=was.lost_ring + count)
    return counters
