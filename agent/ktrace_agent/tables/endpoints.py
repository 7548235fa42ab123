# SPDX-License-Identifier: Apache-2.0
"""The endpoints of a capture: each socket with a tuple is searched once in connection tracking.

Finds the connection of each endpoint and the number of its conversation (conversations.py). This
happens before the rows are stored: the conntrack index needs much memory, and it is released
before the rows need theirs.
"""

from collections.abc import Iterator
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ktrace_agent.enrich.conntrack.connection import (
    NO_CONNECTION,
    Connection,
    Endpoint,
    SocketAddress,
)
from ktrace_agent.enrich.conntrack.lookup import Conntrack
from ktrace_agent.host.inet import PROTOCOL_NAMES, TCP, UDP, WILDCARDS
from ktrace_agent.tables.conversations import PACKET, conversation_numbers, digest
from ktrace_agent.tables.records import CHUNK, UDP_TYPES, Dictionary

Array = npt.NDArray[Any]

_FIRST_PACKET_NS = 500_000_000
"""A row is recorded before its packet is sent; the conntrack entry is created shortly after it."""
_TUPLE = ("local", "remote", "local_port", "remote_port", "net")

ENDPOINT = np.dtype(
    [
        ("sock", "<u8"),
        ("local", "<u4"),
        ("remote", "<u4"),
        ("net", "<u4"),
        ("local_port", "<u2"),
        ("remote_port", "<u2"),
        ("proto", "u1"),
        ("pad", "V7"),
    ]
)
"""A socket (cookie, 0 = unknown) with its tuple; addresses are numbers of a Dictionary."""


class Flows(NamedTuple):
    """The tuples of flows as ENDPOINT without sockets, and when they were used.

    `since` and `until` are on the kernel's boot clock in ns; `connections` counts those that
    began with each tuple.
    """

    endpoints: Array
    since: Array
    until: Array
    connections: Array


class Resolved(NamedTuple):
    """The endpoint of each row (in time order) and flow, and the facts of each endpoint.

    `connection` is an index of `connections`, where 0 is NO_CONNECTION; `conversation` is 0 if
    it is unknown.
    """

    of_row: npt.NDArray[np.uint32]
    of_flow: npt.NDArray[np.uint32]
    connection: npt.NDArray[np.uint32]
    conversation: npt.NDArray[np.uint64]
    connections: list[Connection]


class _Endpoints(NamedTuple):
    """Distinct endpoints and the time in which each connection began.

    complete: the tuple has both ports and belongs to one socket. reused: several connections had
    the tuple.
    """

    keys: Array
    since: Array
    until: Array
    complete: npt.NDArray[np.bool_]
    reused: npt.NDArray[np.bool_]


def resolve(
    rows: Array, order: Array, flows: Flows, addresses: Dictionary, conntrack: Conntrack | None
) -> Resolved:
    """Finds the connection and the conversation of every endpoint.

    `rows` are records.ROW, and `order` sorts them by time.
    """
    sockets, first, of_row = _sockets(rows, order)
    endpoints, of_flow = _with_flows(sockets, rows["ts"][order[first]], flows)
    packets = _sent_packets(endpoints.keys, addresses)
    wildcards = [addresses.number(address) for address in WILDCARDS]
    wildcard = np.isin(endpoints.keys["local"], wildcards)
    connection, connections = _trace_all(endpoints, packets, wildcard, conntrack)
    conversation = conversation_numbers(
        packets,
        endpoints.keys["sock"],
        complete=endpoints.complete & ~(wildcard & (endpoints.keys["proto"] == TCP)),
        wildcard=wildcard,
        reused=endpoints.reused,
        addresses={} if conntrack is None else conntrack.addresses,
    )
    return Resolved(of_row, of_flow, connection, conversation, connections)


def _sent_packets(keys: Array, addresses: Dictionary) -> Array:
    """Returns the PACKET that each endpoint sends, before any translation."""
    octets = np.frombuffer(b"".join(addresses.keys) or bytes(16), "V16")
    packets = np.zeros(len(keys), PACKET)
    packets["src"], packets["dst"] = octets[keys["local"]], octets[keys["remote"]]
    packets["sport"], packets["dport"] = keys["local_port"], keys["remote_port"]
    packets["net"], packets["proto"] = keys["net"], keys["proto"]
    return packets


def _sockets(rows: Array, order: Array) -> tuple[Array, Array, npt.NDArray[np.uint32]]:
    """Returns the distinct ENDPOINTs of the rows, each one's first row, and each row's endpoint."""
    for seed in count():
        mixed = np.empty(len(order), np.uint64)
        for start in range(0, len(order), CHUNK):
            words = _words(_keys(rows[order[start : start + CHUNK]]))
            mixed[start : start + CHUNK] = digest([*words.T], seed)
        _, first, inverse = np.unique(mixed, return_index=True, return_inverse=True)
        del mixed
        keys, of_row = _keys(rows[order[first]]), inverse.reshape(-1).astype(np.uint32)
        if _same(rows, order, keys, of_row):  # else two endpoints have the same digest
            break
    return keys, first, of_row


