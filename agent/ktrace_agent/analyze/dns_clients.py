# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - every part of a statement is a constant or a number
"""DNS clients and servers: queries, answers, failures.

prepare() creates these tables from those of tables/dns_pairs.py and from `flows`:

dns_clients   one line per process and server: queries, answers and failures
dns_errors    client -> its errors by name, the most frequent first
"""

from datetime import datetime, timedelta
from typing import NamedTuple

import duckdb

from ktrace_agent.tables.dns_pairs import PORT
from ktrace_api.thresholds import Thresholds

FAILING = "(unanswered > 0 OR errored > 0)"
"""SQL condition on dns_clients: without an answer, or a send or receive failed."""
WORST_FIRST = "unanswered DESC, errored DESC, since DESC NULLS LAST, tgid DESC"
"""Among equals the latest first: a process that was active a moment ago may still be alive."""
CT_STATE = "if(bool_or(ct_state = 'UNREPLIED'), 'UNREPLIED', max(ct_state))"
"""SQL aggregate over several conntrack entries: UNREPLIED if one of them is."""

# Late answers, those in a later try than their query, count for it. If one socket queried several
# servers at once, the slower ones are `raced`.
_OVERDUE = """
CREATE OR REPLACE TEMP TABLE dns_overdue AS
WITH open AS (
  SELECT exchange, min(n) AS n, min(ts) AS since, count(*) AS overdue FROM dns_pairs
  WHERE answer_n IS NULL AND ts <= {settled} GROUP BY exchange),
paired AS (
  SELECT exchange, count(answer_n) AS paired FROM dns_pairs
  SEMI JOIN open USING (exchange) GROUP BY exchange)
SELECT o.exchange, s.client, s.socket, o.n, o.since, s.query_ts AS first_ts,
  o.overdue - (s.answers - p.paired) AS overdue, false AS raced
FROM open o JOIN dns_shapes s USING (exchange) JOIN paired p USING (exchange)
WHERE o.overdue > s.answers - p.paired;
UPDATE dns_overdue SET raced = true WHERE exchange IN (
  SELECT d.exchange FROM dns_overdue d JOIN dns_shapes o ON o.socket = d.socket
  WHERE o.exchange <> d.exchange AND o.answers > 0 AND o.queries > 0
    AND abs(epoch_us(o.query_ts) - epoch_us(d.first_ts)) <= {race_us})
"""
_STRANGERS = """
CREATE OR REPLACE TEMP TABLE dns_strangers AS
SELECT d.client, max(w.remote_ip) AS answered_by, sum(s.answers)::BIGINT AS strange_answers
FROM dns_overdue d JOIN dns_shapes s USING (socket) JOIN dns_who w ON s.client = w.client
WHERE s.queries = 0 AND s.answers > 0 GROUP BY d.client
"""
# Sockets still waiting, their conntrack state, and replies that resolvers on this node sent there.
_WAITING = f"""
CREATE OR REPLACE TEMP TABLE dns_waiting AS
SELECT d.client, d.exchange, r.local_ip, r.local_port, r.remote_ip, r.ct_state
FROM (SELECT * FROM dns_overdue ORDER BY raced, exchange LIMIT 10000) d
JOIN rows r ON r.n = d.n;
CREATE OR REPLACE TEMP TABLE dns_sent AS
WITH replies AS (SELECT n, local_ip, remote_ip, remote_port FROM rows
  WHERE type = 'udp_send' AND local_port = {PORT} AND coalesce(errno, 0) = 0
    AND remote_port IN (SELECT local_port FROM dns_waiting))
SELECT w.client, count(*) AS answers_sent, min(r.n, 2) AS sent_rows,
  any_value(r.local_ip) FILTER (WHERE r.local_ip <> w.remote_ip
    AND r.local_ip NOT IN ('0.0.0.0', '::')) AS sent_by
FROM dns_waiting w JOIN replies r ON r.remote_port = w.local_port
  AND (r.remote_ip = w.local_ip OR w.local_ip IN ('0.0.0.0', '::'))
GROUP BY w.client
"""
# Clients that never received anything did not lose a race.
_SILENT = """
UPDATE dns_overdue SET raced = false WHERE raced AND client IN (
  SELECT client FROM dns_waiting WHERE ct_state = 'UNREPLIED'
  EXCEPT SELECT client FROM dns_shapes WHERE answers > 0)
"""
_CLIENTS = f"""
CREATE OR REPLACE TEMP TABLE dns_clients AS
WITH asked AS (
  SELECT client, sum(queries)::BIGINT AS queries, sum(answers)::BIGINT AS answers,
    sum(unsent)::BIGINT AS unsent, sum(errored)::BIGINT AS errored
  FROM dns_shapes GROUP BY client),
paired AS (
  SELECT client, count(*) FILTER (WHERE ambiguous) AS ambiguous,
    count(*) FILTER (WHERE again) AS retries FROM dns_pairs GROUP BY client),
late AS (
  SELECT client, coalesce(sum(overdue) FILTER (WHERE NOT raced), 0)::BIGINT AS unanswered,
    coalesce(sum(overdue) FILTER (WHERE raced), 0)::BIGINT AS raced,
    min(since) FILTER (WHERE NOT raced) AS since, min(n, 8) FILTER (WHERE NOT raced) AS open_rows
  FROM dns_overdue GROUP BY client),
states AS (
  SELECT client, {CT_STATE} AS ct_state FROM dns_waiting GROUP BY client),
broken AS (SELECT client, min(n, 8) AS error_rows FROM dns_messages WHERE failed GROUP BY client)
SELECT w.*, queries, answers, unsent, errored, coalesce(unanswered, 0) AS unanswered,
  coalesce(raced, 0) AS raced, coalesce(retries, 0) AS retries,
  coalesce(ambiguous, 0) AS ambiguous, since, coalesce(open_rows, []) AS open_rows,
  coalesce(error_rows, []) AS error_rows, ct_state, coalesce(answered_by, sent_by) AS answered_by,
  coalesce(strange_answers, 0) AS strange_answers, coalesce(answers_sent, 0) AS answers_sent,
  coalesce(sent_rows, []) AS sent_rows
FROM asked JOIN dns_who w USING (client) LEFT JOIN paired USING (client)
  LEFT JOIN late USING (client) LEFT JOIN states USING (client) LEFT JOIN broken USING (client)
  LEFT JOIN dns_strangers USING (client) LEFT JOIN dns_sent USING (client)
WHERE queries > 0 OR unsent > 0
"""
_ERRORS = """
CREATE OR REPLACE TEMP TABLE dns_errors AS
SELECT client, map_from_entries(list((error, count) ORDER BY count DESC, error)) AS errors
FROM (SELECT m.client, r.error, count(*) AS count
      FROM (SELECT n, client FROM dns_messages WHERE failed) m JOIN rows r ON m.n = r.n
      WHERE r.error IS NOT NULL GROUP BY ALL) GROUP BY client
"""

