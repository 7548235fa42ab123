# SPDX-License-Identifier: Apache-2.0
"""Finds the conntrack entry of a socket: its state, its reply tuple, its NAT.

Pure: reads only the tables that watch.py filled. If a tuple was used more than once, the entry
of the endpoint's own time is found. If several entries remain, the answer is unknown.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ktrace_agent.enrich.conntrack.connection import Connection, Endpoint, Entry, Tuple
from ktrace_agent.enrich.conntrack.ctnetlink import KEY_HEAD, pack_tuple
from ktrace_agent.enrich.conntrack.entries import Table
from ktrace_agent.enrich.conntrack.netlink import Lack
from ktrace_agent.host.inet import PROTOCOL_NUMBERS, WILDCARDS, is_ipv4, is_local_to_netns
from ktrace_api.names import UNKNOWN

_SLACK_NS = 20_000_000
"""A socket changes its state shortly before connection tracking handles its first packet."""
_Location = tuple[int, bytes]
"""Network namespace and key of an entry."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Counters of one network namespace at the start and at the end of the capture."""

    before: Mapping[str, int]
    """`count`, `max` and ctnetlink.STATISTICS; 0 if the namespace was created meanwhile."""
    after: Mapping[str, int]
    peak: int
    """Highest `count` of all polls."""


class Problem(NamedTuple):
    """Why entries or counters are missing, for node.json."""

    netns: int
    """0: the whole host."""
    lack: Lack
    detail: str


