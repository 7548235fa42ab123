# SPDX-License-Identifier: Apache-2.0
"""One connection, plain and translated, and the conntrack entries of it."""

import socket

from ktrace_agent.enrich.conntrack.connection import Entry, SocketAddress, Tuple
from ktrace_agent.enrich.conntrack.ctnetlink import TCP_STATES, pack_key, pack_tuple
from ktrace_agent.enrich.conntrack.entries import Table
from ktrace_agent.host.inet import MAPPED, TCP

HOST, POD, OTHER, FAR = 1, 2, 3, 4
S = 1_000_000_000
STATE = {name: number for number, name in enumerate(TCP_STATES)}


def address(text: str) -> SocketAddress:
    host, _, port = text.rpartition(":")
    if host.startswith("["):
        return SocketAddress(socket.inet_pton(socket.AF_INET6, host[1:-1]), int(port))
    return SocketAddress(MAPPED + socket.inet_aton(host), int(port))


CLIENT, VIP, BACKEND, NODE = (
    address(text) for text in ("10.1.0.5:4000", "10.96.0.1:80", "10.1.0.9:8080", "192.0.2.1:6000")
)
ASKED, PLAIN = Tuple(CLIENT, VIP), Tuple(VIP, CLIENT)
DNAT, SNAT, BOTH = Tuple(BACKEND, CLIENT), Tuple(VIP, NODE), Tuple(BACKEND, NODE)


def packed(proto: int, flow: Tuple) -> bytes:
    addresses = [one.address.removeprefix(MAPPED) for one in flow]
    return pack_tuple(proto, addresses[0], flow.src.port, addresses[1], flow.dst.port)


def key(
    original: Tuple, reply: Tuple, *, proto: int = TCP, zone: int = 0, number: int = 0
) -> bytes:
    return pack_key(zone, number, packed(proto, original), packed(proto, reply))


def only(one: bytes, state: int, status: int) -> Entry:
    """The entry that a dump with this one makes."""
    made = Table()
    made.capacity = 1
    made.add(one, state, status)
    made.finish_dump(10, 12, complete=True)
    return made.entry(HOST, one)
