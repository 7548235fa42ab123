# SPDX-License-Identifier: Apache-2.0
"""summary.json: what happened, counted and concluded, in at most 64 KiB whatever the run."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from ktrace_api.finding import Cause, DnsSummary, Finding, Verdict
from ktrace_api.model import SCHEMA_VERSION, Count, MaybeCount, Model
from ktrace_api.names import UNKNOWN, RowType

SUMMARY_MAX_BYTES = 64 * 1024
NO_VERDICT = Verdict(verdict=Cause.UNKNOWN, why="No analysis was made.")


class Accounting(Model):
    """Where the events of a hook went: seen is the sum of all others but bytes and unseen."""

    seen: Count
    written: Count
    """Rows in events.jsonl."""
    filtered: Count
    sampled: Count
    capped: Count
    """Not kept because of max_events or max_bytes."""
    lost_ring: Count
    """Not kept because the ring or the disk was full."""
    lost_map: Count
    """Not kept because a map of the kernel side was full."""
    bytes: Count
    """Payload bytes of all that passed the filter."""
    unseen: Count = 0
    """Events that no program was run for, at least; of retransmits: segments. The kernel's own
    counters, or the states of the sockets, show them."""


class MapOverflow(Model):
    """Facts that a full map kept from the rows or the flows; none of them loses a row."""

    socks: Count
    """Sockets without owner and state time."""
    calls: Count
    """Calls without the address that they named."""
    cgroups: Count
    flows: Count
    """Updates of flows that found no place, and what they carried:"""
    flow_tx_bytes: Count
    flow_rx_bytes: Count
    flow_tx_calls: Count
    flow_rx_calls: Count


class Process(Model):
    """Whom a figure belongs to."""

    tgid: MaybeCount
    comm: str
    uid: MaybeCount


class ProcessRows(Process):
    """Rows of one process."""

    rows: Count
    by_type: dict[RowType, Count]


class Talker(Process):
    """Traffic of one process in one network namespace, exact also when rows were sampled."""

    netns: MaybeCount
    cgroup_id: MaybeCount
    namespace: str = UNKNOWN
    """Kubernetes namespace of the process's pod."""
    pod: str = UNKNOWN
    container: str = UNKNOWN
    tx_bytes: Count
    rx_bytes: Count
    tx_calls: Count
    rx_calls: Count
    opened: Count
    """Connections established (as client) or accepted (as server)."""
    failed: Count
    """Connects that did not establish."""
    flows: Count
    """Distinct tuples."""


class FlowPeer(Process):
    """Traffic of one process with one peer."""

    peer: str
    """Remote address and port."""
    proto: Literal["tcp", "udp", "-"]
    tx_bytes: Count
    rx_bytes: Count
    opened: Count
    failed: Count


class Quantiles(Model):
    """Of a set of durations, in microseconds."""

    count: Count
    min: Count
    p50: Count
    p90: Count
    p99: Count
    max: Count


class Destination(Model):
    """How connects to one address ended."""

    peer: str
    connects: Count
    results: dict[str, Count]
    """By ConnectResult."""
    errors: dict[str, Count]
    """By name of errno."""
    latency_us: Quantiles | None
    """Of those that established."""


class InventoryOwner(Process):
    """Sockets that one process held."""

    netns: MaybeCount
    sockets: Count
    states: dict[str, Count]


class Retransmitter(Process):
    """Segments that were sent again, by owner and peer."""

    peer: str
    segs: Count


class Processes(Model):
    """Processes with the most rows, most first."""

    top: tuple[ProcessRows, ...]
    left_out: Count


class Talkers(Model):
    """Processes with the most traffic, exact; bytes and connections each most first."""

    by_bytes: tuple[Talker, ...]
    by_connections: tuple[Talker, ...]
    left_out: Count
    """Processes beyond those of by_bytes."""


class FlowPeers(Model):
    """Process and peer pairs with the most bytes, most first."""

    top: tuple[FlowPeer, ...]
    left_out: Count


class Destinations(Model):
    """Destinations with the most connects that did not establish, then the most connects."""

    top: tuple[Destination, ...]
    left_out: Count
    results: dict[str, Count]
    """Over all destinations."""


class Inventory(Model):
    """TCP sockets that existed at one moment."""

    states: dict[str, Count]
    owners: tuple[InventoryOwner, ...]
    left_out: Count
    """Owners beyond those listed."""


class Retransmits(Model):
    """Segments sent again."""

    segs: Count
    """Sum over the rows of the bundle."""
    flow_segs: Count
    """Sum over the flows: also counts what was sampled or capped away, but no segment of a
    socket that found no place in a map."""
    top: tuple[Retransmitter, ...]
    left_out: Count


class Summary(Model):
    """What happened, in at most 64 KiB whatever the run."""

    schema_version: Literal[1] = SCHEMA_VERSION
    node: str
    started: datetime
    """When all programs were attached, by the wall clock."""
    ended: datetime
    """`started` and the time that passed: on the clock of the rows, wherever the wall clock was set
    meanwhile."""
    ended_by: str
    """`duration`, `signal` or `error`."""
    window_s: Annotated[float, Field(ge=0)]
    """Seconds that the programs were attached."""
    sample: Annotated[int, Field(ge=1)]
    """One event in N was kept; what comes from flows (talkers, flows) is exact all the same."""
    complete: bool
    """No event that passed is missing and no fact was lost; what no program could tell on this
    kernel is in `hooks_missing`."""
    disk_full: bool = False
    """Whether rows are missing because the disk was full, during the capture or while sealing."""
    hooks_missing: tuple[str, ...] = ()
    """Hooks that were asked for and that no program serves; node.json says why."""
    notes: tuple[str, ...]
    """What a reader must know, in plain sentences."""
    verdict: Verdict = NO_VERDICT
    findings: tuple[Finding, ...] = ()
    """Worst first."""
    findings_left_out: Count = 0
    dns: DnsSummary = DnsSummary()
    rows: Count
    rows_by_type: dict[RowType, Count]
    accounting: dict[RowType, Accounting]
    overflow: MapOverflow
    processes: Processes
    talkers: Talkers
    flows: FlowPeers
    connects: Destinations
    tcp_states: dict[str, dict[str, Count]]
    """Old state -> new state -> rows."""
    stock_start: Inventory
    stock_end: Inventory
    retransmits: Retransmits

    @property
    def lost(self) -> int:
        """Requested events without a row: lost for lack of space, or missed by the programs."""
        return sum(one.lost_ring + one.lost_map + one.unseen for one in self.accounting.values())