def _same(rows: Array, order: Array, keys: Array, of_row: Array) -> bool:
    return all(
        np.array_equal(
            _words(_keys(rows[order[start : start + CHUNK]])),
            _words(keys[of_row[start : start + CHUNK]]),
        )
        for start in range(0, len(order), CHUNK)
    )


def _keys(rows: Array) -> Array:
    keys = np.zeros(len(rows), ENDPOINT)
    for name in (*_TUPLE, "sock"):
        keys[name] = rows[name]
    keys["proto"] = np.where(np.isin(rows["type"], UDP_TYPES), UDP, TCP)
    return keys


def _words(keys: Array) -> npt.NDArray[np.uint64]:
    return keys.view(np.uint64).reshape(-1, ENDPOINT.itemsize // 8)


def _with_flows(
    sockets: Array, began: Array, flows: Flows
) -> tuple[_Endpoints, npt.NDArray[np.uint32]]:
    """Appends to the endpoints of rows those of flows without one; returns each flow's endpoint.

    If several sockets used the same TCP tuple, it is marked as reused and no entry is assigned:
    a short-lived entry may have come and gone between two dumps.
    """
    both = np.concatenate((sockets, flows.endpoints))
    both["sock"] = 0
    _, same = np.unique(digest([*_words(both).T]), return_inverse=True)
    of_socket, of_flow = np.split(same.reshape(-1), [len(sockets)])
    tuples = int(same.max(initial=-1)) + 1
    cookies = np.bincount(of_socket[sockets["sock"] != 0], minlength=tuples)
    opened = np.bincount(of_flow, weights=flows.connections, minlength=tuples)
    users = np.bincount(of_socket, minlength=tuples)
    only = np.zeros(tuples, np.int64)
    only[of_socket] = np.arange(len(sockets))

    extra = np.flatnonzero(users[of_flow] != 1)
    endpoint_of_flow = only[of_flow]
    endpoint_of_flow[extra] = len(sockets) + np.arange(len(extra))
    keys = np.concatenate((sockets, flows.endpoints[extra]))
    place = np.concatenate((of_socket, of_flow[extra]))
    tcp = keys["proto"] == TCP
    complete = (keys["local_port"] != 0) & (keys["remote_port"] != 0)
    complete[len(sockets) :] &= users[of_flow[extra]] == 0
    endpoints = _Endpoints(
        keys,
        since=np.concatenate((began, flows.since[extra])),
        until=np.concatenate((began + _FIRST_PACKET_NS, flows.until[extra])),
        complete=complete,
        reused=tcp & ((cookies[place] > 1) | (opened[place] > 1)),
    )
    return endpoints, endpoint_of_flow.astype(np.uint32)


def _trace_all(
    endpoints: _Endpoints,
    packets: Array,
    wildcard: npt.NDArray[np.bool_],
    conntrack: Conntrack | None,
) -> tuple[npt.NDArray[np.uint32], list[Connection]]:
    """Returns the number of each endpoint's connection, and the connections by number.

    Changes in place: `packets` become those that the peers receive; an endpoint for which these
    are unknown is no longer `complete`; one whose address became known is no `wildcard`.
    """
    number, numbers = np.zeros(len(endpoints.keys), np.uint32), {NO_CONNECTION: 0}
    if conntrack is None:
        return number, [*numbers]
    traceable = ~endpoints.reused & (endpoints.keys["remote_port"] != 0)
    those = np.flatnonzero(traceable & np.isin(endpoints.keys["proto"], [*PROTOCOL_NAMES]))
    translated: list[tuple[int, SocketAddress, SocketAddress]] = []
    for start in range(0, len(those), CHUNK):
        part = those[start : start + CHUNK]
        for at, endpoint in zip(part.tolist(), _to_trace(endpoints, packets, part), strict=True):
            found = conntrack.trace(endpoint)
            if found is None:
                continue
            connection, received = found
            number[at] = numbers.setdefault(connection, len(numbers))
            if received is None:
                endpoints.complete[at] = False
            elif received != (endpoint.local, endpoint.remote):
                translated.append((at, *received))
    if translated:
        moved, sources, targets = map(list, zip(*translated, strict=True))
        wildcard[moved] = False
        for address, port, places in (("src", "sport", sources), ("dst", "dport", targets)):
            packets[address][moved] = np.frombuffer(b"".join(one.address for one in places), "V16")
            packets[port][moved] = [one.port for one in places]
    return number, [*numbers]


def _to_trace(endpoints: _Endpoints, packets: Array, part: Array) -> Iterator[Endpoint]:
    chosen = packets[part]
    net, proto, src, sport, dst, dport = (
        chosen[name].tolist() for name in ("net", "proto", "src", "sport", "dst", "dport")
    )
    return map(
        Endpoint,
        net,
        map(PROTOCOL_NAMES.__getitem__, proto),
        map(SocketAddress, src, sport),
        map(SocketAddress, dst, dport),
        endpoints.since[part].tolist(),
        endpoints.until[part].tolist(),
    )
