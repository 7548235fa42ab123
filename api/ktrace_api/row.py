# SPDX-License-Identifier: Apache-2.0
"""A line of events.jsonl: one event of a socket, with the owner of the socket.

An unknown value is `"-"`, whatever the type of the field.
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
    """Inode numbers of namespaces, as shown by `ls -l /proc/PID/ns`."""

    net: MaybeCount
    """Network namespace of the socket. The others are those of the process."""
    mnt: MaybeCount
    pid: MaybeCount
    user: MaybeCount


class Security(Model):
    """Privileges of the process."""

    seccomp_mode: Annotated[int, Field(ge=0, le=2)] | Unknown
    """0 disabled, 1 strict, 2 filter."""
    caps_eff: Annotated[str, Field(pattern=r"^(-|0x[0-9a-f]{8}_[0-9a-f]{8})$")]
    """Effective capabilities: high and low 32 bits of CapEff."""


class PodIdentity(Model):
    """Kubernetes names of the container of the process."""

    pod_uid: str = UNKNOWN
    namespace: str = UNKNOWN
    pod: str = UNKNOWN
    container: str = UNKNOWN
    container_id: str = UNKNOWN


class Conntrack(Model):
    """The conntrack entry of the tuple."""

    state: str = UNKNOWN
    reply: str = UNKNOWN
    """Reply tuple, that is, the tuple of replies after NAT."""
    nat: Literal["dnat", "snat", "both", "none", "-"] = "-"
    """Which address NAT rewrites: the destination (dnat), the source (snat), both or none."""
    backend: str = UNKNOWN
    """Real peer of the client behind the address that it connected to, `a:p`."""


class _Row(Model):
    ts: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")]
    """Time of the event in UTC, with milliseconds."""
    node: str
    comm: str
    """Name of the task (maximum 15 bytes; invalid UTF-8 becomes U+FFFD)."""
    pid: MaybeCount
    """Task id in the kernel (the id of the thread)."""
    tgid: MaybeCount
    """Process id, as shown by ps."""
    ppid: MaybeCount
    uid: MaybeCount
    """Effective user id in the initial user namespace. `gid` likewise."""
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
    """How the owner of the socket was determined."""
    peer_source: PeerSource
    """Source of the remote address."""
    sock: Annotated[str, Field(pattern=r"^(-|0x[0-9a-f]+)$")]
    """Socket cookie, as shown by `ss -e`. All rows of a socket have the same."""
    flow: Annotated[str, Field(pattern=r"^(-|0x[0-9a-f]{1,16})$")]
    """Id of the conversation. Both endpoints have the same id if both are on this node."""


class TcpStateRow(_Row):
    """A TCP socket changed its state."""

    type: Literal[RowType.TCP_STATE]
    old_state: TcpState | Unknown
    new_state: TcpState | Unknown
    state_us: MaybeCount
    """Microseconds the socket was in old_state."""


class _UdpRow(_Row):
    bytes: Count
    """Payload bytes of the datagram, or of the part that the call transferred."""
    flags: tuple[str, ...]
    """MSG_ flags of the call, without the prefix. CORKED: the datagram is not complete yet."""
    errno: Count
    error: str
    """errno name; `-` if the call succeeded."""


class UdpSendRow(_UdpRow):
    """A process sent a datagram."""

    type: Literal[RowType.UDP_SEND]


class UdpRecvRow(_UdpRow):
    """A process received a datagram."""

    type: Literal[RowType.UDP_RECV]
    dns_rtt_us: MaybeCount
    """For an answer from port 53: microseconds since its query. No payload is read."""
    dns_rtt_source: Literal["heuristic", "ambiguous", "-"]
    """heuristic: paired by socket, server and order; ambiguous: may belong to another query."""


class ConnectRow(_Row):
    """A connect() ended, or was pending at the end of the capture."""

    type: Literal[RowType.CONNECT]
    duration_us: MaybeCount
    """Microseconds from the call to its result, also for non-blocking sockets."""
    errno: Count
    error: str
    """errno name; `-` if there was none."""
    result: ConnectResult | Unknown


class TcpRetransmitRow(_Row):
    """Segments were retransmitted."""

    type: Literal[RowType.TCP_RETRANSMIT]
    state: TcpState | Unknown
    segs: Count
    synack: bool
    """Whether a listener retransmitted a SYN-ACK."""


Event = Annotated[
    TcpStateRow | UdpSendRow | UdpRecvRow | ConnectRow | TcpRetransmitRow,
    Field(discriminator="type"),
]
EVENT: TypeAdapter[Event] = TypeAdapter(Event)
"""Parses one line of events.jsonl: `EVENT.validate_json(line)`."""