@dataclass
class Conntrack:
    """Everything that the dumps of a capture contained, by inode of the network namespace."""

    host: int
    """Namespace of the node itself, where the traffic of pods is usually translated."""
    tables: Mapping[int, Table] = field(default_factory=dict)
    figures: Mapping[int, Figures] = field(default_factory=dict)
    addresses: Mapping[int, frozenset[bytes]] = field(default_factory=dict)
    """Addresses of each namespace, 16 bytes each."""
    problems: tuple[Problem, ...] = ()
    sources: Mapping[int, str] = field(default_factory=dict)
    """Where the entries come from: `ctnetlink` or the file below /proc/net."""
    seconds: float = 0.0
    """Total duration of all polls."""
    _index: dict[bytes, _Location | list[_Location]] | None = None

    @property
    def left_out(self) -> int:
        """Minimum number of entries that were not kept."""
        return sum(table.left_out for table in self.tables.values())

    def __len__(self) -> int:
        return sum(len(table.keys) for table in self.tables.values())

    def entries(self) -> Iterator[Entry]:
        """Yields every entry of every namespace."""
        for netns, table in self.tables.items():
            for key in table.keys:
                yield table.entry(netns, key)

    def lookup(self, endpoint: Endpoint) -> Entry | None:
        """Returns the entry of a socket's own tuple, or None if none or more than one fits.

        The socket sends packets from `local` to `remote`. This is the original tuple of a client
        and the reply tuple of a server, in each namespace on the path up to the translation. Of
        several entries, one that translates comes first, because it includes what the others
        report. Then the socket's own namespace comes before the host's, and the host's before
        all others. For TCP only `since_ns` counts.
        """
        found = self.candidates(endpoint)
        if not found:
            return None
        since, until = endpoint.since_ns, endpoint.until_ns
        if endpoint.proto == "tcp" and since is not None:
            until = since
        if since is not None or until is not None:
            found = [one for one in found if _existed(one, since, until)]
        return found[0] if len(found) == 1 else self._choose(endpoint.netns, found)

    def trace(self, endpoint: Endpoint) -> tuple[Connection, Tuple | None] | None:
        """Returns the connection of lookup()'s entry, and the tuple that the peer receives.

        That is the tuple of the endpoint's packets after all translations; None = unknown.
        """
        entry = self.lookup(endpoint)
        if entry is None:
            return None
        original, local, remote = entry.original, endpoint.local, endpoint.remote
        originator = original.dst == remote and original.src.port == local.port
        if originator and local.address not in WILDCARDS:
            originator = original.src.address == local.address
        received = self._received(entry, endpoint) if originator else entry.reply
        translated = originator and received is not None and received.dst != remote
        connection = Connection(
            None if entry.state == UNKNOWN else entry.state,
            str(entry.reply),
            entry.nat,
            str(received.dst) if translated and received else None,
            originator,
        )
        return connection, received

    def _received(self, entry: Entry, endpoint: Endpoint) -> Tuple | None:
        """Follows the originator's packets through every namespace that translates them."""
        path, passed = entry.original, {entry.netns}
        while entry.nat != "none":
            path = Tuple(entry.reply.dst, entry.reply.src)
            further = [
                one
                for location in self._locations(Endpoint(entry.netns, entry.proto, *path))
                if location[0] not in passed
                and (one := self.tables[location[0]].entry(*location)).nat != "none"
                and one.original == path
                and _existed(one, endpoint.since_ns, endpoint.until_ns)
            ]
            if not further:
                break
            if not _agree(further):
                return None
            entry = further[0]
            passed |= {one.netns for one in further}
        return path

    def _choose(self, netns: int, found: list[Entry]) -> Entry | None:
        """Chooses one of several entries by the rules of lookup()."""
        places: dict[int, list[Entry]] = {}
        for one in found:
            places.setdefault(one.netns, []).append(one)
        if any(not _agree(entries) for entries in places.values()):
            return None
        one_each = [max(entries, key=_age_key) for entries in places.values()]
        for translates in (True, False):
            fits = [one for one in one_each if (one.nat != "none") is translates]
            for place in (netns, self.host):
                if near := [one for one in fits if one.netns == place]:
                    return near[0]
            if fits:
                return max(fits, key=_age_key) if _agree(fits) else None
        return None

    def candidates(self, endpoint: Endpoint) -> list[Entry]:
        """Returns every entry with the endpoint's tuple, in any namespace and at any time."""
        return [self.tables[location[0]].entry(*location) for location in self._locations(endpoint)]

    def _locations(self, endpoint: Endpoint) -> list[_Location]:
        if self._index is None:
            self._index = self._build_index()
        netns, remote = endpoint.netns, endpoint.remote.address
        local = endpoint.local.address
        found: list[_Location] = []
        for address in self.addresses.get(netns, ()) if local in WILDCARDS else (local,):
            if is_ipv4(address) != is_ipv4(remote):
                continue
            locations = self._index.get(_pack(endpoint, address))
            if locations is None:
                continue
            found += [
                location
                for location in (locations if isinstance(locations, list) else (locations,))
                if location[0] == netns or not (is_local_to_netns(address)
                                                or is_local_to_netns(remote))
            ]  # fmt: skip
        return found

    def _build_index(self) -> dict[bytes, _Location | list[_Location]]:
        """Maps each packed tuple to the entries that have it; most tuples have one."""
        index: dict[bytes, _Location | list[_Location]] = {}
        for netns, table in self.tables.items():
            for key in table.keys:
                location, size = (netns, key), (len(key) - KEY_HEAD) // 2
                for packed in {key[KEY_HEAD : KEY_HEAD + size], key[KEY_HEAD + size :]}:
                    taken = index.setdefault(packed, location)
                    if isinstance(taken, list):
                        taken.append(location)
                    elif taken is not location:
                        index[packed] = [taken, location]
        return index


def _agree(entries: list[Entry]) -> bool:
    """Whether the entries belong to one connection: a tuple has one reply tuple at a time."""
    return len({(one.original, one.reply) for one in entries}) == 1


def _existed(entry: Entry, since: int | None, until: int | None) -> bool:
    """Whether the entry can have existed between two times of the boot clock."""
    created, ended = entry.created_after_ns, entry.ended_before_ns
    return (until is None or created is None or until >= created - _SLACK_NS) and (
        since is None or ended is None or since <= ended
    )


def _age_key(entry: Entry) -> tuple[int, float]:
    """Sort key: the newest entry is the maximum."""
    ended = float("inf") if entry.ended_before_ns is None else entry.ended_before_ns
    return entry.first_dump_ns, ended


def _pack(endpoint: Endpoint, local: bytes) -> bytes:
    """Packs the endpoint's tuple like ctnetlink.pack_tuple, with `local` as its local address."""
    remote = endpoint.remote.address
    if is_ipv4(local):
        local, remote = local[12:], remote[12:]
    return pack_tuple(PROTOCOL_NUMBERS[endpoint.proto], local, endpoint.local.port,
                      remote, endpoint.remote.port)  # fmt: skip
