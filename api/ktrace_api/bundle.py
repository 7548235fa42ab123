# SPDX-License-Identifier: Apache-2.0
"""What an agent hands back: rows, summary, node facts and the manifest of a bundle.

The JSON Schemas in docs/schemas/ are generated from these models (schemas.py).
A fact that is not known is `"-"`, whatever the type of the field otherwise.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from ktrace_api.capture import CaptureConfig
from ktrace_api.finding import Cause, DnsSummary, Finding, Verdict
from ktrace_api.model import Count, MaybeCount, Model, Unknown
from ktrace_api.names import (
    UNKNOWN,
    ConnectResult,
    OwnerSource,
    PeerSource,
    Role,
    RowType,
    TcpState,
)

SCHEMA_VERSION: Literal[1] = 1
SUMMARY_MAX_BYTES = 64 * 1024
NO_VERDICT = Verdict(verdict=Cause.UNKNOWN, why="No analysis was made.")


# Rows


class Namespaces(Model):
    """Inode numbers, as `ls -l /proc/PID/ns` shows them."""

    net: MaybeCount
    """Of the socket."""
    mnt: MaybeCount
    pid: MaybeCount
    user: MaybeCount


class Security(Model):
    """What the process was allowed to do."""

    seccomp_mode: Annotated[int, Field(ge=0, le=2)] | Unknown
    """0 off, 1 strict, 2 filter."""
    caps_eff: Annotated[str, Field(pattern=r"^(-|0x[0-9a-f]{8}_[0-9a-f]{8})$")]
    """Effective capabilities: high and low 32 bits of CapEff."""


class PodIdentity(Model):
    """Kubernetes' names of the process's container."""

    pod_uid: str = UNKNOWN
    namespace: str = UNKNOWN
    pod: str = UNKNOWN
    container: str = UNKNOWN
    container_id: str = UNKNOWN


class Conntrack(Model):
    """The connection tracking entry of the tuple."""

    state: str = UNKNOWN
    reply: str = UNKNOWN
    """Reply tuple: what answers look like after NAT."""
    nat: Literal["dnat", "snat", "both", "none", "-"] = "-"
    """Whose address is rewritten: the destination's, the source's, both, or nobody's."""


class _Row(Model):
    ts: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")]
    """When it happened, UTC with milliseconds."""
    node: str
    comm: str
    """Name of the task (15 bytes at most; bytes that are not UTF-8 become U+FFFD)."""
    pid: MaybeCount
    """The kernel's task id (a thread's)."""
    tgid: MaybeCount
    """The process id, as ps shows it."""
    ppid: MaybeCount
    uid: MaybeCount
    """Effective, in the initial user namespace; gid likewise."""
    gid: MaybeCount
    tuple: str
    """`local -> remote`, IPv6 in brackets, IPv4-mapped addresses as IPv4."""
    family: Literal["ipv4", "ipv6", "-"]
    role: Role
    ns: Namespaces
    sec: Security
    cgroup_id: MaybeCount
    k8s: PodIdentity
    conntrack: Conntrack
    owner_source: OwnerSource
    """Why this process is said to own the socket."""
    peer_source: PeerSource
    """Where the remote address comes from."""
    sock: Annotated[str, Field(pattern=r"^(-|0x[0-9a-f]+)$")]
    """Socket cookie, as `ss -e` shows it; the same in every row of one socket."""


class TcpStateRow(_Row):
    """A TCP socket went from one state to another."""

    type: Literal[RowType.TCP_STATE]
    old_state: TcpState | Unknown
    new_state: TcpState | Unknown
    state_us: MaybeCount
    """Microseconds that the socket spent in old_state."""


class _UdpRow(_Row):
    bytes: Count
    """Payload bytes of the datagram, or of the part of it that the call took."""
    flags: tuple[str, ...]
    """MSG_ flags of the call without the prefix; CORKED: the datagram is not complete yet."""
    errno: Count
    error: str
    """Name of errno; `-` when the call succeeded."""


class UdpSendRow(_UdpRow):
    """A process sent a datagram."""

    type: Literal[RowType.UDP_SEND]


class UdpRecvRow(_UdpRow):
    """A process received a datagram."""

    type: Literal[RowType.UDP_RECV]


class ConnectRow(_Row):
    """How a connect() ended."""

    type: Literal[RowType.CONNECT]
    duration_us: MaybeCount
    """Microseconds from the call to its outcome, also for sockets that do not block."""
    errno: Count
    error: str
    """Name of errno; `-` when there was none."""
    result: ConnectResult | Unknown


class TcpRetransmitRow(_Row):
    """Segments were sent again."""

    type: Literal[RowType.TCP_RETRANSMIT]
    state: TcpState | Unknown
    segs: Count
    synack: bool
    """A SYN-ACK that a listener sent again."""


Event = Annotated[
    TcpStateRow | UdpSendRow | UdpRecvRow | ConnectRow | TcpRetransmitRow,
    Field(discriminator="type"),
]
EVENT: TypeAdapter[Event] = TypeAdapter(Event)
"""Reads one line of events.jsonl: `EVENT.validate_json(line)`."""


# Summary


class Accounting(Model):
    """Where the events of a hook went: seen is the sum of all others but bytes."""

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


class StockOwner(Process):
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


class Stock(Model):
    """TCP sockets that existed at one moment."""

    states: dict[str, Count]
    owners: tuple[StockOwner, ...]
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
    ended: datetime
    ended_by: str
    """`duration`, `signal` or `error`."""
    window_s: Annotated[float, Field(ge=0)]
    """Seconds that the programs were attached."""
    sample: Annotated[int, Field(ge=1)]
    """One event in N was kept; what comes from flows (talkers, flows) is exact all the same."""
    complete: bool
    """No row that was asked for is missing and no fact was lost."""
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
    stock_start: Stock
    stock_end: Stock
    retransmits: Retransmits


