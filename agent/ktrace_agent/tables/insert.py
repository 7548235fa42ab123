# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - tables and columns are constants of this file and of layout.py
"""Inserts an encoded recording into the tables of layout.py, a function for each kind."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import duckdb
import numpy as np
import numpy.typing as npt

from ktrace_agent.enrich.conntrack.connection import Connection
from ktrace_agent.host.inet import PROTOCOL_NAMES, address_text
from ktrace_agent.kernel.recording import Recording
from ktrace_agent.tables.encode import Encoder
from ktrace_agent.tables.endpoints import Flows, Resolved
from ktrace_agent.tables.records import (
    CHUNK,
    EVENT,
    FAMILIES,
    FLOW,
    FLOW_KEY,
    KNOWN_CGROUP,
    KNOWN_PROCESS,
    OWNER,
    OWNER_KEY,
    OWNER_SOURCES,
    ROLES,
    ROW,
    STATES,
    comm_text,
)
from ktrace_agent.tables.row_json import (
    KIND_KEY,
    Kind,
    Owner,
    kinds,
    message_flags,
    or_none,
    owners,
)
from ktrace_api.names import UNKNOWN, OwnerSource
from ktrace_api.row import PodIdentity

Array = npt.NDArray[Any]
Database = duckdb.DuckDBPyConnection
Key = TypeVar("Key")

_EVENT_COLUMNS = ("sock", "measure", "flags", "owner", "local", "local_port", "remote",
                  "remote_port", "net")  # fmt: skip
_FLOW_COLUMNS = ("tx_bytes", "rx_bytes", "tx_calls", "rx_calls", "opened", "failed",
                 "retrans_segs", "uid", "cgroup_id", "first_ts", "last_ts")  # fmt: skip
_SOCKET_COLUMNS = ("local", "local_port", "remote", "remote_port", "owner", "net", "sock",
                   "measure")  # fmt: skip
_PROTOCOLS = tuple(PROTOCOL_NAMES.get(n, UNKNOWN) for n in range(max(PROTOCOL_NAMES) + 1))
_FAMILIES = tuple(FAMILIES.get(n, UNKNOWN) for n in range(max(FAMILIES) + 1))


def insert_sockets(con: Database, recording: Recording, encoder: Encoder) -> dict[int, int]:
    """Inserts both socket inventories.

    Returns the number of the owner of each socket (by cookie) that the final one found accepted.
    """
    rows = np.empty(0, ROW)
    for moment, raw in (("start", recording.stock_start), ("end", recording.stock_end)):
        rows = encoder.rows(np.frombuffer(raw, EVENT))
        columns: dict[str, Any] = {
            name: np.ascontiguousarray(rows[name]) for name in _SOCKET_COLUMNS
        }
        columns["state"] = _named(STATES, rows["new_state"])
        columns["role"] = _named(ROLES, rows["role"])
        columns["source"] = _named(OWNER_SOURCES, rows["owner_source"])
        columns["family"] = _named(_FAMILIES, rows["family"])
        if len(rows):
            _insert(
                con,
                "inventory",
                f"'{moment}', state, nullif(family, '-'), nullif(role, '-'), source, local,"
                " local_port, remote, remote_port, owner, nullif(net, 0), nullif(sock, 0),"
                " nullif(measure, -1)",
                columns,
            )
    accepted = rows[(rows["owner_source"] == OWNER[OwnerSource.ACCEPT]) & (rows["sock"] != 0)]
    return dict(zip(accepted["sock"].tolist(), accepted["owner"].tolist(), strict=True))


def insert_events(
    con: Database, rows: Array, order: Array, resolved: Resolved, encoder: Encoder, offset_ns: int
) -> None:
    """Inserts the events in time order; `offset_ns` is the wall clock minus the boot clock."""
    for start in range(0, len(rows), CHUNK):
        part = rows[order[start : start + CHUNK]]
        columns = {name: np.ascontiguousarray(part[name]) for name in _EVENT_COLUMNS}
        columns["n"] = np.arange(start, start + len(part), dtype=np.uint32)
        columns["us"] = (part["ts"] + offset_ns) // 1000
        columns["kind"] = encoder.row_kinds(part)
        endpoint = resolved.of_row[start : start + CHUNK]
        columns["connection"] = resolved.connection[endpoint]
        columns["flow"] = resolved.conversation[endpoint]
        _insert(
            con,
            "events",
            "n, make_timestamp(us), sock, measure, flags, kind, owner, local, local_port,"
            " remote, remote_port, net, connection, flow",
            columns,
        )


def insert_flows(con: Database, recording: Recording, flows: Flows, resolved: Resolved) -> None:
    """Inserts the flows of the recording with their connections and conversations."""
    keys = np.frombuffer(recording.flow_keys, FLOW_KEY)
    values = np.frombuffer(recording.flow_values, FLOW)
    for start in range(0, len(keys), CHUNK):
        key, value = keys[start : start + CHUNK], values[start : start + CHUNK]
        columns: dict[str, Any] = {
            name: np.ascontiguousarray(key[name])
            for name in ("local_port", "remote_port", "ns_net", "tgid")
        } | {name: np.ascontiguousarray(value[name]) for name in _FLOW_COLUMNS}
        for name in ("local", "remote"):
            columns[name] = np.ascontiguousarray(flows.endpoints[name][start : start + CHUNK])
        endpoint = resolved.of_flow[start : start + CHUNK]
        columns["connection"] = resolved.connection[endpoint]
        columns["flow"] = resolved.conversation[endpoint]
        columns["comm"] = _objects(map(comm_text, value["comm"].tolist()))
        columns["protocol"] = _named(_PROTOCOLS, key["proto"])
        columns["family"] = _named(_FAMILIES, key["family"])
        columns["role"] = _named(ROLES, value["role"])
        columns |= {name: np.full(len(value), seen) for name, seen in _seen(recording).items()}
        columns["owned"] = value["known"] & KNOWN_PROCESS != 0
        columns["placed"] = value["known"] & KNOWN_CGROUP != 0
        for name in ("first_ts", "last_ts"):
            us = (columns[name].astype(np.int64) + recording.clock.offset_start_ns) // 1000
            columns[name] = np.where(columns[name] == 0, 0, us)
        _insert(
            con,
            "flow_stats",
            "local, local_port, remote, remote_port, nullif(ns_net, 0), if(owned, tgid, NULL),"
            " nullif(protocol, '-'), nullif(family, '-'), nullif(role, '-'),"
            " if(owned, comm, NULL), if(owned, uid, NULL), if(placed, cgroup_id, NULL),"
            " if(sent, tx_bytes, NULL), if(received, rx_bytes, NULL), if(sent, tx_calls, NULL),"
            " if(received, rx_calls, NULL), if(connected AND (accepted OR role = 'client' OR"
            " protocol = 'udp'), opened, NULL), if(connected, failed, NULL),"
            " if(retransmits, retrans_segs, NULL),"
            " make_timestamp(nullif(first_ts, 0)), make_timestamp(nullif(last_ts, 0)),"
            " connection, flow",
            columns,
        )


def _seen(recording: Recording) -> dict[str, bool]:
    """Returns which figures of flows are known."""
    names = ("sent", "received", "connected", "accepted", "retransmits")
    return {name: getattr(recording.observed, name) for name in names}


def insert_texts(
    con: Database,
    encoder: Encoder,
    node: str,
    pods: Mapping[int, PodIdentity],
    connections: list[Connection],
) -> None:
    """Inserts the texts that the numbers of the other tables stand for."""
    _insert_numbered(
        con, "kinds", Kind._fields, encoder.kinds.keys, _decoder(KIND_KEY, kinds, node)
    )
    _insert_numbered(
        con, "owners", Owner._fields, encoder.owners.keys, _decoder(OWNER_KEY, owners, pods)
    )
    _insert_numbered(con, "addresses", ("text",), encoder.addresses.keys,
                     lambda keys: [(address_text(key),) for key in keys])  # fmt: skip
    _insert_numbered(con, "connections", Connection._fields, connections, tuple)
    if pods:
        columns: dict[str, Any] = {"cgroup_id": np.array([*pods], np.uint64)}
        for name in PodIdentity.model_fields:
            columns[name] = _objects(or_none(getattr(pod, name)) for pod in pods.values())
        _insert(con, "pods", ", ".join(columns), columns)
    _insert_message_flags(con, sorted(encoder.flags))


def _insert_message_flags(con: Database, flags: Sequence[int]) -> None:
    names, texts = zip(*map(message_flags, flags), strict=True)
    columns = {
        "flags": np.array(flags, np.int64),
        "names": _objects(names),
        "json": _objects(texts),
    }
    listed = "if(names = '', [], string_split(names, ','))"
    _insert(con, "message_flags", f"flags, {listed}, json", columns)


def _insert(con: Database, table: str, select: str, columns: dict[str, Any]) -> None:
    """Appends arrays of one length; `select` maps their names to the table's columns."""
    con.register("batch", columns)
    con.execute(f"INSERT INTO {table} SELECT {select} FROM batch")
    con.unregister("batch")


