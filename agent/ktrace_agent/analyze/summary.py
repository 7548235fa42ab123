# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - the parts of every statement are constants of this file
"""Group-bys over the tables of a recording -> Summary.

Every list is bounded and says how many entries were left out; every text in it is
short by nature (comm, address, state). Where long entries would still carry the
whole over SUMMARY_MAX_BYTES, all lists become shorter.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ktrace_agent.kernel.probes import HOOKS
from ktrace_agent.kernel.recording import DISK_FILLED, Recording
from ktrace_agent.tables.ask import records
from ktrace_agent.tables.load import Tables
from ktrace_api.capture import CaptureConfig
from ktrace_api.names import UNKNOWN, ConnectResult, RowType
from ktrace_api.summary import (
    SUMMARY_MAX_BYTES,
    Accounting,
    Destination,
    Destinations,
    FlowPeer,
    FlowPeers,
    MapOverflow,
    Processes,
    ProcessRows,
    Quantiles,
    Retransmits,
    Retransmitter,
    Stock,
    StockOwner,
    Summary,
    Talker,
    Talkers,
)

TOP = (20, 10, 5, 2)
"""Entries of a list at most; the first that keeps the summary within its size is taken."""

_FLOW_TOTALS = """sum(tx_bytes)::UBIGINT AS tx_bytes, sum(rx_bytes)::UBIGINT AS rx_bytes,
    sum(tx_calls)::UBIGINT AS tx_calls, sum(rx_calls)::UBIGINT AS rx_calls,
    sum(opened)::UBIGINT AS opened, sum(failed)::UBIGINT AS failed"""


def summarize(
    tables: Tables,
    recording: Recording,
    config: CaptureConfig,
    accounting: Mapping[RowType, Accounting],
    notes: Sequence[str],
    *,
    hooks_missing: Sequence[str] = (),
    room: int = SUMMARY_MAX_BYTES,
) -> Summary:
    """The summary of what `tables` holds, i.e. of the rows that are in the bundle.

    `notes` are sentences about what sealing cut; more are added here. `hooks_missing` are those
    that no program serves. Findings are not in it.
    """
    for top in TOP:
        summary = _summary(_Query(tables, top), recording, config, accounting, notes, hooks_missing)
        if len(summary.to_bytes()) <= room:
            break
    return summary


def _summary(
    query: "_Query",
    recording: Recording,
    config: CaptureConfig,
    accounting: Mapping[RowType, Accounting],
    notes: Sequence[str],
    hooks_missing: Sequence[str],
) -> Summary:
    lost = _losses(recording, accounting)
    by_type = query.types()
    return Summary(
        node=config.node,
        started=recording.started,
        ended=recording.ended,
        ended_by=recording.ended_by,
        window_s=round(max((recording.ended - recording.started).total_seconds(), 0), 3),
        sample=config.sample,
        complete=not lost,
        hooks_missing=tuple(hooks_missing),
        notes=(*notes, *lost, *_unserved(hooks_missing), *_remarks(recording, config)),
        rows=sum(by_type.values()),
        rows_by_type=by_type,
        accounting=dict(accounting),
        overflow=MapOverflow(
            **{name: getattr(recording.overflow, name) for name in MapOverflow.model_fields}
        ),
        processes=_processes(query),
        talkers=_talkers(query),
        flows=_flow_peers(query),
        connects=_connects(query),
        tcp_states=_matrix(query),
        stock_start=_stock(query, "start"),
        stock_end=_stock(query, "end"),
        retransmits=_retransmits(query),
    )


def _losses(recording: Recording, accounting: Mapping[RowType, Accounting]) -> list[str]:
    """What makes the bundle incomplete, in plain sentences."""
    ring = sum(hook.lost_ring for hook in accounting.values())
    full = sum(hook.lost_map for hook in accounting.values())
    capped = sum(hook.capped for hook in accounting.values())
    disk = sum(recording.spool_lost.values())
    found = []
    if ring:
        found.append(f"{ring} events were lost: the ring or the disk was full (accounting).")
    if disk:
        found.append(f"{disk} of them because {DISK_FILLED}")
    if full:
        found.append(f"{full} events were lost because a map was full: raise max_sockets.")
    if unseen := {row: hook.unseen for row, hook in accounting.items() if hook.unseen}:
        which = ", ".join(f"{count} of {row}" for row, count in unseen.items())
        found.append(
            f"At least {sum(unseen.values())} events passed that the kernel ran no program for"
            f" ({which}): its own counters or the states of the sockets show them."
        )
    if capped:
        found.append(f"{capped} events are not kept: max_events or max_bytes was reached.")
    if recording.overflow.any():
        found.append("A map was full, so some owners, addresses or flow figures are missing.")
    if recording.ended_by == "error":
        found.append("The capture ended early because of an error.")
    return found


def _unserved(hooks_missing: Sequence[str]) -> list[str]:
    """What rows cannot have, whatever was lost or not: nothing counts what nobody looks at."""
    if not hooks_missing:
        return []
    facts = {hook.name: hook.missing for hook in HOOKS}
    lacking = "; ".join(facts.get(name, name) for name in hooks_missing)
    names = ", ".join(hooks_missing)
    return [f"No program serves {names}, so these are missing: {lacking} (see `ktrace doctor`)."]


def _remarks(recording: Recording, config: CaptureConfig) -> list[str]:
    """What a reader must know of a bundle even when nothing was lost."""
    remarks = []
    if config.sample > 1:
        remarks.append(
            f"One event in {config.sample} is a row; talkers and flows count all of them."
        )
    step = recording.clock.offset_end_ns - recording.clock.offset_start_ns
    if abs(step) > 100_000_000:
        remarks.append(
            f"The wall clock was set by {step / 1e9:+.1f} s during the capture; "
            "rows follow the clock as it was at the start."
        )
    return remarks


class _Query:
    """SQL in, dictionaries out; `limit` bounds every list."""

    def __init__(self, tables: Tables, limit: int) -> None:
        self._con, self.types, self._limit = tables.con, tables.types, limit

    def __call__(self, sql: str) -> list[dict[str, Any]]:
        return records(self._con, sql)

    def top(self, sql: str, order: str) -> tuple[list[dict[str, Any]], int]:
        """The first groups of a query by `order`, NULL as "-", and how many were left out."""
        found = self(
            f"SELECT *, count(*) OVER () AS groups FROM ({sql}) ORDER BY {order}"
            f" LIMIT {self._limit}"
        )
        groups = found[0]["groups"] if found else 0
        shown = [
            {k: UNKNOWN if v is None else v for k, v in row.items() if k != "groups"}
            for row in found
        ]
        return shown, groups - len(shown)


def _processes(query: _Query) -> Processes:
    top, left_out = query.top(
        """SELECT tgid, comm, uid, sum(count)::UBIGINT AS rows,
             map_from_entries(list((type, count) ORDER BY type)) AS by_type
           FROM (SELECT o.tgid, o.comm, o.uid, k.type, count(*) AS count
                 FROM events e JOIN kinds k USING (kind) JOIN owners o USING (owner)
                 GROUP BY ALL)
           GROUP BY tgid, comm, uid""",
        "rows DESC, tgid, comm, uid",
    )
    return Processes(top=tuple(ProcessRows(**row) for row in top), left_out=left_out)


def _talkers(query: _Query) -> Talkers:
    talkers = f"""SELECT tgid, comm, uid, net AS netns, f.cgroup_id, namespace, pod, container,
        {_FLOW_TOTALS}, count(*) AS flows
        FROM flow_stats f LEFT JOIN pods p ON f.cgroup_id = p.cgroup_id GROUP BY ALL"""
    ties = "tgid, comm, uid, netns, cgroup_id"
    by_bytes, left_out = query.top(talkers, f"tx_bytes + rx_bytes DESC, {ties}")
    by_connections, _ = query.top(
        f"SELECT * FROM ({talkers}) WHERE opened + failed > 0", f"opened + failed DESC, {ties}"
    )
    return Talkers(
        by_bytes=tuple(Talker(**row) for row in by_bytes),
        by_connections=tuple(Talker(**row) for row in by_connections),
        left_out=left_out,
    )


def _flow_peers(query: _Query) -> FlowPeers:
    top, left_out = query.top(
        f"""SELECT tgid, comm, uid,
              CASE WHEN remote_port > 0 THEN a.text || ':' || remote_port END AS peer,
              proto, {_FLOW_TOTALS}
            FROM flow_stats f JOIN addresses a ON f.remote = a.address GROUP BY ALL""",
        "tx_bytes + rx_bytes DESC, tgid, comm, uid, peer, proto",
    )
    names = FlowPeer.model_fields
    return FlowPeers(
        top=tuple(FlowPeer(**{k: v for k, v in row.items() if k in names}) for row in top),
        left_out=left_out,
    )


_CONNECTS = """SELECT CASE WHEN k.has_peer THEN r.text || ':' || e.remote_port END AS peer,
    coalesce(k.result, '-') AS result, k.error, nullif(e.measure, -1) AS us
  FROM events e JOIN kinds k USING (kind) JOIN addresses r ON e.remote = r.address
  WHERE k.type = 'connect'"""


def _connects(query: _Query) -> Destinations:
    established = f"FILTER (WHERE result = '{ConnectResult.ESTABLISHED}')"
    top, left_out = query.top(
        f"""SELECT peer, count(*) AS connects, histogram(result) AS results,
              histogram(error) AS errors,
              count(us) {established} AS count, min(us) {established} AS min,
              max(us) {established} AS max,
              quantile_disc(us, [0.5, 0.9, 0.99]) {established} AS quantiles
            FROM ({_CONNECTS}) GROUP BY peer""",
        f"connects - coalesce(results['{ConnectResult.ESTABLISHED}'], 0) DESC, connects DESC, peer",
    )
    results = query(f"SELECT result, count(*) AS count FROM ({_CONNECTS}) GROUP BY ALL ORDER BY 1")
    return Destinations(
        top=tuple(_destination(row) for row in top),
        left_out=left_out,
        results={row["result"]: row["count"] for row in results},
    )


def _destination(row: dict[str, Any]) -> Destination:
    latency = None
    if row["count"] > 0:
        p50, p90, p99 = row["quantiles"]
        latency = Quantiles(
            count=row["count"], min=row["min"], p50=p50, p90=p90, p99=p99, max=row["max"]
        )
    errors = {} if row["errors"] == UNKNOWN else row["errors"]
    most = sorted(errors.items(), key=lambda item: (-item[1], item[0]))[:8]
    return Destination(
        peer=row["peer"],
        connects=row["connects"],
        results=row["results"],
        errors=dict(most),
        latency_us=latency,
    )


def _matrix(query: _Query) -> dict[str, dict[str, int]]:
    matrix: dict[str, dict[str, int]] = {}
    for row in query(
        """SELECT coalesce(old_state, '-') AS old_state, coalesce(new_state, '-') AS new_state,
             count(*) AS count FROM events JOIN kinds USING (kind)
           WHERE type = 'tcp_state' GROUP BY ALL ORDER BY ALL"""
    ):
        matrix.setdefault(row["old_state"], {})[row["new_state"]] = row["count"]
    return matrix


def _stock(query: _Query, moment: str) -> Stock:
    sockets = f"FROM stock s JOIN owners o USING (owner) WHERE moment = '{moment}'"
    top, left_out = query.top(
        f"""SELECT tgid, comm, uid, net AS netns, count(*) AS sockets, histogram(state) AS states
            {sockets} GROUP BY tgid, comm, uid, net""",
        "sockets DESC, tgid, comm, uid, netns",
    )
    states = query(f"SELECT state, count(*) AS count {sockets} GROUP BY ALL ORDER BY ALL")
    return Stock(
        states={row["state"]: row["count"] for row in states},
        owners=tuple(StockOwner(**row) for row in top),
        left_out=left_out,
    )


def _retransmits(query: _Query) -> Retransmits:
    top, left_out = query.top(
        """SELECT o.tgid, o.comm, o.uid, sum(e.measure)::UBIGINT AS segs,
             CASE WHEN k.has_peer THEN r.text || ':' || e.remote_port END AS peer
           FROM events e JOIN kinds k USING (kind) JOIN owners o USING (owner)
             JOIN addresses r ON e.remote = r.address
           WHERE k.type = 'tcp_retransmit' GROUP BY ALL""",
        "segs DESC, tgid, comm, uid, peer",
    )
    (total,) = query(
        """SELECT (SELECT coalesce(sum(measure), 0)::UBIGINT FROM events JOIN kinds USING (kind)
                   WHERE type = 'tcp_retransmit') AS segs,
                  (SELECT coalesce(sum(retrans_segs), 0)::UBIGINT FROM flow_stats) AS flow_segs"""
    )
    return Retransmits(top=tuple(Retransmitter(**row) for row in top), left_out=left_out, **total)
