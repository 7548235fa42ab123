# SPDX-License-Identifier: Apache-2.0
"""summary.json: counts, findings and verdict of a capture of any size, within 64 KiB.

A figure that no program observed is null, never 0.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from ktrace_api.finding import Cause, DnsSummary, Finding, Verdict
from ktrace_api.model import SCHEMA_VERSION, Count, MaybeCount, Model
from ktrace_api.names import UNKNOWN, Gap, RowType

SUMMARY_MAX_BYTES = 64 * 1024
NO_VERDICT = Verdict(verdict=Cause.UNKNOWN, why="The capture was not analyzed.")


class Accounting(Model):
    """Outcome of the events of a hook: `seen` is the sum of all others except bytes and unseen."""

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
    """Not kept because a BPF map was full."""
    skipped: Count = 0
    """Not recorded: the kernel did not run the program, which was already running on that CPU."""
    bytes: Count
    """Payload bytes of all events that passed the filter."""
    unseen: Count = 0
    """Minimum number of events for which no BPF program ran; for retransmits, of segments. Kernel
    counters or later states of the sockets show them."""

    @property
    def lost(self) -> int:
        """Number of events without a row that no filter or limit excluded."""
        return self.lost_ring + self.lost_map + self.skipped + self.unseen


class MapOverflow(Model):
    """Facts missing in rows or flows because a BPF map was full. None of them costs a row."""

    socks: Count
    """Sockets whose owner and state time were not stored."""
    calls: Count
    """Calls whose peer address was not stored."""
    cgroups: Count
    flows: Count
    """Updates of flows that were not counted; the next fields hold their totals."""
    flow_tx_bytes: Count
    flow_rx_bytes: Count
    flow_tx_calls: Count
    flow_rx_calls: Count


class SkippedCalls(Model):
    """TCP calls whose bytes are in no flow: the kernel did not run the program."""

    tx: Count = 0
    rx: Count = 0


class Process(Model):
    """The process that a count belongs to."""

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
    tx_bytes: Count | None
    rx_bytes: Count | None
    tx_calls: Count | None
    rx_calls: Count | None
    opened: Count | None
    """Connections established (as client) or accepted (as server)."""
    failed: Count | None
    """Connection attempts that failed."""
    flows: Count
    """Distinct tuples."""


class FlowPeer(Process):
    """Traffic of one process with one peer."""

    peer: str
    """Remote address and port."""
    proto: Literal["tcp", "udp", "-"]
    tx_bytes: Count | None
    rx_bytes: Count | None
    opened: Count | None
    failed: Count | None


class Quantiles(Model):
    """Quantiles of durations, in microseconds."""

    count: Count
    min: Count
    p50: Count
    p90: Count
    p99: Count
    max: Count


class Destination(Model):
    """Results of connection attempts to one address."""

    peer: str
    connects: Count
    results: dict[str, Count]
    """By ConnectResult."""
    errors: dict[str, Count]
    """By errno name."""
    latency_us: Quantiles | None
    """Of established connections."""


class InventoryOwner(Process):
    """Sockets of one process."""

    netns: MaybeCount
    sockets: Count
    states: dict[str, Count]


class Retransmitter(Process):
    """Retransmitted segments of one owner to one peer."""

    peer: str
    segs: Count


class Processes(Model):
    """Processes with the most rows, most first."""

    top: tuple[ProcessRows, ...]
    left_out: Count


class Talkers(Model):
    """Processes with the most traffic (exact), by bytes and by connections, most first."""

    by_bytes: tuple[Talker, ...]
    by_connections: tuple[Talker, ...]
    left_out: Count
    """Processes beyond those of by_bytes."""


class FlowPeers(Model):
    """Process and peer pairs with the most bytes, most first."""

    top: tuple[FlowPeer, ...]
    left_out: Count


class Destinations(Model):
    """Destinations, sorted by failed, then by all connection attempts, most first."""

    top: tuple[Destination, ...]
    left_out: Count
    results: dict[str, Count]
    """Over all destinations."""


class Inventory(Model):
    """Inventory of the TCP sockets at the start or the end of the capture."""

    states: dict[str, Count]
    owners: tuple[InventoryOwner, ...]
    left_out: Count
    """Owners beyond those listed."""


class Retransmits(Model):
    """Retransmitted segments."""

    segs: Count | None
    """Sum over the rows of the bundle."""
    flow_segs: Count | None
    """Sum over the flows. Includes events that were sampled out or capped, but no segment of a
    socket that did not fit into a BPF map."""
    top: tuple[Retransmitter, ...]
    left_out: Count


class Summary(Model):
    """Summary of a capture of any size, within 64 KiB."""

    schema_version: Literal[1] = SCHEMA_VERSION
    node: str
    started: datetime
    """When all programs were attached, by the wall clock."""
    ended: datetime
    """`started` plus the elapsed time. On the clock of the rows, even if the wall clock was changed
    meanwhile."""
    ended_by: str
    """`duration`, `signal` or `error`."""
    window_s: Annotated[float, Field(ge=0)]
    """Seconds that the programs were attached."""
    sample: Annotated[int, Field(ge=1)]
    """One event in N was kept as a row. Counts from flows (talkers, flows) are exact."""
    complete: bool
    """Whether every requested event and fact is in the bundle. False if `gaps` is not empty."""
    gaps: tuple[Gap, ...] = ()
    """Why it is not complete."""
    disk_full: bool = False
    """Whether rows are missing because the disk was full, during the capture or while sealing."""
    hooks_missing: tuple[str, ...] = ()
    """Requested hooks without a program that works on this kernel; node.json has the reasons."""
    notes: tuple[str, ...]
    """Sentences about losses and limits that a reader must know."""
    verdict: Verdict = NO_VERDICT
    findings: tuple[Finding, ...] = ()
    """Worst first."""
    findings_left_out: Count = 0
    dns: DnsSummary = DnsSummary()
    rows: Count
    rows_by_type: dict[RowType, Count | None]
    """null: no program records this type, or it was not requested. `accounting` likewise."""
    accounting: dict[RowType, Accounting | None]
    overflow: MapOverflow
    skipped_calls: SkippedCalls = SkippedCalls()
    processes: Processes
    talkers: Talkers
    flows: FlowPeers
    connects: Destinations | None
    """null: connection attempts were not observed."""
    tcp_states: dict[str, dict[str, Count]] | None
    """Old state -> new state -> rows. null: state changes were not observed."""
    stock_start: Inventory | None
    """null: no program lists the sockets. `stock_end` likewise."""
    stock_end: Inventory | None
    retransmits: Retransmits

    @property
    def counted(self) -> dict[RowType, Accounting]:
        """The accounting of the types that were observed."""
        return {row: one for row, one in self.accounting.items() if one is not None}

    @property
    def lost(self) -> int:
        """Number of observed events without a row: lost for lack of space, or missed."""
        return sum(one.lost for one in self.counted.values())
