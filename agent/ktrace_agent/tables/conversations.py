# SPDX-License-Identifier: Apache-2.0
"""Numbers conversations: both endpoints of one get the same number, in any two namespaces.

A conversation is named by its tuple at the endpoint that did not send first, after all
translations. For that endpoint this is its own tuple; for the other one, the tuple with the
translations of connection tracking applied. Each is the reverse of the other. If more than one
socket fits on either side, the conversation has no number.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ktrace_agent.host.inet import are_ipv4, are_local_to_netns

Array = npt.NDArray[Any]
Numbers = npt.NDArray[np.uint64]
Truth = npt.NDArray[np.bool_]

NO_CONVERSATION = 0
"""Number of an endpoint whose conversation is unknown."""

PACKET = np.dtype(
    [
        ("src", "V16"),
        ("dst", "V16"),
        ("net", "<u4"),
        ("sport", "<u2"),
        ("dport", "<u2"),
        ("proto", "u1"),
        ("pad", "V7"),
    ]
)
"""Tuple of an endpoint's packets as its peer receives them; `net` is the sender's namespace."""

_MAX_EXPANDED = 1_000_000
"""Maximum number of sockets bound to a wildcard, times the addresses of their namespace."""
_LARGEST = np.uint64(2**63 - 1)


class Keys(NamedTuple):
    """The conversation of each endpoint, and which of its two sides the endpoint is."""

    key: Numbers
    side: Truth


def conversation_numbers(
    packets: Array,
    sock: Numbers,
    *,
    complete: Truth,
    wildcard: Truth,
    reused: Truth,
    addresses: Mapping[int, frozenset[bytes]],
) -> Numbers:
    """Returns the number of each endpoint's conversation (63 bits), or NO_CONVERSATION.

    packets: PACKET of each endpoint. sock: its cookie, 0 = unknown. complete: the tuple is known
    up to a wildcard as local address, which `wildcard` marks. reused: more than one connection
    had the tuple. addresses: those of each namespace; a socket that is bound to a wildcard sends
    from one of them, and its peer's tuple has that one.
    """
    found = _keys_of(packets, wildcard)
    found.key[~complete] = NO_CONVERSATION
    unbound = np.flatnonzero(wildcard & complete)
    if len(unbound):
        _resolve_wildcards(found, packets, unbound, addresses)
    ambiguous = (
        _ambiguous(found, packets["net"].astype(np.uint64)),
        _ambiguous(found, sock),
        found.key[reused],
    )
    found.key[np.isin(found.key, np.concatenate(ambiguous))] = NO_CONVERSATION
    return found.key


def _keys_of(packets: Array, wildcard: Truth) -> Keys:
    """Computes the same key for a tuple and its reverse, and which of the two it is.

    If an address is valid only inside a network namespace, the key includes the namespace.
    """
    src, dst = _words(packets["src"]), _words(packets["dst"])
    sport, dport = (packets[name].astype(np.uint64) for name in ("sport", "dport"))
    side = sport > dport
    for part in (1, 0):  # the last comparison that differs decides
        differ = src[:, part] != dst[:, part]
        side = np.where(differ, src[:, part] > dst[:, part], side)
    local = (
        wildcard
        | are_local_to_netns(_octets(packets["src"]))
        | are_local_to_netns(_octets(packets["dst"]))
    )
    place = np.where(local, packets["net"], 0).astype(np.uint64) << np.uint64(8)
    flip = side[:, None]
    first, last = np.where(flip, dst, src), np.where(flip, src, dst)
    ports = np.where(side, dport << np.uint64(16) | sport, sport << np.uint64(16) | dport)
    key = digest((*first.T, *last.T, ports, place | packets["proto"]))
    return Keys(np.maximum(key & _LARGEST, np.uint64(1)), side)


def digest(columns: Sequence[Array], seed: int = 0) -> Numbers:
    """Hashes each row of several columns of 64 bits to 64 bits; the same on every machine.

    Chains the finalizer of splitmix64 (Steele, Lea, Flood 2014).
    """
    value = np.full(len(columns[0]), seed, np.uint64)
    for column in columns:
        value = (value ^ column) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            value = (value ^ (value >> np.uint64(shift))) * np.uint64(factor)
        value ^= value >> np.uint64(31)
    return value


def _resolve_wildcards(
    found: Keys, packets: Array, unbound: Array, addresses: Mapping[int, frozenset[bytes]]
) -> None:
    """Gives each endpoint that is bound to a wildcard the key of its peer.

    Without a peer in this capture it keeps its own key; if several peers fit, it has none.
    """
    endpoints, expanded = _expand(packets, unbound, addresses)
    known = np.concatenate([one.key << np.uint64(1) | one.side for one in (found, expanded)])
    peers = np.flatnonzero(np.isin(expanded.key << np.uint64(1) | ~expanded.side, known))
    choices: dict[int, list[int]] = {}
    for choice, endpoint in zip(peers.tolist(), endpoints[peers].tolist(), strict=True):
        choices.setdefault(endpoint, []).append(choice)
    for endpoint, fits in choices.items():
        found.key[endpoint] = expanded.key[fits[0]] if len(fits) == 1 else NO_CONVERSATION
        found.side[endpoint] = expanded.side[fits[0]]


def _expand(
    packets: Array, unbound: Array, addresses: Mapping[int, frozenset[bytes]]
) -> tuple[Array, Keys]:
    """Returns endpoints, and their keys for each address of their namespace as the source."""
    net, left = packets["net"][unbound], _MAX_EXPANDED
    ipv4 = are_ipv4(_octets(packets["dst"][unbound]))
    endpoints, parts = [np.empty(0, np.int64)], [np.empty(0, PACKET)]
    for inode in np.unique(net).tolist():
        for address in addresses.get(inode, ()):
            source = np.frombuffer(address, "V16")
            those = unbound[(net == inode) & (ipv4 == are_ipv4(_octets(source))[0])]
            if len(those) > left:
                break
            left -= len(those)
            part = packets[those]
            part["src"] = source[0]
            endpoints.append(those)
            parts.append(part)
    every = np.concatenate(parts)
    return np.concatenate(endpoints), _keys_of(every, np.zeros(len(every), np.bool_))


def _ambiguous(found: Keys, place: Numbers) -> Numbers:
    """Returns the keys of which one side is in several places; place 0 = unknown, ignored."""
    those = np.flatnonzero((found.key != NO_CONVERSATION) & (place != 0))
    those = those[np.lexsort((place[those], found.side[those], found.key[those]))]
    key, side, place = found.key[those], found.side[those], place[those]
    same = (key[1:] == key[:-1]) & (side[1:] == side[:-1])
    keys: Numbers = key[1:][same & (place[1:] != place[:-1])]
    return keys


def _words(addresses: Array) -> Numbers:
    return np.ascontiguousarray(addresses).view("<u8").reshape(-1, 2)


def _octets(addresses: Array) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(addresses).view(np.uint8).reshape(-1, 16)
