# SPDX-License-Identifier: Apache-2.0
"""The ends of a capture's conversations: sockets with a tuple, each looked at once.

What connection tracking says of an end is its track, with whom it talks its conversation
(conversations.py). Both are found before the rows are stored: who knows connections needs much
memory, and is let go of then.
"""

from collections.abc import Mapping
from itertools import count
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ktrace_agent.tables.conversations import WIRE, converse, digest
from ktrace_agent.tables.records import IPPROTO_TCP, IPPROTO_UDP, TYPE, WILDCARDS, Dictionary
from ktrace_api.names import UNKNOWN, RowType

Array = npt.NDArray[Any]
Place = tuple[bytes, int]
"""16 bytes of address, and a port."""

CHUNK = 32_768
"""Rows that are handled at once."""
_FIRST_PACKET_NS = 500_000_000
"""A row is told before its packet is sent: connection tracking has it a moment later."""
_UDP = (TYPE[RowType.UDP_SEND], TYPE[RowType.UDP_RECV])
_PROTOCOLS: dict[int, Literal["tcp", "udp"]] = {IPPROTO_TCP: "tcp", IPPROTO_UDP: "udp"}
_TUPLE = ("local", "remote", "local_port", "remote_port", "net")

END = np.dtype(
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
"""A socket (cookie, 0 = not known) with a tuple; addresses are numbers of a Dictionary."""


class Track(NamedTuple):
    """What connection tracking says of an end; None = not known.

    `reply` is `a:p -> b:p`, `nat` one of dnat, snat, both, none, `backend` whom an asking end
    really talks to where that is not whom it asked, `asked` whether the end sent first.
    """

    state: str | None
    reply: str | None
    nat: str | None
    backend: str | None
    asked: bool | None


NO_TRACK = Track(None, None, None, None, None)


class Connection(Protocol):
    """What is known of the connection of an end."""

    @property
    def state(self) -> str: ...
    @property
    def reply(self) -> object:
        """Its text is `a:p -> b:p`."""

    @property
    def nat(self) -> str: ...
    @property
    def asked(self) -> bool:
        """The end sent first."""

    @property
    def wire(self) -> tuple[Place, Place] | None:
        """Sender and target of what the end sends, as its peer sees them; None: not certain."""

    @property
    def backend(self) -> object | None:
        """Whom an asking end really talks to, where that is not whom it asked."""


class Lookup(Protocol):
    """Who knows connections."""

    @property
    def addresses(self) -> Mapping[int, frozenset[bytes]]:
        """Own addresses of each network namespace, 16 bytes each."""

    def trace(
        self,
        netns: int,
        proto: Literal["tcp", "udp"],
        local: Place,
        remote: Place,
        since_ns: int,
        until_ns: int,
    ) -> Connection | None:
        """What is known of the tuple of an end in that time (the kernel's boot clock)."""


class Flows(NamedTuple):
    """Tuples of processes: END without sockets, when they were used (the kernel's boot clock, ns).

    `begun` counts the connections that began with each.
    """

    ends: Array
    since: Array
    until: Array
    begun: Array


class Found(NamedTuple):
    """The end of each row (in the order of time) and of each flow, and what was found of ends.

    That is the number of a track and a conversation (0: none); `tracks` are all, by number.
    """

    of_row: npt.NDArray[np.uint32]
    of_flow: npt.NDArray[np.uint32]
    track: npt.NDArray[np.uint32]
    conversation: npt.NDArray[np.uint64]
    tracks: list[Track]


class _Ends(NamedTuple):
    """Distinct ends, when to look for each, and which tuples several connections used."""

    keys: Array
    since: Array
    until: Array
    whole: npt.NDArray[np.bool_]
    again: npt.NDArray[np.bool_]


def look(
    rows: Array, order: Array, flows: Flows, addresses: Dictionary, lookup: Lookup | None
) -> Found:
    """Ask `lookup` all that is asked of it, and conclude who talks to whom.

    `rows` are records.ROW, taken by `order` in the order of time.
    """
    sockets, first, of_row = _sockets(rows, order)
    ends, of_flow = _with_flows(sockets, rows["ts"][order[first]], flows)
    texts = np.frombuffer(b"".join(addresses.keys) or bytes(16), "V16")
    wires = np.zeros(len(ends.keys), WIRE)
    for name, source in (("near", "local"), ("far", "remote")):
        wires[name] = texts[ends.keys[source]]
        wires[f"{name}_port"] = ends.keys[f"{source}_port"]
    wires["net"], wires["proto"] = ends.keys["net"], ends.keys["proto"]
    wildcards = [addresses.number(address) for address in WILDCARDS]
    wild = np.isin(ends.keys["local"], wildcards)
    track, tracks = _ask(ends, wires, wild, lookup)
    conversation = converse(
        wires,
        ends.keys["sock"],
        whole=ends.whole & ~(wild & (ends.keys["proto"] == IPPROTO_TCP)),
        wild=wild,
        again=ends.again,
        own={} if lookup is None else lookup.addresses,
    )
    return Found(of_row, of_flow, track, conversation, tracks)


def _sockets(rows: Array, order: Array) -> tuple[Array, Array, npt.NDArray[np.uint32]]:
    """Distinct END of the rows, the first row of each by time, and the number of each row's."""
    for seed in count():
        mixed = np.empty(len(order), np.uint64)
        for start in range(0, len(order), CHUNK):
            words = _words(_keys(rows[order[start : start + CHUNK]]))
            mixed[start : start + CHUNK] = digest([*words.T], seed)
        _, first, inverse = np.unique(mixed, return_index=True, return_inverse=True)
        del mixed
        keys, of_row = _keys(rows[order[first]]), inverse.reshape(-1).astype(np.uint32)
        if _same(rows, order, keys, of_row):  # else two ends have one digest
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
    keys = np.zeros(len(rows), END)
    for name in (*_TUPLE, "sock"):
        keys[name] = rows[name]
    keys["proto"] = np.where(np.isin(rows["type"], _UDP), IPPROTO_UDP, IPPROTO_TCP)
    return keys


def _words(keys: Array) -> npt.NDArray[np.uint64]:
    return keys.view(np.uint64).reshape(-1, END.itemsize // 8)


def _with_flows(sockets: Array, begun: Array, flows: Flows) -> tuple[_Ends, npt.NDArray[np.uint32]]:
    """Ends of sockets and, behind them, of flows whose socket is not one of these; each flow's.

    A tuple of TCP that several sockets used is nobody's: entries of connection tracking that live
    and die between two looks were never seen, so what was seen may be another socket's.
    """
    both = np.concatenate((sockets, flows.ends))
    both["sock"] = 0
    _, same = np.unique(digest([*_words(both).T]), return_inverse=True)
    of_socket, of_flow = np.split(same.reshape(-1), [len(sockets)])
    tuples = int(same.max(initial=-1)) + 1
    known = np.bincount(of_socket[sockets["sock"] != 0], minlength=tuples)
    opened = np.bincount(of_flow, weights=flows.begun, minlength=tuples)
    met = np.bincount(of_socket, minlength=tuples)
    only = np.zeros(tuples, np.int64)
    only[of_socket] = np.arange(len(sockets))

    extra = np.flatnonzero(met[of_flow] != 1)
    end_of_flow = only[of_flow]
    end_of_flow[extra] = len(sockets) + np.arange(len(extra))
    keys = np.concatenate((sockets, flows.ends[extra]))
    place = np.concatenate((of_socket, of_flow[extra]))
    tcp = keys["proto"] == IPPROTO_TCP
    whole = (keys["local_port"] != 0) & (keys["remote_port"] != 0)
    whole[len(sockets) :] &= met[of_flow[extra]] == 0  # of several sockets it is nobody's
    ends = _Ends(
        keys,
        since=np.concatenate((begun, flows.since[extra])),
        until=np.concatenate((begun + _FIRST_PACKET_NS, flows.until[extra])),
        whole=whole,
        again=tcp & ((known[place] > 1) | (opened[place] > 1)),
    )
    return ends, end_of_flow.astype(np.uint32)


def _ask(
    ends: _Ends, wires: Array, wild: npt.NDArray[np.bool_], lookup: Lookup | None
) -> tuple[npt.NDArray[np.uint32], list[Track]]:
    """Number of each end's track; `wires` become what the peers see.

    Ends of which that is not certain are no more `whole`, those whose address shows no `wild`.
    """
    number, numbers = np.zeros(len(ends.keys), np.uint32), {NO_TRACK: 0}
    if lookup is None:
        return number, [*numbers]
    those = np.flatnonzero(~ends.again & (ends.keys["remote_port"] != 0))
    seen: list[tuple[int, Place, Place]] = []
    for start in range(0, len(those), CHUNK):
        part = those[start : start + CHUNK]
        asked = wires[part]
        columns = (asked[name] for name in (WIRE.names or ())[:-1])
        for end, near, far, net, near_port, far_port, proto, since, until in zip(
            part.tolist(),
            *(column.tolist() for column in columns),
            ends.since[part].tolist(),
            ends.until[part].tolist(),
            strict=True,
        ):
            protocol = _PROTOCOLS.get(proto)
            local, remote = (near, near_port), (far, far_port)
            if not protocol or not (
                found := lookup.trace(net, protocol, local, remote, since, until)
            ):
                continue
            track = _track(found)
            number[end] = numbers.setdefault(track, len(numbers))
            if found.wire is None:
                ends.whole[end] = False
            elif found.wire != (local, remote):
                seen.append((end, *found.wire))
    if seen:
        at, sources, targets = map(list, zip(*seen, strict=True))
        wild[at] = False
        for name, places in (("near", sources), ("far", targets)):
            wires[name][at] = np.frombuffer(b"".join(one[0] for one in places), "V16")
            wires[f"{name}_port"][at] = [one[1] for one in places]
    return number, [*numbers]


def _track(found: Connection) -> Track:
    return Track(
        state=None if found.state == UNKNOWN else found.state,
        reply=str(found.reply),
        nat=found.nat,
        backend=None if found.backend is None else str(found.backend),
        asked=found.asked,
    )