# Sampling and losses break pairs apart. Counts per flow are made in the kernel and stay exact. A
# plain recv() on an unconnected socket names no server: such answers are `unnamed`, and count for
# the queries of the socket that still lack one.
_CLIENTS_BY_FLOWS = f"""
CREATE OR REPLACE TEMP TABLE dns_clients AS
WITH asked AS (
  SELECT *, greatest(coalesce(tx_calls, 0), 0) AS sent, greatest(coalesce(rx_calls, 0), 0) AS got
  FROM flows WHERE proto = 'udp' AND remote_port = {PORT} AND local_port IS DISTINCT FROM {PORT}),
unnamed AS (
  SELECT net, tgid, local_port, sum(rx_calls) AS got FROM flows
  WHERE proto = 'udp' AND remote_port IS NULL GROUP BY ALL),
heard AS (
  SELECT a.*, coalesce(u.got, 0) AS unnamed,
    greatest(sent - a.got, 0) AS room, sum(room) OVER (
      PARTITION BY a.net, a.tgid, a.local_port ORDER BY a.first_ts, a.remote_ip, a.local_ip
      ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before,
    least(sent, a.got + least(room, greatest(unnamed - coalesce(before, 0), 0))) AS answered
  FROM asked a LEFT JOIN unnamed u ON a.net IS NOT DISTINCT FROM u.net
    AND a.tgid IS NOT DISTINCT FROM u.tgid AND a.local_port = u.local_port),
counted AS (
  SELECT a.*, CASE WHEN a.last_ts > {{settled}} THEN 0
    ELSE greatest(a.sent::HUGEINT - a.got - a.unnamed, 0) END AS overdue,
    overdue > 0 AND first_ts IS NOT NULL AND coalesce(bool_or(a.got > 0) OVER (
      PARTITION BY a.net, a.tgid, a.local_port, if(local_ip IN ('0.0.0.0', '::'), '', local_ip)
      ORDER BY epoch_us(first_ts) RANGE BETWEEN {{race_us}} PRECEDING AND {{race_us}} FOLLOWING
      EXCLUDE CURRENT ROW), false) AS outrun
  FROM heard a),
judged AS (
  SELECT *, outrun AND NOT (bool_or(coalesce(ct_state = 'UNREPLIED' AND overdue > 0, false)) OVER w
    AND sum(got) OVER w = 0) AS lost
  FROM counted WINDOW w AS (PARTITION BY net, tgid, remote_ip)),
shown AS (
  SELECT client, min(n, 8) AS shown FROM dns_messages WHERE asked GROUP BY ALL)
SELECT hash(c.net, c.tgid, c.remote_ip) AS client, c.net, c.tgid, max(comm) AS comm,
  max(cgroup_id) AS cgroup_id, max(pod) AS pod, max(namespace) AS namespace,
  c.remote_ip, sum(sent)::BIGINT AS queries, sum(answered)::BIGINT AS answers,
  coalesce(sum(overdue) FILTER (WHERE NOT lost), 0)::BIGINT AS unanswered,
  coalesce(sum(overdue) FILTER (WHERE lost), 0)::BIGINT AS raced, 0::BIGINT AS retries,
  0::BIGINT AS ambiguous, 0::BIGINT AS unsent, 0::BIGINT AS errored,
  min(first_ts) FILTER (WHERE overdue > 0 AND NOT lost) AS since,
  coalesce(any_value(s.shown), []) AS open_rows, []::BIGINT[] AS error_rows,
  CASE WHEN bool_or(ct_state = 'UNREPLIED' AND overdue > 0) THEN 'UNREPLIED'
    ELSE max(ct_state) FILTER (WHERE overdue > 0) END AS ct_state,
  NULL::VARCHAR AS answered_by, 0::BIGINT AS strange_answers, 0::BIGINT AS answers_sent,
  []::BIGINT[] AS sent_rows
FROM judged c LEFT JOIN shown s ON hash(c.net, c.tgid, c.remote_ip) = s.client
GROUP BY c.net, c.tgid, c.remote_ip HAVING sum(sent) > 0
"""