# Node


class Kernel(Model):
    """The running kernel."""

    release: str
    """`uname -r`."""
    version: str
    arch: str
    btf: bool
    """/sys/kernel/btf/vmlinux can be read."""


class Refusal(Model):
    """A program that was not taken, and why."""

    program: str
    reason: str


class HookChoice(Model):
    """What serves a hook."""

    hook: str
    chosen: str
    """Name of the program; `-` when the hook has none or was not asked for."""
    refused: tuple[Refusal, ...] = ()


class Interface(Model):
    """A link of the agent's network namespace."""

    name: str
    index: Count
    mtu: Count
    state: str
    """operstate: up, down, unknown, ..."""
    addresses: tuple[str, ...] = ()
    """With prefix length."""


class Delta(Model):
    """A counter or gauge before and after the capture."""

    before: float | int
    after: float | int
    delta: float | int


CounterFiles = dict[str, dict[str, Delta]]
"""File -> name -> values, e.g. `netstat` -> `TcpExt.ListenOverflows` -> 0, 3, 3."""


class NetnsCounters(Model):
    """Counters of one network namespace that had events."""

    netns: Count
    """Inode number."""
    counters: CounterFiles
    missing: str = UNKNOWN
    """Why there are no figures: vanished, denied, ...; `appeared`: they are since it was made."""


class ClockOffsets(Model):
    """CLOCK_REALTIME minus CLOCK_BOOTTIME; rows are placed by the one at the start."""

    offset_start_ns: int
    offset_end_ns: int
    step_ns: int
    """End minus start: how far the wall clock moved against the boot clock meanwhile."""


class RuntimeSocket(Model):
    """What a container runtime's socket gave."""

    socket: str
    state: str
    """`answered`, or why not: missing, denied, unreachable, timeout, unimplemented, failed, ..."""
    detail: str
    api: str
    runtime: str
    version: str
    sandboxes: Count
    containers: Count
    bad: Count
    """Items that could not be read or contradict themselves."""
    left_out: Count


class IdentityFacts(Model):
    """Where the names of pods and containers come from."""

    sockets: tuple[RuntimeSocket, ...] = ()
    log_links: Count = 0
    """Of /var/log/containers."""
    kubelet_pods: Count = 0
    live_mounts: Count = 0
    """Containers whose pod and name a live process showed."""
    looks: Count = 0
    """Times that the sources were asked."""
    containers: Count = 0
    """Cgroups of containers or pods that had events; named: those whose pod is known."""
    named: Count = 0
    contradictions: Count = 0
    incomplete: tuple[str, ...] = ()
    """Limits that kept names away."""
    notes: tuple[str, ...] = ()


class Lacking(Model):
    """Why something of connection tracking is missing."""

    netns: Count
    """0: for the whole host."""
    reason: str
    """absent, denied, vanished, too_late, too_many, unreadable."""
    detail: str


class TrackedNetns(Model):
    """Connection tracking of one network namespace."""

    netns: Count
    source: str
    """ctnetlink, or the file of /proc/net."""
    entries: Count
    """That were seen."""
    peak: Count
    """The highest number that a look found."""
    counters: dict[str, Delta]
    """count, max and the statistics that conntrack -S shows."""


class ConntrackFacts(Model):
    """What connection tracking was asked, and what is missing."""

    host_netns: Count
    """0: not known."""
    entries: Count
    left_out: Count
    """Entries that found no room, at least."""
    seconds: float
    """Time that all looks took."""
    netns: tuple[TrackedNetns, ...] = ()
    problems: tuple[Lacking, ...] = ()


class NodeInfo(Model):
    """What the node was, what the kernel offered, and what its counters did meanwhile."""

    schema_version: Literal[1] = SCHEMA_VERSION
    node: str
    hostname: str
    boot_id: str = UNKNOWN
    uptime_s: float | None = None
    """At the end of the capture."""
    agent_version: str
    kernel: Kernel
    cgroup: Literal["v1", "v2", "hybrid", "-"]
    hooks: tuple[HookChoice, ...]
    clock: ClockOffsets
    config: CaptureConfig
    interfaces: tuple[Interface, ...]
    interfaces_left_out: Count = 0
    sysctls: dict[str, str] = Field(default_factory=dict)
    host: CounterFiles
    """Of the whole host: softnet_stat, pressure/cpu, pressure/memory, pressure/io, ..."""
    host_missing: dict[str, str] = Field(default_factory=dict)
    """Files of the host without figures, and why."""
    netns: tuple[NetnsCounters, ...]
    """netstat, snmp, snmp6, sockstat, sockstat6 of each namespace that had events."""
    netns_left_out: Count = 0
    counters_left_out: Count = 0
    """Changed counters beyond the size of this file."""
    cgroups: dict[str, str]
    """cgroup id -> path, as far as it is known."""
    cgroups_left_out: Count = 0
    identity: IdentityFacts = IdentityFacts()
    conntrack: ConntrackFacts | None = None
    """None: it was not asked for."""


# Manifest


class ManifestFile(Model):
    """A file of the bundle."""

    name: str
    bytes: Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(Model):
    """What a bundle holds; the last member of bundle.tgz."""

    schema_version: Literal[1] = SCHEMA_VERSION
    agent_version: str
    node: str
    started: datetime
    ended: datetime
    rows: Count
    complete: bool
    files: tuple[ManifestFile, ...]
