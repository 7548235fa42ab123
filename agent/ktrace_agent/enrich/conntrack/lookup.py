# SPDX-License-Identifier: Apache-2.0
"""What connection tracking knew about a flow: its state, its reply tuple, its NAT.

Pure questions to the tables that conntrack_watch.py filled. A tuple that was used twice finds the
entry of its own time; what stays ambiguous is not known.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ktrace_agent.enrich.conntrack.ctnetlink import KEY_HEAD, TCP, UDP, pack_tuple
from ktrace_agent.enrich.conntrack.entries import Entry, Proto, Table, Traced, Tuple
from ktrace_agent.enrich.conntrack.netlink import MAPPED, Lack

_WILDCARDS = (MAPPED + b"\0" * 4, b"\0" * 16)
_LOOPBACK = b"\0" * 15 + b"\1"
_PROTOCOL = {"tcp": TCP, "udp": UDP}
_SLACK_NS = 20_000_000
"""A socket changes its state a little before connection tracking sees its first packet."""
_Place = tuple[int, bytes]
"""Namespace and key of an entry."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Counters of one namespace when the capture began and when it ended."""

    before: Mapping[str, int]
    """`count`, `max` and what nfct.STATISTICS names; all 0 where it was made meanwhile."""
    after: Mapping[str, int]
    peak: int
    """The highest `count` that a look found."""


class Problem(NamedTuple):
    """Why something is missing, for node.json."""

    netns: int
    """0: for the whole host."""
    lack: Lack
    detail: str


