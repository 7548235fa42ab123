# SPDX-License-Identifier: Apache-2.0
"""A connection as connection tracking reports it, and as one of its endpoints uses it."""

from functools import lru_cache
from typing import Literal, NamedTuple

from ktrace_agent.enrich.conntrack.ctnetlink import SEEN_REPLY
from ktrace_agent.host import inet
from ktrace_agent.host.inet import Protocol

Nat = Literal["dnat", "snat", "both", "none"]

_text = lru_cache(maxsize=4096)(inet.address_text)


class SocketAddress(NamedTuple):
    """An address of 16 bytes (IPv4 as IPv4-mapped) and a port."""

    address: bytes
    port: int

    def __str__(self) -> str:
        """`192.0.2.1:80`, `[2001:db8::1]:80`."""
        return f"{_text(self.address)}:{self.port}"


class Tuple(NamedTuple):
    """Source and destination of the packets of one direction."""

    src: SocketAddress
    dst: SocketAddress

    def __str__(self) -> str:
        # Not by SocketAddress.__str__: this is called for each endpoint of a capture.
        (source, sport), (target, dport) = self
        return f"{_text(source)}:{sport} -> {_text(target)}:{dport}"


class Endpoint(NamedTuple):
    """A socket's own tuple in its network namespace, and when the socket had it.

    `since_ns` and `until_ns` are on the kernel's boot clock; None = not limited. A wildcard as
    local address stands for each address of the namespace.
    """

    netns: int
    proto: Protocol
    local: SocketAddress
    remote: SocketAddress
    since_ns: int | None = None
    until_ns: int | None = None


class Entry(NamedTuple):
    """A conntrack entry as the last dump that contained it reported it."""

    netns: int
    zone: int
    proto: Protocol
    state: str
    """TCP: the state by nf_conntrack's name. UDP: UNREPLIED, REPLIED or ASSURED. `-`: unknown."""
    status: int
    """Bits of enum ip_conntrack_status: ctnetlink.SEEN_REPLY, ASSURED, SRC_NAT, DST_NAT."""
    original: Tuple
    reply: Tuple
    created_after_ns: int | None
    """Boot clock at the last dump without the entry; None: it was in the first dump."""
    first_dump_ns: int
    """Boot clock at the end of the first dump with the entry."""
    ended_before_ns: int | None
    """Boot clock by which it was finished or removed; None: it was in the last dump."""
    nat: Nat

    @property
    def replied(self) -> bool:
        """Whether a packet came back."""
        return bool(self.status & SEEN_REPLY)


class Connection(NamedTuple):
    """A conntrack entry as one of its endpoints uses it; None = unknown."""

    state: str | None
    reply: str | None
    """The reply tuple as `a:p -> b:p`."""
    nat: Nat | None
    backend: str | None
    """`a:p` that an originator is connected to, if it is not the address that it connects to."""
    is_originator: bool | None
    """The endpoint sent the first packet."""


NO_CONNECTION = Connection(None, None, None, None, None)


def nat_of(original: Tuple, reply: Tuple) -> Nat:
    """Returns which address was translated: the replies' source (dnat) or destination (snat)."""
    dnat, snat = reply.src != original.dst, reply.dst != original.src
    return "both" if dnat and snat else "dnat" if dnat else "snat" if snat else "none"
