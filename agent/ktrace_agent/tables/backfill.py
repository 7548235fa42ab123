# SPDX-License-Identifier: Apache-2.0
"""Facts that a later record of the same socket states about an earlier one.

Two facts come late in the life of a TCP socket: the kernel picks the local port
after it announces SYN_SENT (and fills the peer in after the first SYN_RECV of a
child), and nobody owns a child before accept() returns it. The same socket
(cookie) is proof enough to carry both back; nothing is carried to another socket.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ktrace_agent.tables.records import OWNER, STATE, TYPE
from ktrace_api.names import OwnerSource, RowType, TcpState

Array = npt.NDArray[Any]

_OPENING = (STATE[TcpState.SYN_SENT], STATE[TcpState.SYN_RECV])
_NEW_LIFE = (*_OPENING, STATE[TcpState.LISTEN])
_TUPLE = ("local", "local_port", "remote", "remote_port", "family")
_UDP = (TYPE[RowType.UDP_SEND], TYPE[RowType.UDP_RECV])


def backfill(rows: Array, wildcards: Sequence[int], accepted: Mapping[int, int]) -> None:
    """Fill tuples and owners of records.ROW in place; the rows may be in any order.

    `wildcards` are the numbers of the addresses that mean "any": 0.0.0.0 and ::.
    `accepted` gives the owner number of each socket (by cookie) that the inventory at
    the end found accepted.
    """
    index = np.flatnonzero((rows["sock"] != 0) & ~np.isin(rows["type"], _UDP))
    index = index[np.lexsort((rows["ts"][index], rows["sock"][index]))]
    if len(index):
        _tuples(rows, index, wildcards)
        _owners(rows, index, accepted)


def _next(candidate: Array) -> npt.NDArray[np.int64]:
    """Position of the first candidate at or after each position; len(candidate) = none."""
    positions = np.where(candidate, np.arange(len(candidate)), len(candidate))
    return np.minimum.accumulate(positions[::-1])[::-1]


def _tuples(rows: Array, index: Array, wildcards: Sequence[int]) -> None:
    """A row that opens a connection takes the tuple of the next row of that connection.

    Only where what it has agrees: a child still shows the address that its listener is
    bound to, often a wildcard. The search ends where the socket opens or listens again.
    """
    row = {name: rows[name][index] for name in ("sock", "net", "new_state", *_TUPLE)}
    changed = rows["type"][index] == TYPE[RowType.TCP_STATE]
    life = np.cumsum(changed & np.isin(row["new_state"], _NEW_LIFE))
    whole = (row["local_port"] > 0) & (row["remote_port"] > 0)
    after = _next(whole)
    found = after < len(index)
    after[~found] = 0

    fill = changed & np.isin(row["new_state"], _OPENING) & ~whole & found
    for value in (row["sock"], row["net"], life):
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
    """A row without an owner takes the process that accepts the socket later."""
    sock, source = rows["sock"][index], rows["owner_source"][index]
    owner = rows["owner"][index]
    missing = np.isin(source, (OWNER[OwnerSource.NONE], OWNER[OwnerSource.LISTENER]))

    after = _next(source == OWNER[OwnerSource.ACCEPT])
    found = after < len(index)
    after[~found] = 0
    found &= sock[after] == sock
    for name in ("net", "local_port", "remote_port"):  # the cookie alone is a kernel's word
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