@dataclass
class Conntrack:
    """All that was seen, by inode of the network namespace."""

    host: int
    """Namespace of the node itself: there the traffic of pods is translated."""
    tables: Mapping[int, Table] = field(default_factory=dict)
    figures: Mapping[int, Figures] = field(default_factory=dict)
    addresses: Mapping[int, frozenset[bytes]] = field(default_factory=dict)
    """Own addresses of each namespace, 16 bytes each."""
    problems: tuple[Problem, ...] = ()
    sources: Mapping[int, str] = field(default_factory=dict)
    """`ctnetlink` or the file under /proc/net that the entries come from."""
    seconds: float = 0.0
    """Time that all looks took together."""
    _index: dict[bytes, _Place | list[_Place]] | None = None

    @property
    def left_out(self) -> int:
        """Entries that found no room, at least."""
        return sum(table.left_out for table in self.tables.values())

    def __len__(self) -> int:
        return sum(len(table.keys) for table in self.tables.values())

    def entries(self) -> Iterator[Entry]:
        """Every entry of every namespace."""
        for netns, table in self.tables.items():
            for key in table.keys:
                yield table.entry(netns, key)

    def lookup(
        self,
        netns: int,
        proto: Proto,
        local: tuple[bytes, int],
        remote: tuple[bytes, int],
        since_ns: int | None = None,
        until_ns: int | None = None,
    ) -> Entry | None:
        """The entry of a socket's own tuple, None where there is none or more than one fits.

        What a socket sends carries local -> remote: of a client that is the original tuple, of a
        server the reply tuple, in any namespace on the way that has not translated it yet. An
        entry that translates is preferred to one that does not (it says all that the other says),
        then the socket's own namespace to the host's, then the host's to others. `since_ns` and
        `until_ns` (boot clock) bound when the socket had the tuple; of TCP its begin counts.
        A wildcard as local address stands for each of the namespace's own addresses.
        """
        found = self.candidates(netns, proto, local, remote)
        if not found:
            return None
        if proto == "tcp" and since_ns is not None:
            until_ns = since_ns
        if since_ns is not None or until_ns is not None:
            found = [one for one in found if _alive(one, since_ns, until_ns)]
        return found[0] if len(found) == 1 else self._choose(netns, found)

    def trace(
        self,
        netns: int,
        proto: Proto,
        local: tuple[bytes, int],
        remote: tuple[bytes, int],
        since_ns: int | None = None,
        until_ns: int | None = None,
    ) -> Traced | None:
        """What lookup() finds, as the socket with that tuple meets it."""
        entry = self.lookup(netns, proto, local, remote, since_ns, until_ns)
        if entry is None:
            return None
        original = entry.original
        asked = original.dst == remote and original.src.port == local[1]
        if asked and local[0] not in _WILDCARDS:
            asked = original.src.address == local[0]
        wire = self._onward(entry, since_ns, until_ns) if asked else entry.reply
        backend = wire.dst if asked and wire and wire.dst != remote else None
        return Traced(entry.state, entry.nat, entry.reply, asked, wire, backend)

    def _onward(self, entry: Entry, since_ns: int | None, until_ns: int | None) -> Tuple | None:
        """What arrives of the asking end's packets, also where others translate them again."""
        path, passed = entry.original, {entry.netns}
        while entry.nat != "none":
            path = Tuple(entry.reply.dst, entry.reply.src)
            further = [
                one
                for place in self._places(entry.netns, entry.proto, *path)
                if place[0] not in passed
                and (one := self.tables[place[0]].entry(*place)).nat != "none"
                and one.original == path
                and _alive(one, since_ns, until_ns)
            ]
            if not further:
                break
            if not _agree(further):
                return None
            entry = further[0]
            passed |= {one.netns for one in further}
        return path

    def _choose(self, netns: int, found: list[Entry]) -> Entry | None:
        """The one of several that says most, by the rules of lookup()."""
        places: dict[int, list[Entry]] = {}
        for one in found:
            places.setdefault(one.netns, []).append(one)
        if any(not _agree(entries) for entries in places.values()):
            return None
        one_each = [max(entries, key=_freshness) for entries in places.values()]
        for translates in (True, False):
            fits = [one for one in one_each if (one.nat != "none") is translates]
            for place in (netns, self.host):
                if near := [one for one in fits if one.netns == place]:
                    return near[0]
            if fits:
                return max(fits, key=_freshness) if _agree(fits) else None
        return None

    def candidates(
        self, netns: int, proto: Proto, local: tuple[bytes, int], remote: tuple[bytes, int]
    ) -> list[Entry]:
        """Every entry with local -> remote as one of its tuples, wherever and whenever seen."""
        return [
            self.tables[place[0]].entry(*place)
            for place in self._places(netns, proto, local, remote)
        ]

    def _places(
        self, netns: int, proto: Proto, local: tuple[bytes, int], remote: tuple[bytes, int]
    ) -> list[_Place]:
        if self._index is None:
            self._index = self._build()
        address, port = local
        peer, peer_port = remote
        own = self.addresses.get(netns, ()) if address in _WILDCARDS else (address,)
        found: list[_Place] = []
        for one in own:
            if one.startswith(MAPPED) != peer.startswith(MAPPED):
                continue
            places = self._index.get(_pack(proto, one, port, peer, peer_port))
            if places is None:
                continue
            found += [
                place
                for place in (places if isinstance(places, list) else (places,))
                if place[0] == netns or not (_confined(one) or _confined(peer))
            ]
        return found

    def _build(self) -> dict[bytes, _Place | list[_Place]]:
        index: dict[bytes, _Place | list[_Place]] = {}
        for netns, table in self.tables.items():
            for key in table.keys:
                place, size = (netns, key), (len(key) - KEY_HEAD) // 2
                for packed in {key[KEY_HEAD : KEY_HEAD + size], key[KEY_HEAD + size :]}:
                    taken = index.setdefault(packed, place)
                    if isinstance(taken, list):
                        taken.append(place)
                    elif taken is not place:
                        index[packed] = [taken, place]
        return index


def _confined(address: bytes) -> bool:
    """Loopback and IPv6 link-local: the same addresses mean others in each namespace."""
    if address.startswith(MAPPED):
        return address[12] == 127
    return address == _LOOPBACK or (address[0] == 0xFE and address[1] & 0xC0 == 0x80)


def _agree(entries: list[Entry]) -> bool:
    """They are of one connection: the same tuple cannot be answered in two ways at once."""
    return len({(one.original, one.reply) for one in entries}) == 1


def _alive(entry: Entry, since: int | None, until: int | None) -> bool:
    born, gone = entry.born_after_ns, entry.gone_before_ns
    return (until is None or born is None or until >= born - _SLACK_NS) and (
        since is None or gone is None or since <= gone
    )


def _freshness(entry: Entry) -> tuple[int, float]:
    gone = float("inf") if entry.gone_before_ns is None else entry.gone_before_ns
    return entry.first_seen_ns, gone


def _pack(proto: Proto, local: bytes, lport: int, remote: bytes, rport: int) -> bytes:
    """Of two addresses of 16 bytes of one family."""
    if local.startswith(MAPPED):
        local, remote = local[12:], remote[12:]
    return pack_tuple(_PROTOCOL[proto], local, lport, remote, rport)
