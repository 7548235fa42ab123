# SPDX-License-Identifier: Apache-2.0
"""A recording as DuckDB tables: numbers in `events`, text in small lookup tables beside it.

events      one line a row of the bundle, n = 0, 1, ... in the order of time
kinds       what many events share: type, states, role, sources, result, errno
owners      facts of a process      addresses       message_flags
flows       struct kt_flow with its key             stock   both socket inventories
rows        view: events with all lookups joined, NULL = not known
lines       view: n and the JSON text of the row
"""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from ktrace_agent.enrich.backfill import backfill
from ktrace_agent.fragments import KIND_KEY, Kind, Owner, kinds, message_flags, owners
from ktrace_agent.recording import Recording
from ktrace_agent.records import (
    EVENT,
    FLAG_SYNACK,
    FLOW,
    FLOW_KEY,
    KNOWN_CGROUP,
    KNOWN_PROCESS,
    OWNER,
    OWNER_KEY,
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
from ktrace_api.names import OwnerSource, RowType

Array = npt.NDArray[Any]

CHUNK = 32_768
"""Records that are decoded, inserted or rendered at once."""

_LOOKUPS = """
  FROM events e JOIN kinds k USING (kind) JOIN owners o USING (owner)
  JOIN addresses l ON e.local = l.address JOIN addresses r ON e.remote = r.address
  JOIN message_flags f USING (flags)
"""
_SCHEMA = f"""
CREATE TABLE events (n UINTEGER, ts TIMESTAMP, sock UBIGINT, measure BIGINT, flags BIGINT,
    kind UINTEGER, owner UINTEGER, local UINTEGER, local_port USMALLINT, remote UINTEGER,
    remote_port USMALLINT, net UINTEGER);
CREATE TABLE kinds (kind UINTEGER, type VARCHAR, family VARCHAR, role VARCHAR,
    old_state VARCHAR, new_state VARCHAR, errno INTEGER, error VARCHAR, result VARCHAR,
    synack BOOLEAN, owner_source VARCHAR, peer_source VARCHAR, has_peer BOOLEAN,
    head VARCHAR, middle VARCHAR, rest VARCHAR, tail VARCHAR);
CREATE TABLE owners (owner UINTEGER, comm VARCHAR, pid UINTEGER, tgid UINTEGER, ppid UINTEGER,
    uid UINTEGER, gid UINTEGER, ns_mnt UINTEGER, ns_pid UINTEGER, ns_user UINTEGER,
    seccomp_mode UTINYINT, caps_eff UBIGINT, cgroup_id UBIGINT, head VARCHAR, tail VARCHAR);
CREATE TABLE addresses (address UINTEGER, text VARCHAR);
CREATE TABLE message_flags (flags BIGINT, names VARCHAR[], json VARCHAR);
CREATE TABLE flows (local UINTEGER, local_port USMALLINT, remote UINTEGER, remote_port USMALLINT,
    net UINTEGER, tgid UINTEGER, proto UTINYINT, comm VARCHAR, uid UINTEGER, cgroup_id UBIGINT,
    tx_bytes UBIGINT, rx_bytes UBIGINT, tx_calls UBIGINT, rx_calls UBIGINT, opened UINTEGER,
    failed UINTEGER, retrans_segs UINTEGER);
CREATE TABLE stock (moment VARCHAR, state VARCHAR, owner UINTEGER, net UINTEGER);

CREATE VIEW rows AS SELECT n, ts, k.type, o.comm, o.pid, o.tgid, o.ppid, o.uid, o.gid,
    l.text || ':' || e.local_port AS local,
    CASE WHEN k.has_peer THEN r.text || ':' || e.remote_port END AS remote,
    k.family, k.role, k.old_state, k.new_state, nullif(e.measure, -1) AS measure, f.names AS flags,
    k.errno, k.error, k.result, k.synack, nullif(e.net, 0) AS net, o.ns_mnt, o.ns_pid, o.ns_user,
    o.seccomp_mode, o.caps_eff, o.cgroup_id, k.owner_source, k.peer_source,
    nullif(e.sock, 0) AS sock {_LOOKUPS};

CREATE VIEW lines AS SELECT n, concat('{{"ts":"', strftime(ts, '%Y-%m-%dT%H:%M:%S.%g'), k.head,
    o.head, ',"tuple":"', l.text, ':', e.local_port, ' -> ',
    CASE WHEN k.has_peer THEN concat(r.text, ':', e.remote_port) ELSE '-' END,
    k.middle, CASE WHEN e.measure < 0 THEN '"-"' ELSE e.measure::VARCHAR END, f.json, k.rest,
    ',"ns":{{"net":', CASE WHEN e.net = 0 THEN '"-"' ELSE e.net::VARCHAR END, o.tail, k.tail,
    CASE WHEN e.sock = 0 THEN '-' ELSE '0x' || lower(hex(e.sock)) END, '"}}') AS line {_LOOKUPS};
"""
_SAME = ("sock", "error", "local_port", "remote_port", "type", "family", "old_state",
         "new_state", "role", "owner_source", "peer_source", "result")  # fmt: skip
_STORED = ("sock", "measure", "flags", "owner", "local", "local_port", "remote", "remote_port",
           "net")  # fmt: skip
_FLOW_STORED = ("tx_bytes", "rx_bytes", "tx_calls", "rx_calls", "opened", "failed",
                "retrans_segs", "uid", "cgroup_id")  # fmt: skip


class Tables:
    """One recording in a DuckDB of its own, in memory; close it to free it."""

    def __init__(self, recording: Recording, node: str) -> None:
        """Load everything; the spool is read from offset 0, its position is not used."""
        total = os.fstat(recording.spool_fd).st_size // EVENT.itemsize
        self.con = duckdb.connect(config=_settings(total))
        self.con.execute(_SCHEMA)
        self._addresses, self._owners = Dictionary(16), Dictionary(OWNER_KEY.itemsize)
        self._kinds, self._flags = Dictionary(KIND_KEY.itemsize), {-1}
        rows = self._decode(recording.spool_fd, total)
        wildcards = [self._addresses.number(address) for address in WILDCARDS]
        backfill(rows, wildcards, self._load_stock(recording))
        self._load_events(rows, recording.clock.offset_start_ns)
        self._load_flows(recording)
        self._load_lookups(node)
        self.rows = len(rows)

    def close(self) -> None:
        """Free the memory."""
        self.con.close()

    def lines(self, start: int, stop: int) -> list[str]:
        """JSON texts of the rows start <= n < stop, in order."""
        found = self.con.execute(
            "SELECT line FROM lines WHERE n >= ? AND n < ? ORDER BY n", [start, stop]
        )
        return [line for (line,) in found.fetchall()]

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
        udp = np.isin(events["type"], (TYPE[RowType.UDP_SEND], TYPE[RowType.UDP_RECV]))
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

    def _load_events(self, rows: Array, offset_ns: int) -> None:
        order = np.argsort(rows["ts"], kind="stable")
        for start in range(0, len(rows), CHUNK):
            part = rows[order[start : start + CHUNK]]
            keys = np.zeros(len(part), KIND_KEY)
            for name in (KIND_KEY.names or ())[:-1]:
                keys[name] = part[name]
            columns = {name: np.ascontiguousarray(part[name]) for name in _STORED}
            columns["n"] = np.arange(start, start + len(part), dtype=np.uint32)
            columns["us"] = (part["ts"] + offset_ns) // 1000
            columns["kind"] = self._kinds.encode(keys)
            self._insert(
                "events",
                "n, make_timestamp(us), sock, measure, flags, kind, owner, local, local_port,"
                " remote, remote_port, net",
                columns,
            )

    def _load_stock(self, recording: Recording) -> dict[int, int]:
        """Both inventories; owner number of each socket that the last one found accepted."""
        rows = np.empty(0, ROW)
        for moment, raw in (("start", recording.stock_start), ("end", recording.stock_end)):
            rows = self._encode(np.frombuffer(raw, EVENT))
            columns: dict[str, Any] = {
                name: np.ascontiguousarray(rows[name]) for name in ("owner", "net")
            }
            columns["state"] = _objects(STATES)[np.minimum(rows["new_state"], len(STATES) - 1)]
            if len(rows):
                self._insert("stock", f"'{moment}', state, owner, nullif(net, 0)", columns)
        taken = rows[(rows["owner_source"] == OWNER[OwnerSource.ACCEPT]) & (rows["sock"] != 0)]
        return dict(zip(taken["sock"].tolist(), taken["owner"].tolist(), strict=True))

    def _load_flows(self, recording: Recording) -> None:
        keys = np.frombuffer(recording.flow_keys, FLOW_KEY)
        values = np.frombuffer(recording.flow_values, FLOW)
        for start in range(0, len(keys), CHUNK):
            key, value = keys[start : start + CHUNK], values[start : start + CHUNK]
            columns: dict[str, Any] = {
                name: np.ascontiguousarray(key[name])
                for name in ("local_port", "remote_port", "ns_net", "tgid", "proto")
            } | {name: np.ascontiguousarray(value[name]) for name in _FLOW_STORED}
            columns["local"] = self._addresses.encode(key["local_addr"])
            columns["remote"] = self._addresses.encode(key["remote_addr"])
            columns["comm"] = _objects(map(comm_text, value["comm"].tolist()))
            columns["owned"] = value["known"] & KNOWN_PROCESS != 0
            columns["placed"] = value["known"] & KNOWN_CGROUP != 0
            self._insert(
                "flows",
                "local, local_port, remote, remote_port, nullif(ns_net, 0), if(owned, tgid, NULL),"
                " proto, if(owned, comm, NULL), if(owned, uid, NULL), if(placed, cgroup_id, NULL),"
                " tx_bytes, rx_bytes, tx_calls, rx_calls, opened, failed, retrans_segs",
                columns,
            )

    def _load_lookups(self, node: str) -> None:
        self._lookup("kinds", Kind._fields, self._kinds.keys, _decoder(KIND_KEY, kinds, node))
        self._lookup("owners", Owner._fields, self._owners.keys, _decoder(OWNER_KEY, owners))
        self._lookup("addresses", ("text",), self._addresses.keys,
                     lambda keys: [(address_text(key),) for key in keys])  # fmt: skip
        flags = sorted(self._flags)
        names, texts = zip(*map(message_flags, flags), strict=True)
        columns = {
            "flags": np.array(flags, np.int64),
            "names": _objects(names),
            "json": _objects(texts),
        }
        listed = "if(names = '', [], string_split(names, ','))"
        self._insert("message_flags", f"flags, {listed}, json", columns)

    def _lookup(
        self,
        table: str,
        fields: Sequence[str],
        keys: list[bytes],
        decode: Callable[[list[bytes]], Sequence[tuple[Any, ...]]],
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


def _settings(rows: int) -> dict[str, Any]:
    """One thread, memory only, nothing from the network; room for `rows` events."""
    return {
        "threads": 1,
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


def _decoder(
    dtype: np.dtype[Any], decode: Callable[..., Sequence[tuple[Any, ...]]], *more: Any
) -> Callable[[list[bytes]], Sequence[tuple[Any, ...]]]:
    return lambda keys: decode(np.frombuffer(b"".join(keys), dtype), *more)
