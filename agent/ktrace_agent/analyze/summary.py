# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - the parts of every statement are constants of this file
"""Group-bys over the tables of a recording -> Summary.

A figure that no program observed is None: load() stored it as NULL, or Tables.observed states it.
Every list has up to LIST_ENTRIES entries and the number of entries left out.
bundle/fitted_summary.py shortens them where the summary would be too large.
"""

from dataclasses import fields
from typing import Any

from ktrace_agent.analyze.facts import Facts
from ktrace_agent.tables.ask import records
from ktrace_agent.tables.load import Tables
from ktrace_api.finding import Findings
from ktrace_api.names import UNKNOWN, ConnectResult, RowType
from ktrace_api.summary import (
    Destination,
    Destinations,
    FlowPeer,
    FlowPeers,
    Inventory,
    InventoryOwner,
    Processes,
    ProcessRows,
    Quantiles,
    Retransmits,
    Retransmitter,
    Summary,
    Talker,
    Talkers,
)

LIST_ENTRIES = 20
"""Maximum entries of a list."""

_FIGURES = ("tx_bytes", "rx_bytes", "tx_calls", "rx_calls", "opened", "failed")
"""Figures of flows."""
_FLOW_TOTALS = ", ".join(
    f"if(count({name}) = count(*), sum({name})::UBIGINT, NULL) AS {name}" for name in _FIGURES
)
"""A sum is unknown if one of its parts is."""
_BYTES = "coalesce(tx_bytes, 0) + coalesce(rx_bytes, 0)"
_CONNECTIONS = "coalesce(opened, 0) + coalesce(failed, 0)"


def summarize(tables: Tables, facts: Facts, found: Findings) -> Summary:
    """Build the summary of the rows that `tables` holds, i.e. of those in the bundle."""
    query, observed = _Query(tables), tables.observed
    states = RowType.TCP_STATE in observed.rows
    return Summary(
        **{one.name: getattr(facts, one.name) for one in fields(facts)},
        **{name: getattr(found, name) for name in Findings.model_fields},
        processes=_processes(query),
        talkers=_talkers(query),
        flows=_flow_peers(query),
        connects=_connects(query) if RowType.CONNECT in observed.rows else None,
        tcp_states=_matrix(query) if states else None,
        stock_start=_inventory(query, "start") if observed.inventory else None,
        stock_end=_inventory(query, "end") if observed.inventory else None,
        retransmits=_retransmits(query, known=observed.retransmits),
    )


class _Query:
    """Runs SQL and returns dictionaries."""

    def __init__(self, tables: Tables) -> None:
        self._con = tables.con

    def __call__(self, sql: str) -> list[dict[str, Any]]:
        return records(self._con, sql)

    def top(self, sql: str, order: str) -> tuple[list[dict[str, Any]], int]:
        """Return the first groups by `order`, and the number of groups left out.

        An unknown figure is None, any other unknown value is "-".
        """
        found = self(
            f"SELECT *, count(*) OVER () AS groups FROM ({sql}) ORDER BY {order}"
            f" LIMIT {LIST_ENTRIES}"
        )
        groups = found[0]["groups"] if found else 0
        shown = [
            {
                name: UNKNOWN if value is None and name not in _FIGURES else value
                for name, value in row.items()
                if name != "groups"
            }
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
    by_bytes, left_out = query.top(talkers, f"{_BYTES} DESC, {ties}")
    by_connections, _ = query.top(
        f"SELECT * FROM ({talkers}) WHERE {_CONNECTIONS} > 0", f"{_CONNECTIONS} DESC, {ties}"
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
        f"{_BYTES} DESC, tgid, comm, uid, peer, proto",
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


def _inventory(query: _Query, moment: str) -> Inventory:
    sockets = f"FROM inventory s JOIN owners o USING (owner) WHERE moment = '{moment}'"
    top, left_out = query.top(
        f"""SELECT tgid, comm, uid, net AS netns, count(*) AS sockets, histogram(state) AS states
            {sockets} GROUP BY tgid, comm, uid, net""",
        "sockets DESC, tgid, comm, uid, netns",
    )
    states = query(f"SELECT state, count(*) AS count {sockets} GROUP BY ALL ORDER BY ALL")
    return Inventory(
        states={row["state"]: row["count"] for row in states},
        owners=tuple(InventoryOwner(**row) for row in top),
        left_out=left_out,
    )


def _retransmits(query: _Query, *, known: bool) -> Retransmits:
    """`known`: segments other than SYN-ACKs were observed, too."""
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
    if not known:
        total = dict.fromkeys(total)
    return Retransmits(top=tuple(Retransmitter(**row) for row in top), left_out=left_out, **total)
