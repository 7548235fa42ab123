# SPDX-License-Identifier: Apache-2.0
"""What connection tracking says of the tuples of a capture, each looked up once."""

from collections import Counter
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ktrace_agent.records import IPPROTO_TCP, IPPROTO_UDP, Dictionary
from ktrace_api.names import UNKNOWN

Array = npt.NDArray[Any]

NO_TRACK = 0
"""Number of the track of a tuple that nothing is known of."""

_ENDS = ("local", "remote", "local_port", "remote_port")
_PROTOCOLS: dict[int, Literal["tcp", "udp"]] = {IPPROTO_TCP: "tcp", IPPROTO_UDP: "udp"}

_KEY = np.dtype(
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
"""A tuple of one socket: another socket may use the tuple again."""


class Track(NamedTuple):
    """State of a connection, what its answers look like after NAT, and who rewrote what.

    `reply` is `a:p -> b:p`, `nat` one of dnat, snat, both, none; None = not known.
    """

    state: str | None
    reply: str | None
    nat: str | None


_NONE = Track(None, None, None)


class Connection(Protocol):
    """An entry of connection tracking."""

    @property
    def state(self) -> str: ...
    @property
    def reply(self) -> object:
        """Its text is `a:p -> b:p`."""

    @property
    def nat(self) -> str: ...


class Lookup(Protocol):
    """Who knows connections."""

    def __call__(
        self,
        netns: int,
        proto: Literal["tcp", "udp"],
        local: tuple[bytes, int],
        remote: tuple[bytes, int],
        since_ns: int,
        until_ns: int,
    ) -> Connection | None:
        """What is known of a tuple (16 bytes of address and a port each) in that time.

        Times are CLOCK_BOOTTIME.
        """


def _tuples(ends: Any, net: Array, proto: Array) -> Array:
    """A _KEY of each row, without its socket."""
    keys = np.zeros(len(net), _KEY)
    for name in _ENDS:
        keys[name] = ends[name]
    keys["net"], keys["proto"] = net, proto
    return keys


class Tracks:
    """Distinct tracks, numbered in the order of first sight."""

    def __init__(self, lookup: Lookup | None, addresses: Dictionary) -> None:
        """`addresses` are what the address numbers of encode() mean."""
        self._lookup, self._addresses = lookup, addresses
        self._keys = Dictionary(_KEY.itemsize)
        self._of_key = np.empty(0, np.uint32)
        self._numbers: dict[Track, int] = {_NONE: NO_TRACK}
        self._shared: frozenset[bytes] = frozenset()

    @property
    def found(self) -> list[Track]:
        """All tracks; the index is the number."""
        return list(self._numbers)

    def share(self, ends: Any, sock: Array, net: Array) -> None:
        """Tell of every TCP socket that began: its `ends`, cookie and namespace.

        A tuple that several began with is nobody's: entries that live and die between two looks
        were never seen, so what was seen may be another socket's. No guess is made for it.
        """
        if self._lookup is None or not len(net):
            return
        keys = _tuples(ends, net, np.full(len(net), IPPROTO_TCP, np.uint8))
        keys["sock"] = sock
        sockets = np.unique(keys.view(np.uint64).reshape(len(keys), -1), axis=0).view(_KEY)
        sockets["sock"] = 0
        counts = Counter(key.tobytes() for key in sockets)
        self._shared = frozenset(key for key, count in counts.items() if count > 1)

    def encode(
        self, ends: Any, sock: Array, net: Array, proto: Array, since: Array, until: Array
    ) -> npt.NDArray[np.uint32]:
        """Track number of each row: that of the first row of its socket with its tuple.

        `ends` holds columns local, remote (address numbers), local_port and remote_port;
        `since` and `until` say when to look.
        """
        if self._lookup is None:
            return np.zeros(len(net), np.uint32)
        keys = _tuples(ends, net, proto)
        keys["sock"] = sock
        numbers = self._keys.encode(keys)
        first = np.unique(numbers, return_index=True)[1]
        fresh = first[numbers[first] >= len(self._of_key)]
        new = {name: ends[name][fresh] for name in _ENDS}
        found = self.of_each(new, net[fresh], proto[fresh], since[fresh], until[fresh])
        self._of_key = np.concatenate((self._of_key, found))
        return self._of_key[numbers]

    def of_each(
        self, ends: Any, net: Array, proto: Array, since: Array, until: Array
    ) -> npt.NDArray[np.uint32]:
        """The same for tuples that are distinct."""
        if self._lookup is None:
            return np.zeros(len(net), np.uint32)
        addresses = self._addresses.keys
        columns = (*(ends[name] for name in _ENDS), net, proto, since, until)
        keys = _tuples(ends, net, proto).tobytes() if self._shared else b""
        numbers: list[int] = []
        for local, remote, local_port, remote_port, netns, protocol, begun, ended in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            place = len(numbers) * _KEY.itemsize
            if keys and keys[place : place + _KEY.itemsize] in self._shared:
                numbers.append(NO_TRACK)
                continue
            here, there = (addresses[local], local_port), (addresses[remote], remote_port)
            track = self._ask(netns, protocol, here, there, begun, ended)
            numbers.append(self._numbers.setdefault(track, len(self._numbers)))
        return np.array(numbers, np.uint32)

    def forget(self) -> None:
        """Free what only encode() needs."""
        self._keys, self._of_key = Dictionary(_KEY.itemsize), np.empty(0, np.uint32)

    def _ask(
        self,
        netns: int,
        proto: int,
        local: tuple[bytes, int],
        remote: tuple[bytes, int],
        since_ns: int,
        until_ns: int,
    ) -> Track:
        name = _PROTOCOLS.get(proto)
        if self._lookup is None or name is None or not remote[1]:
            return _NONE
        found = self._lookup(netns, name, local, remote, since_ns, until_ns)
        if found is None:
            return _NONE
        return Track(None if found.state == UNKNOWN else found.state, str(found.reply), found.nat)
