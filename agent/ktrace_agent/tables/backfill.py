# SPDX-License-Identifier: Apache-2.0
"""Completes records with facts from later records of the same socket.

Two facts of a TCP socket are known late. The kernel chooses the local port after it reports
SYN_SENT, and sets the peer of a child socket after the child's first SYN_RECV. A child socket
has no owner before accept() returns it. Both facts are copied to earlier records with the same
socket cookie, and never to another socket.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ktrace_agent.tables.records import OWNER, STATE, TYPE, UDP_TYPES
from ktrace_api.names import OwnerSource, RowType, TcpState

Array = npt.NDArray[Any]

_OPENING = (STATE[TcpState.SYN_SENT], STATE[TcpState.SYN_RECV])
_RESTARTS = (*_OPENING, STATE[TcpState.LISTEN])
_TUPLE = ("local", "local_port", "remote", "remote_port", "family")


def backfill(rows: Array, wildcards: Sequence[int], accepted: Mapping[int, int]) -> None:
    """Completes the tuples and owners of `rows` (records.ROW, any order) in place.

    `wildcards` are the numbers of the addresses 0.0.0.0 and ::. `accepted` maps the cookie of
    each socket that was accepted according to the final inventory to the number of its owner.
    """
    index = np.flatnonzero((rows["sock"] != 0) & ~np.isin(rows["type"], UDP_TYPES))
    index = index[np.lexsort((rows["ts"][index], rows["sock"][index]))]
    if len(index):
        _tuples(rows, index, wildcards)
        _owners(rows, index, accepted)


def _next(candidate: Array) -> npt.NDArray[np.int64]:
    """Returns the position of the first candidate at or after each; len(candidate) = none."""
    positions = np.where(candidate, np.arange(len(candidate)), len(candidate))
    return np.minimum.accumulate(positions[::-1])[::-1]


def _tuples(rows: Array, index: Array, wildcards: Sequence[int]) -> None:
    """Copies to a row that opens a connection the tuple of the connection's next row.

    The known part of its own tuple must agree; a child socket has the address that its listener
    is bound to, often a wildcard. The search ends where the socket connects or listens again.
    """
    row = {name: rows[name][index] for name in ("sock", "net", "new_state", *_TUPLE)}
    changed = rows["type"][index] == TYPE[RowType.TCP_STATE]
    connection = np.cumsum(changed & np.isin(row["new_state"], _RESTARTS))
    complete = (row["local_port"] > 0) & (row["remote_port"] > 0)
    after = _next(complete)
    found = after < len(index)
    after[~found] = 0

    fill = changed & np.isin(row["new_state"], _OPENING) & ~complete & found
    for value in (row["sock"], row["net"], connection):
        fill &= value[after] == value
    for address, port in (("local", "local_port"), ("remote", "remote_port")):
        fill &= (row[address][after] == row[address]) | np.isin(row[address], wildcards)
        fill &= (row[port][after] == row[port]) | (row[port] == 0)

    target, source = index[fill], index[after[fill]]
    no_peer = row["remote_port"][fill] == 0
    rows["peer_source"][target[no_peer]] = rows["peer_source"][source[no_peer]]
    for name in _TUPLE:
        rows[name][target] = rows[name][source]


def _owners(rows: Array, index: Array, accepted: Mapping[int, int]) -> None:
    """Copies to a row without an owner the process that accepts the socket later."""
    sock, source = rows["sock"][index], rows["owner_source"][index]
    owner = rows["owner"][index]
    missing = np.isin(source, (OWNER[OwnerSource.NONE], OWNER[OwnerSource.LISTENER]))

    after = _next(source == OWNER[OwnerSource.ACCEPT])
    found = after < len(index)
    after[~found] = 0
    found &= sock[after] == sock
    for name in ("net", "local_port", "remote_port"):  # in case two sockets have one cookie
        value = rows[name][index]
        found &= (value[after] == value) | (value == 0)
    fill = missing & found
    rows["owner"][index[fill]] = owner[after[fill]]
    rows["owner_source"][index[fill]] = OWNER[OwnerSource.ACCEPT]

    if not accepted:
        return
    known = np.array(sorted(accepted), np.uint64)
    place = np.minimum(np.searchsorted(known, sock), len(known) - 1)
    fill = missing & ~found & (known[place] == sock)
    owners = np.array([accepted[cookie] for cookie in known.tolist()], np.uint32)
    rows["owner"][index[fill]] = owners[place[fill]]
    rows["owner_source"][index[fill]] = OWNER[OwnerSource.ACCEPT]
