# SPDX-License-Identifier: Apache-2.0
"""A recording as DuckDB tables: what sql.py promises, stored as layout.py says."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import duckdb
import numpy as np
import numpy.typing as npt

from ktrace_agent.kernel.recording import Recording
from ktrace_agent.tables.backfill import backfill
from ktrace_agent.tables.endpoints import CHUNK, END, Flows, Found, Lookup, Track, look
from ktrace_agent.tables.layout import SCHEMA
from ktrace_agent.tables.memory import give_back
from ktrace_agent.tables.records import (
    EVENT,
    FAMILIES,
    FLAG_SYNACK,
    FLOW,
    FLOW_KEY,
    IPPROTO_TCP,
    IPPROTO_UDP,
    KNOWN_CGROUP,
    KNOWN_PROCESS,
    OWNER,
    OWNER_KEY,
    OWNER_SOURCES,
    ROLES,
    ROW,
    STATES,
    TYPE,
    UNKNOWN_U64,
    WILDCARDS,
    Dictionary,
    address_text,
    chunks,
    comm_text,
    owner_keys,
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
from ktrace_api.names import UNKNOWN, OwnerSource, RowType
from ktrace_api.row import PodIdentity

Array = npt.NDArray[Any]
Key = TypeVar("Key")

_SAME = ("sock", "error", "local_port", "remote_port", "type", "family", "old_state",
         "new_state", "role", "owner_source", "peer_source", "result")  # fmt: skip
_STORED = ("sock", "measure", "flags", "owner", "local", "local_port", "remote", "remote_port",
           "net")  # fmt: skip
_FLOW_STORED = ("tx_bytes", "rx_bytes", "tx_calls", "rx_calls", "opened", "failed",
                "retrans_segs", "uid", "cgroup_id", "first_ts", "last_ts")  # fmt: skip
_STOCK_STORED = ("local", "local_port", "remote", "remote_port", "owner", "net", "sock",
                 "measure")  # fmt: skip
_UDP = (TYPE[RowType.UDP_SEND], TYPE[RowType.UDP_RECV])
_PROTOCOLS = tuple({IPPROTO_TCP: "tcp", IPPROTO_UDP: "udp"}.get(n, UNKNOWN) for n in range(18))
_FAMILIES = tuple(FAMILIES.get(n, UNKNOWN) for n in range(7))


@dataclass(slots=True)
class Names:
    """What rows are named with; up to some ten MiB that sealing needs itself later."""

    pods: Mapping[int, PodIdentity] = field(default_factory=dict)
    """By id of the cgroup."""
    lookup: Lookup | None = None
    """Who knows connections."""

    def forget(self) -> None:
        """Give the memory back; whoever else holds them keeps it."""
        self.pods, self.lookup = {}, None


class Tables:
    """One recording in a DuckDB of its own, in memory; close it to free it."""

    def __init__(
        self,
        recording: Recording,
        node: str,
        names: Names | None = None,
    ) -> None:
        """Load everything, and forget the names that it took.

        The spool is read from offset 0, its position is not used.
        """
        names = names or Names()
        total = os.fstat(recording.spool_fd).st_size // EVENT.itemsize
        self.con = duckdb.connect(config=_settings(total))
        self.con.execute(SCHEMA)
        self._addresses, self._owners = Dictionary(16), Dictionary(OWNER_KEY.itemsize)
        self._kinds, self._flags = Dictionary(KIND_KEY.itemsize), {-1}
        rows = self._decode(recording.spool_fd, total)
        wildcards = [self._addresses.number(address) for address in WILDCARDS]
        backfill(rows, wildcards, self._load_stock(recording))
        order = np.argsort(rows["ts"], kind="stable").astype(np.uint32)
        flows = self._flows(recording)
        found = look(rows, order, flows, self._addresses, names.lookup)
        names.lookup = None
        give_back()
        self._load_events(rows, order, found, recording.clock.offset_start_ns)
        self.rows = len(rows)
        del rows, order
        self._load_flows(recording, flows, found)
        self._load_lookups(node, names.pods, found.tracks)
        names.forget()
        del self._addresses, self._owners, self._kinds, self._flags, flows, found
        give_back()

    def close(self) -> None:
        """Free the memory."""
        self.con.close()

    def lines(self, count: int) -> Iterator[list[str]]:
        """JSON texts of all rows in order, `count` at once; nothing else may be asked meanwhile."""
        with in_order(self.con):
            found = self.con.execute("SELECT line FROM lines")
            while batch := found.fetchmany(count):
                yield [line for (line,) in batch]

    def types(self) -> dict[RowType, int]:
        """Number of rows by type, 0 included."""
        found = self.con.execute(
            "SELECT k.type, count(*) FROM events JOIN kinds k USING (kind) GROUP BY ALL"
        )
        return dict.fromkeys(RowType, 0) | {RowType(name): n for name, n in found.fetchall()}

    def cut(self, rows: int) -> None:
        """Forget all rows but the first ones: the others are not in the bundle."""
        self.con.execute("DELETE FROM events WHERE n >= ?", [rows])
        self.rows = min(self.rows, rows)

    def _encode(self, events: Array) -> Array:
        """A ROW for each EVENT."""
        rows = np.zeros(len(events), ROW)
        for name in _SAME:
            rows[name] = events[name]
        rows["ts"] = events["ts"]
        rows["net"] = events["ns_net"]
        rows["owner"] = self._owners.encode(owner_keys(events))
        rows["local"] = self._addresses.encode(events["local_addr"])
        rows["remote"] = self._addresses.encode(events["remote_addr"])
        udp = np.isin(events["type"], _UDP)
        retransmit = events["type"] == TYPE[RowType.TCP_RETRANSMIT]
        duration = events["duration"]
        rows["measure"] = np.select(
            [udp, retransmit, duration != UNKNOWN_U64],
            [events["bytes"], events["segs"], (duration // 1000).astype(np.int64)],
            -1,
        )
        rows["flags"] = np.where(udp, events["flags"].astype(np.int64), -1)
        rows["synack"] = retransmit & (events["flags"] & FLAG_SYNACK != 0)
        return rows

    def _decode(self, fd: int, total: int) -> Array:
        rows, start = np.empty(total, ROW), 0
        for events in chunks(fd, CHUNK):
            part = self._encode(events[: total - start])
            rows[start : start + len(part)] = part
            self._flags.update(np.unique(part["flags"]).tolist())
            start += len(part)
        return rows[:start]

    def _insert(self, table: str, select: str, columns: dict[str, Any]) -> None:
        """Append arrays of one length; `select` maps their names to the table's columns."""
        self.con.register("batch", columns)
        self.con.execute(f"INSERT INTO {table} SELECT {select} FROM batch")  # noqa: S608
        self.con.unregister("batch")

    def _load_events(self, rows: Array, order: Array, found: Found, offset_ns: int) -> None:
        for start in range(0, len(rows), CHUNK):
            part = rows[order[start : start + CHUNK]]
            keys = np.zeros(len(part), KIND_KEY)
            for name in (KIND_KEY.names or ())[:-1]:
                keys[name] = part[name]
            columns = {name: np.ascontiguousarray(part[name]) for name in _STORED}
            columns["n"] = np.arange(start, start + len(part), dtype=np.uint32)
            columns["us"] = (part["ts"] + offset_ns) // 1000
            columns["kind"] = self._kinds.encode(keys)
            end = found.of_row[start : start + CHUNK]
            columns["track"], columns["flow"] = found.track[end], found.conversation[end]
            self._insert(
                "events",
                "n, make_timestamp(us), sock, measure, flags, kind, owner, local, local_port,"
                " remote, remote_port, net, track, flow",
                columns,
            )

    def _load_stock(self, recording: Recording) -> dict[int, int]:
        """Both inventories; owner number of each socket that the last one found accepted."""
        rows = np.empty(0, ROW)
        for moment, raw in (("start", recording.stock_start), ("end", recording.stock_end)):
            rows = self._encode(np.frombuffer(raw, EVENT))
            columns: dict[str, Any] = {
                name: np.ascontiguousarray(rows[name]) for name in _STOCK_STORED
            }
            columns["state"] = _named(STATES, rows["new_state"])
            columns["role"] = _named(ROLES, rows["role"])
            columns["source"] = _named(OWNER_SOURCES, rows["owner_source"])
            columns["family"] = _named(_FAMILIES, rows["family"])
            if len(rows):
                self._insert(
                    "stock",
                    f"'{moment}', state, nullif(family, '-'), nullif(role, '-'), source, local,"
                    " local_port, remote, remote_port, owner, nullif(net, 0), nullif(sock, 0),"
                    " nullif(measure, -1)",
                    columns,
                )
        taken = rows[(rows["owner_source"] == OWNER[OwnerSource.ACCEPT]) & (rows["sock"] != 0)]
        return dict(zip(taken["sock"].tolist(), taken["owner"].tolist(), strict=True))

    def _flows(self, recording: Recording) -> Flows:
        """What is asked about the flows."""
        keys = np.frombuffer(recording.flow_keys, FLOW_KEY)
        values = np.frombuffer(recording.flow_values, FLOW)
        ends = np.zeros(len(keys), END)
        for name in ("local_port", "remote_port", "proto"):
            ends[name] = keys[name]
        ends["net"] = keys["ns_net"]
        ends["local"] = self._addresses.encode(keys["local_addr"])
        ends["remote"] = self._addresses.encode(keys["remote_addr"])
        since, until = (values[name].astype(np.int64) for name in ("first_ts", "last_ts"))
        return Flows(ends, since, until, values["opened"].astype(np.int64) + values["failed"])

    def _load_flows(self, recording: Recording, flows: Flows, found: Found) -> None:
        keys = np.frombuffer(recording.flow_keys, FLOW_KEY)
        values = np.frombuffer(recording.flow_values, FLOW)
        for start in range(0, len(keys), CHUNK):
            key, value = keys[start : start + CHUNK], values[start : start + CHUNK]
            columns: dict[str, Any] = {
                name: np.ascontiguousarray(key[name])
                for name in ("local_port", "remote_port", "ns_net", "tgid")
            } | {name: np.ascontiguousarray(value[name]) for name in _FLOW_STORED}
            for name in ("local", "remote"):
                columns[name] = np.ascontiguousarray(flows.ends[name][start : start + CHUNK])
            end = found.of_flow[start : start + CHUNK]
            columns["track"], columns["flow"] = found.track[end], found.conversation[end]
            columns["comm"] = _objects(map(comm_text, value["comm"].tolist()))
            columns["protocol"] = _named(_PROTOCOLS, key["proto"])
            columns["family"] = _named(_FAMILIES, key["family"])
            columns["role"] = _named(ROLES, value["role"])
            columns["owned"] = value["known"] & KNOWN_PROCESS != 0
            columns["placed"] = value["known"] & KNOWN_CGROUP != 0
            for name in ("first_ts", "last_ts"):
                us = (columns[name].astype(np.int64) + recording.clock.offset_start_ns) // 1000
                columns[name] = np.where(columns[name] == 0, 0, us)
            self._insert(
                "flow_stats",
                "local, local_port, remote, remote_port, nullif(ns_net, 0), if(owned, tgid, NULL),"
                " nullif(protocol, '-'), nullif(family, '-'), nullif(role, '-'),"
                " if(owned, comm, NULL), if(owned, uid, NULL), if(placed, cgroup_id, NULL),"
                " tx_bytes, rx_bytes, tx_calls, rx_calls, opened, failed, retrans_segs,"
                " make_timestamp(nullif(first_ts, 0)), make_timestamp(nullif(last_ts, 0)),"
                " track, flow",
                columns,
            )

    def _load_lookups(
        self, node: str, pods: Mapping[int, PodIdentity], tracks: list[Track]
    ) -> None:
        self._lookup("kinds", Kind._fields, self._kinds.keys, _decoder(KIND_KEY, kinds, node))
        self._lookup("owners", Owner._fields, self._owners.keys, _decoder(OWNER_KEY, owners, pods))
        self._lookup("addresses", ("text",), self._addresses.keys,
                     lambda keys: [(address_text(key),) for key in keys])  # fmt: skip
        self._lookup("tracks", Track._fields, tracks, tuple)
        self._load_pods(pods)
        flags = sorted(self._flags)
        names, texts = zip(*map(message_flags, flags), strict=True)
        columns = {
            "flags": np.array(flags, np.int64),
            "names": _objects(names),
            "json": _objects(texts),
        }
        listed = "if(names = '', [], string_split(names, ','))"
        self._insert("message_flags", f"flags, {listed}, json", columns)

    def _load_pods(self, pods: Mapping[int, PodIdentity]) -> None:
        columns: dict[str, Any] = {"cgroup_id": np.array([*pods], np.uint64)}
        for name in PodIdentity.model_fields:
            columns[name] = _objects(or_none(getattr(pod, name)) for pod in pods.values())
        if pods:
            self._insert("pods", ", ".join(columns), columns)

    def _lookup(
        self,
        table: str,
        fields: Sequence[str],
        keys: list[Key],
        decode: Callable[[list[Key]], Sequence[tuple[Any, ...]]],
    ) -> None:
        """Fill a table with its number and what `decode` makes of each key."""
        for start in range(0, len(keys), CHUNK):
            decoded = decode(keys[start : start + CHUNK])
            columns: dict[str, Any] = {
                name: _objects(values)
                for name, values in zip(fields, zip(*decoded, strict=True), strict=True)
            }
            columns["number"] = np.arange(start, start + len(decoded), dtype=np.uint32)
            self._insert(table, ", ".join(("number", *fields)), columns)