# Without receives, nothing is known about answers: no query is unanswered.
_ANSWERS_UNKNOWN = """
UPDATE dns_clients SET answers = NULL, unanswered = NULL, raced = NULL, retries = NULL,
  ambiguous = NULL, since = NULL, open_rows = [], ct_state = NULL, answered_by = NULL,
  strange_answers = 0, answers_sent = 0, sent_rows = []
"""


class Directions(NamedTuple):
    """Which calls of UDP sockets a program records."""

    sent: bool
    received: bool

    @property
    def both(self) -> bool:
        """Whether queries can be compared with answers."""
        return self.sent and self.received


def prepare(
    con: duckdb.DuckDBPyConnection,
    end: datetime | None,
    limits: Thresholds,
    *,
    exact: bool,
    observed: Directions,
) -> None:
    """Create the tables of the module's docstring; dns_pairs.pair() must have run.

    Without sends there are no queries and so no clients. Without receives, the columns about
    answers are NULL.

    `end` is the last moment that the rows cover (UTC, naive). With exact=False (rows were sampled
    or lost) unanswered queries are counted from the flows, and pairs are not round trips.
    """
    settled = _settled(con, end, limits)
    figures = {"settled": settled, "race_us": round(limits.dns_race_s * 1e6)}
    con.execute(_OVERDUE.format(**figures))
    con.execute(_STRANGERS)
    con.execute(_WAITING)
    con.execute(_SILENT)
    con.execute(_CLIENTS if exact else _CLIENTS_BY_FLOWS.format(**figures))
    if not observed.both:
        con.execute(_ANSWERS_UNKNOWN)
    con.execute(_ERRORS)


def _settled(con: duckdb.DuckDBPyConnection, end: datetime | None, limits: Thresholds) -> str:
    """Return as SQL the time after which a query may still be answered."""
    if end is None:
        return "TIMESTAMP '-infinity'"
    found = con.execute("SELECT quantile_disc(rtt_us, 0.99) FROM dns_pairs").fetchone()
    slowest = (found and found[0]) or 0
    grace = min(max(limits.dns_grace_s, 2 * slowest / 1e6), limits.dns_grace_max_s)
    try:
        settled = end - timedelta(seconds=grace)
    except OverflowError:
        settled = end
    return f"TIMESTAMP '{settled.isoformat(sep=' ')}'"
