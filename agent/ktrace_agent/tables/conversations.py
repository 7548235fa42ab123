# SPDX-License-Identifier: Apache-2.0
"""Which ends talk to each other: one number for both, in any two network namespaces.

An end is a socket with a tuple. What names a conversation is its tuple as the answering end has
it, after all translation: the answering end's own one, and that of the asking end with the
translations of connection tracking applied. The two are each other's reverse. Where more than
one socket could be meant on either side, nobody is joined and there is no number.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Numbers = npt.NDArray[np.uint64]
Truth = npt.NDArray[np.bool_]

NOBODY = 0
"""Number of the conversation of an end that nothing certain is known of."""

WIRE = np.dtype(
    [
        ("near", "V16"),
        ("far", "V16"),
        ("net", "<u4"),
        ("near_port", "<u2"),
        ("far_port", "<u2"),
        ("proto", "u1"),
        ("pad", "V7"),
    ]
)
"""What an end sends, as its peer sees it; `net` is where it sends from."""

_MAX_GUESSES = 1_000_000
"""Sockets bound to a wildcard times the addresses that they may have sent from."""
_MAPPED = np.frombuffer(b"\0" * 10 + b"\xff\xff", np.uint8)
_LOOPBACK = np.frombuffer(b"\0" * 15 + b"\1", np.uint8)
_LARGEST = np.uint64(2**63 - 1)


class Joined(NamedTuple):
    """Conversations of ends: `key` names it, `side` says which of its two ends one is."""

    key: Numbers
    side: Truth


def converse(
    wires: Array,
    sock: Numbers,
    *,
    whole: Truth,
    wild: Truth,
    again: Truth,
    own: Mapping[int, frozenset[bytes]],
) -> Numbers:
    """The number of each end's conversation, 63 bits; NOBODY where it is not certain.

    `wires` (WIRE) and `sock` (cookie, 0 = not known) of each end. `whole`: its tuple is known;
    `wild`: but for the local address, it is bound to a wildcard; `again`: several connections are
    known to have used it. `own` has the addresses of each namespace: who is bound to a wildcard
    sends from one of them, from which one its peer tells.
    """
    found = _join(wires, wild)
    found.key[~whole] = NOBODY
    guessed = np.flatnonzero(wild & whole)
    if len(guessed):
        _resolve(found, wires, guessed, own)
    several = _several(found, wires["net"].astype(np.uint64)), _several(found, sock)
    unclear = np.concatenate((*several, found.key[again]))
    found.key[np.isin(found.key, unclear)] = NOBODY
    return found.key


def _join(wires: Array, wild: Truth) -> Joined:
    """The same key for a tuple and its reverse, and which of the two it is.

    Addresses that mean others in each namespace make a key of that namespace.
    """
    near, far = _words(wires["near"]), _words(wires["far"])
    near_port, far_port = (wires[name].astype(np.uint64) for name in ("near_port", "far_port"))
    side = near_port > far_port
    for part in (1, 0):  # the last comparison that tells them apart counts
        differ = near[:, part] != far[:, part]
        side = np.where(differ, near[:, part] > far[:, part], side)
    confined = wild | _confined(wires["near"]) | _confined(wires["far"])
    place = np.where(confined, wires["net"], 0).astype(np.uint64) << np.uint64(8)
    flip = side[:, None]
    first, last = np.where(flip, far, near), np.where(flip, near, far)
    ports = np.where(side, far_port << np.uint64(16) | near_port,
                     near_port << np.uint64(16) | far_port)  # fmt: skip
    key = digest((*first.T, *last.T, ports, place | wires["proto"]))
    return Joined(np.maximum(key & _LARGEST, np.uint64(1)), side)


def digest(columns: Sequence[Array], seed: int = 0) -> Numbers:
    """64 bits of each line of some columns of 64 bits, the same on every machine.

    A chain of the finalizer of splitmix64 (Steele, Lea, Flood 2014).
    """
    value = np.full(len(columns[0]), seed, np.uint64)
    for column in columns:
        value = (value ^ column) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            value = (value ^ (value >> np.uint64(shift))) * np.uint64(factor)
        value ^= value >> np.uint64(31)
    return value


def _resolve(
    found: Joined, wires: Array, guessed: Array, own: Mapping[int, frozenset[bytes]]
) -> None:
    """Give each end that is bound to a wildcard the one key that a peer of it has too.

    One that has no peer here keeps its own key, one that could be of two has none.
    """
    ends, guesses = _guesses(wires, guessed, own)
    met = np.concatenate([one.key << np.uint64(1) | one.side for one in (found, guesses)])
    peers = np.flatnonzero(np.isin(guesses.key << np.uint64(1) | ~guesses.side, met))
    choices: dict[int, list[int]] = {}
    for guess, end in zip(peers.tolist(), ends[peers].tolist(), strict=True):
        choices.setdefault(end, []).append(guess)
    for end, fits in choices.items():
        sure = len(fits) == 1
        found.key[end] = guesses.key[fits[0]] if sure else NOBODY
        found.side[end] = guesses.side[fits[0]]


def _guesses(
    wires: Array, guessed: Array, own: Mapping[int, frozenset[bytes]]
) -> tuple[Array, Joined]:
    """Ends, and their keys if each sent from one of the addresses of its namespace."""
    net, ipv4, room = wires["net"][guessed], _ipv4(wires["far"][guessed]), _MAX_GUESSES
    ends, parts = [np.empty(0, np.int64)], [np.empty(0, WIRE)]
    for inode in np.unique(net).tolist():
        for address in own.get(inode, ()):
            place = np.frombuffer(address, "V16")
            those = guessed[(net == inode) & (ipv4 == _ipv4(place)[0])]
            if len(those) > room:
                break
            room -= len(those)
            part = wires[those]
            part["near"] = place[0]
            ends.append(those)
            parts.append(part)
    every = np.concatenate(parts)
    return np.concatenate(ends), _join(every, np.zeros(len(every), np.bool_))


def _several(found: Joined, place: Numbers) -> Numbers:
    """Keys of which one side is in several places; place 0 is not known and none."""
    those = np.flatnonzero((found.key != NOBODY) & (place != 0))
    those = those[np.lexsort((place[those], found.side[those], found.key[those]))]
    key, side, place = found.key[those], found.side[those], place[those]
    same = (key[1:] == key[:-1]) & (side[1:] == side[:-1])
    keys: Numbers = key[1:][same & (place[1:] != place[:-1])]
    return keys


def _words(addresses: Array) -> Numbers:
    return np.ascontiguousarray(addresses).view("<u8").reshape(-1, 2)


def _bytes(addresses: Array) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(addresses).view(np.uint8).reshape(-1, 16)


def _ipv4(addresses: Array) -> Truth:
    found: Truth = (_bytes(addresses)[:, :12] == _MAPPED).all(axis=1)
    return found


def _confined(addresses: Array) -> Truth:
    """Loopback and IPv6 link-local: the same addresses mean others in each namespace."""
    octets = _bytes(addresses)
    local = (octets[:, 0] == 0xFE) & (octets[:, 1] & 0xC0 == 0x80)
    loopback = _ipv4(addresses) & (octets[:, 12] == 127)
    found: Truth = local | loopback | (octets == _LOOPBACK).all(axis=1)
    return found
