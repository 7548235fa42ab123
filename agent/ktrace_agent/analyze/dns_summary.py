# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - every part of a statement is a constant or a number
"""Summarizes DNS on this node: the tables of dns_clients.py -> DnsSummary."""

from datetime import UTC
from typing import Any, Literal

import duckdb

from ktrace_agent.analyze.dns_clients import FAILING, WORST_FIRST, Directions
from ktrace_agent.tables.ask import records
from ktrace_agent.tables.dns_pairs import PORT
from ktrace_api.finding import (
    MAX_NUMBERS,
    MAX_RESOLVERS,
    MAX_SUSPECTS,
    NAME_CHARS,
    DnsSummary,
    DnsSuspect,
    Resolver,
    RoundTrip,
)
from ktrace_api.names import UNKNOWN

_RESOLVERS = """
WITH answered AS (
  SELECT w.remote_ip, p.rtt_us, p.ambiguous
  FROM dns_pairs p JOIN dns_who w USING (client) WHERE answer_n IS NOT NULL AND {times}),
measured AS (
  SELECT remote_ip, count(*) AS every, count(*) FILTER (WHERE NOT ambiguous) AS clear,
    quantile_disc(rtt_us, [0, 0.5, 0.9, 0.99, 1]) AS of_every,
    quantile_disc(rtt_us, [0, 0.5, 0.9, 0.99, 1]) FILTER (WHERE NOT ambiguous) AS of_clear
  FROM answered GROUP BY remote_ip),
times AS (
  SELECT remote_ip, if(clear > 0, clear, every) AS count,
    if(clear > 0, of_clear, of_every) AS quantiles FROM measured),
met AS (
  SELECT remote_ip, count(*) AS clients, sum(queries)::BIGINT AS queries,
    sum(answers)::BIGINT AS answers, sum(unanswered)::BIGINT AS unanswered,
    sum(ambiguous)::BIGINT AS ambiguous FROM dns_clients GROUP BY remote_ip)
SELECT m.*, t.* EXCLUDE (remote_ip), count(*) OVER () AS groups
FROM met m LEFT JOIN times t ON m.remote_ip = t.remote_ip
ORDER BY unanswered DESC, queries DESC, m.remote_ip LIMIT {limit}
"""
_SUSPECTS = f"""
SELECT c.*, e.errors, count(*) OVER () AS groups
FROM dns_clients c LEFT JOIN dns_errors e USING (client)
WHERE {FAILING} ORDER BY {WORST_FIRST}, remote_ip, net LIMIT {MAX_SUSPECTS}
"""


def summarize(
    con: duckdb.DuckDBPyConnection,
    *,
    timed: bool,
    observed: Directions,
    attempts: bool,
) -> DnsSummary:
    """Summarize the tables of dns_clients.prepare(); with timed=False pairs are not round trips.

    A figure is None if it follows from calls that were not `observed`, or from connection attempts
    if `attempts` is false.
    """
    (totals,) = records(
        con,
        """SELECT coalesce(sum(queries), 0)::BIGINT AS queries,
             coalesce(sum(answers), 0)::BIGINT AS answers,
             coalesce(sum(unanswered), 0)::BIGINT AS unanswered,
             coalesce(sum(ambiguous), 0)::BIGINT AS ambiguous,
             coalesce(sum(retries), 0)::BIGINT AS retries FROM dns_clients""",
    )
    (tcp,) = records(
        con,
        f"""SELECT count(*) AS tcp_connects,
             count(*) FILTER (WHERE result NOT IN ('established', 'pending')) AS tcp_failed
            FROM rows WHERE type = 'connect' AND remote_port = {PORT}""",
    )
    if not observed.sent:
        totals = dict.fromkeys(totals)
    elif not observed.received:
        totals = dict.fromkeys(totals) | {"queries": totals["queries"]}
    if not attempts:
        tcp = dict.fromkeys(tcp)
    times = _RESOLVERS.format(times=timed, limit=MAX_RESOLVERS)
    resolvers = records(con, times)
    suspects = records(con, _SUSPECTS)
    return DnsSummary(
        **totals,
        **tcp,
        resolvers=tuple(_resolver(row) for row in resolvers),
        resolvers_left_out=resolvers[0]["groups"] - len(resolvers) if resolvers else 0,
        suspects=tuple(_suspect(row) for row in suspects),
        suspects_left_out=suspects[0]["groups"] - len(suspects) if suspects else 0,
    )


def resolver_name(address: str | None) -> str:
    """`192.0.2.53:53`, `[2001:db8::53]:53`."""
    if address is None:
        return UNKNOWN
    shown = f"[{address}]" if ":" in address else address
    return f"{shown[: NAME_CHARS - 3]}:{PORT}"


def _text(value: str | None, limit: int = NAME_CHARS) -> str:
    return UNKNOWN if value is None else value[:limit]


def _number(value: int | None) -> int | Literal["-"]:
    return "-" if value is None or value < 0 else value


def _resolver(row: dict[str, Any]) -> Resolver:
    rtt = None
    if row["count"]:
        least, p50, p90, p99, most = row["quantiles"]
        rtt = RoundTrip(count=row["count"], min=least, p50=p50, p90=p90, p99=p99, max=most)
    return Resolver(
        peer=resolver_name(row["remote_ip"]),
        clients=row["clients"],
        queries=row["queries"],
        answers=row["answers"],
        unanswered=row["unanswered"],
        ambiguous=row["ambiguous"],
        rtt_us=rtt,
    )


def _suspect(row: dict[str, Any]) -> DnsSuspect:
    since = row["since"]
    return DnsSuspect(
        tgid=_number(row["tgid"]),
        comm=_text(row["comm"]),
        pod=_text(row["pod"]),
        namespace=_text(row["namespace"]),
        netns=_number(row["net"]),
        peer=resolver_name(row["remote_ip"]),
        queries=row["queries"],
        answers=row["answers"],
        unanswered=row["unanswered"],
        retries=row["retries"],
        since=None if since is None else since.replace(tzinfo=UTC),
        ct_state=_text(row["ct_state"]),
        answered_by=_text(row["answered_by"]),
        answers_sent=row["answers_sent"],
        errors=dict([*(row["errors"] or {}).items()][:MAX_NUMBERS]),
    )