@contextmanager
def in_order(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """What is selected from rows or lines comes in their order, a little at a time.

    Without these optimizers the first table of a join is streamed and never held, here the
    events; the others are looked up.
    """
    con.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
    try:
        yield
    finally:
        con.execute("RESET disabled_optimizers")


def _settings(rows: int) -> dict[str, Any]:
    """One thread, memory only, nothing from the network; room for `rows` events.

    What a query used is given back at once: 1 M rows peak 20 to 30 MiB lower for 0.5 s.
    """
    return {
        "threads": 1,
        "allocator_flush_threshold": "8MB",
        "allocator_bulk_deallocation_flush_threshold": "8MB",
        "memory_limit": f"{(256 << 20) + 2048 * rows}B",
        "temp_directory": "",
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }


def _objects(values: Iterable[Any]) -> Array:
    listed = list(values)
    array = np.empty(len(listed), object)
    array[:] = listed
    return array


def _named(names: Sequence[str], numbers: Array) -> Array:
    """The names of numbers, `-` where there is none."""
    return _objects([*names, UNKNOWN])[np.minimum(numbers, len(names))]


def _decoder(
    dtype: np.dtype[Any], decode: Callable[..., Sequence[tuple[Any, ...]]], *more: Any
) -> Callable[[list[bytes]], Sequence[tuple[Any, ...]]]:
    return lambda keys: decode(np.frombuffer(b"".join(keys), dtype), *more)