def _insert_numbered(
    con: Database,
    table: str,
    fields: Sequence[str],
    keys: list[Key],
    decode: Callable[[list[Key]], Sequence[tuple[Any, ...]]],
) -> None:
    """Inserts the number of each key and the `fields` that `decode` returns for it."""
    for start in range(0, len(keys), CHUNK):
        decoded = decode(keys[start : start + CHUNK])
        columns: dict[str, Any] = {
            name: _objects(values)
            for name, values in zip(fields, zip(*decoded, strict=True), strict=True)
        }
        columns["number"] = np.arange(start, start + len(decoded), dtype=np.uint32)
        _insert(con, table, ", ".join(("number", *fields)), columns)


def _objects(values: Iterable[Any]) -> Array:
    listed = list(values)
    array = np.empty(len(listed), object)
    array[:] = listed
    return array


def _named(names: Sequence[str], numbers: Array) -> Array:
    """Returns the name of each number, or `-`."""
    return _objects([*names, UNKNOWN])[np.minimum(numbers, len(names))]


def _decoder(
    dtype: np.dtype[Any], decode: Callable[..., Sequence[tuple[Any, ...]]], *more: Any
) -> Callable[[list[bytes]], Sequence[tuple[Any, ...]]]:
    return lambda keys: decode(np.frombuffer(b"".join(keys), dtype), *more)
