# SPDX-License-Identifier: Apache-2.0
"""A line of events.jsonl: what happened to a socket, and whose it is.

A fact that is not known is `"-"`, whatever the type of the field otherwise.
"""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

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
    backend: str = UNKNOWN
    """Whom the side that asked really talks to, behind the address that it asked, `a:p`."""


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
    flow: Annotated[str, Field(pattern=r"^(-|0x[0-9a-f]{1,16})$")]
    """The conversation: both of its ends have the same where both are on this node."""


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
    dns_rtt_us: MaybeCount
    """Of an answer from port 53: microseconds since its query left; no payload is looked at."""
    dns_rtt_source: Literal["heuristic", "ambiguous", "-"]
    """heuristic: by socket, server and order; ambiguous: another query may be meant."""


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
