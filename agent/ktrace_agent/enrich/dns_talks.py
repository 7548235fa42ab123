# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - every part of a statement is a constant or a number
"""DNS over UDP from the times of sends and receives; no payload is looked at.

A query is a datagram to port 53, an answer one from there. Both belong to a talk: one socket
and one server. Within a talk a query after a silence opens a new try, and the k-th answer of a
try belongs to its k-th query. Where more than one was in flight nobody can tell which answer is
whose: such pairs are `ambiguous`. A process that receives is what is seen, not the packet.

prepare() makes these tables from `rows` and `flows`:

dns_pairs     one line a query: talk, n, ts, answer_n (NULL: none), rtt_us, ambiguous
dns_answers   one line an answer that belongs to a query: n, query_n, rtt_us, ambiguous
dns_clients   one line a process and server: what it asked and got, what went wrong
"""

from datetime import datetime, timedelta
from typing import Any

import duckdb

from ktrace_api.thresholds import Thresholds

PORT = 53
"""Multicast DNS (5353) has no one server that owes an answer."""

# Numbers instead of texts: there may be a million of them. `client` is a process with a server.
_MESSAGES = f"""
CREATE OR REPLACE TEMP TABLE dns_messages AS
SELECT n, ts, type = 'udp_send' AS asked, coalesce(errno, 0) <> 0 AS failed,
  if(sock IS NULL, hash(net, tgid, local_ip, local_port), hash(sock)) AS socket,
  if(remote_port IS NULL, NULL, hash(net, tgid, remote_ip)) AS client,
  if(remote_port IS NULL, NULL, hash(socket, remote_ip)) AS talk
FROM rows
WHERE type IN ('udp_send', 'udp_recv') AND ts IS NOT NULL AND n IS NOT NULL
  AND (remote_port = {PORT} OR (remote_port IS NULL AND type = 'udp_recv'))
  AND local_port IS DISTINCT FROM {PORT}
  AND NOT coalesce(list_has_any(flags, ['PEEK', 'ERRQUEUE', 'CORKED']), false)
"""
# A plain recv() on an unconnected socket names nobody: the server that was asked last.
_NAMED = """
CREATE OR REPLACE TEMP TABLE dns_unnamed AS
SELECT m.* REPLACE (q.client AS client, q.talk AS talk)
FROM (SELECT * FROM dns_messages WHERE talk IS NULL) m
ASOF JOIN (SELECT socket, n, client, talk FROM dns_messages WHERE asked) q
  ON m.socket = q.socket AND m.n >= q.n;
DELETE FROM dns_messages WHERE talk IS NULL;
INSERT INTO dns_messages SELECT * FROM dns_unnamed;
DROP TABLE dns_unnamed
"""
_WHO = f"""
CREATE OR REPLACE TEMP TABLE dns_who AS
SELECT hash(net, tgid, remote_ip) AS client, any_value(net) AS net, any_value(tgid) AS tgid,
  any_value(comm) AS comm, any_value(pod) AS pod, any_value(namespace) AS namespace,
  any_value(remote_ip) AS remote_ip
FROM rows WHERE type IN ('udp_send', 'udp_recv') AND remote_port = {PORT}
  AND local_port IS DISTINCT FROM {PORT}
GROUP BY ALL
"""
_SHAPES = """
CREATE OR REPLACE TEMP TABLE dns_shapes AS
SELECT talk, any_value(socket) AS socket, any_value(client) AS client,
  count(*) FILTER (WHERE asked AND NOT failed) AS queries,
  count(*) FILTER (WHERE NOT asked AND NOT failed) AS answers,
  count(*) FILTER (WHERE asked AND failed) AS unsent, count(*) FILTER (WHERE failed) AS errored,
  min(n) FILTER (WHERE asked AND NOT failed) AS query_n,
  min(ts) FILTER (WHERE asked AND NOT failed) AS query_ts,
  max(n) FILTER (WHERE NOT asked AND NOT failed) AS answer_n,
  max(ts) FILTER (WHERE NOT asked AND NOT failed) AS answer_ts,
  queries = 1 AND (answers = 0 OR answers = 1 AND answer_n > query_n) AS simple
FROM dns_messages GROUP BY talk
"""
_ORDERED = """
CREATE OR REPLACE TEMP TABLE dns_ordered AS
WITH stepped AS (
  SELECT talk, n, ts, asked, coalesce(asked AND date_diff('microsecond',
      lag(ts) OVER (PARTITION BY talk ORDER BY n), ts) >= {retry_us}, false) AS again
  FROM dns_messages SEMI JOIN (SELECT talk FROM dns_shapes WHERE NOT simple AND queries > 0)
  USING (talk) WHERE NOT failed),
tried AS (
  SELECT *, sum(again::INTEGER) OVER (PARTITION BY talk ORDER BY n)::INTEGER AS try FROM stepped)
SELECT *, (sum(asked::INTEGER) OVER w)::INTEGER AS asked_so_far,
  (sum((NOT asked)::INTEGER) OVER w)::INTEGER AS answered_so_far
FROM tried WINDOW w AS (PARTITION BY talk, try ORDER BY n)
"""
# The first answers after a try without one may be late ones of that try.
_PAIRS = """
CREATE OR REPLACE TEMP TABLE dns_pairs AS
WITH pairs AS (
  SELECT q.talk, q.try, q.n, q.ts, a.n AS answer_n,
    date_diff('microsecond', q.ts, a.ts) AS rtt_us,
    coalesce(a.asked_so_far - a.answered_so_far > 0, false)
      OR q.asked_so_far - q.answered_so_far > 1 AS crowded
  FROM (SELECT * FROM dns_ordered WHERE asked) q
  LEFT JOIN (SELECT * FROM dns_ordered WHERE NOT asked) a
    ON q.talk = a.talk AND q.try = a.try AND q.asked_so_far = a.answered_so_far AND a.n > q.n),
after AS (
  SELECT talk, try FROM (
    SELECT talk, try,
      lag(count(answer_n) < count(*)) OVER (PARTITION BY talk ORDER BY try) AS unheard
    FROM pairs GROUP BY talk, try)
  WHERE unheard)
SELECT p.talk, s.client, p.n, p.ts, p.answer_n, p.rtt_us,
  answer_n IS NOT NULL AND (crowded OR r.talk IS NOT NULL) AS ambiguous,
  r.talk IS NOT NULL AS again
FROM pairs p LEFT JOIN after r ON p.talk = r.talk AND p.try = r.try
  JOIN (SELECT talk, client FROM dns_shapes) s ON p.talk = s.talk
UNION ALL
SELECT talk, client, query_n, query_ts, answer_n,
  date_diff('microsecond', query_ts, answer_ts), false, false
FROM dns_shapes WHERE simple;
DROP TABLE dns_ordered;
CREATE OR REPLACE TEMP VIEW dns_answers AS
SELECT answer_n AS n, n AS query_n, rtt_us, ambiguous FROM dns_pairs WHERE answer_n IS NOT NULL
"""
# Answers that came late, in a later try than their query, make up for it. Who lost a race
# between servers that one socket asked at once was not asked alone: `raced`.
_TALKS = """
CREATE OR REPLACE TEMP TABLE dns_overdue AS
WITH open AS (
  SELECT talk, min(n) AS n, min(ts) AS since, count(*) AS overdue FROM dns_pairs
  WHERE answer_n IS NULL AND ts <= {settled} GROUP BY talk),
paired AS (
  SELECT talk, count(answer_n) AS paired FROM dns_pairs SEMI JOIN open USING (talk) GROUP BY talk)
SELECT o.talk, s.client, s.socket, o.n, o.since, s.query_ts AS first_ts,
  o.overdue - (s.answers - p.paired) AS overdue, false AS raced
FROM open o JOIN dns_shapes s USING (talk) JOIN paired p USING (talk)
WHERE o.overdue > s.answers - p.paired;
UPDATE dns_overdue SET raced = true WHERE talk IN (
  SELECT d.talk FROM dns_overdue d JOIN dns_shapes o ON o.socket = d.socket
  WHERE o.talk <> d.talk AND o.answers > 0 AND o.queries > 0
    AND abs(epoch_us(o.query_ts) - epoch_us(d.first_ts)) <= {race_us})
"""
_STRANGERS = """
CREATE OR REPLACE TEMP TABLE dns_strangers AS
SELECT d.client, max(w.remote_ip) AS answered_by, sum(s.answers)::BIGINT AS strange_answers
FROM dns_overdue d JOIN dns_shapes s USING (socket) JOIN dns_who w ON s.client = w.client
WHERE s.queries = 0 AND s.answers > 0 GROUP BY d.client
"""
# Where they wait, what connection tracking says, and what resolvers on this node sent there.
_WAITING = f"""
CREATE OR REPLACE TEMP TABLE dns_waiting AS
SELECT d.client, d.talk, r.local_ip, r.local_port, r.remote_ip, r.ct_state
FROM (SELECT * FROM dns_overdue ORDER BY raced, talk LIMIT 10000) d
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
_CLIENTS = """
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
tracked AS (
  SELECT client, if(bool_or(ct_state = 'UNREPLIED'), 'UNREPLIED', max(ct_state)) AS ct_state
  FROM dns_waiting GROUP BY client),
broken AS (SELECT client, min(n, 8) AS error_rows FROM dns_messages WHERE failed GROUP BY client)
SELECT w.*, queries, answers, unsent, errored, coalesce(unanswered, 0) AS unanswered,
  coalesce(raced, 0) AS raced, coalesce(retries, 0) AS retries,
  coalesce(ambiguous, 0) AS ambiguous, since, coalesce(open_rows, []) AS open_rows,
  coalesce(error_rows, []) AS error_rows, ct_state, coalesce(answered_by, sent_by) AS answered_by,
  coalesce(strange_answers, 0) AS strange_answers, coalesce(answers_sent, 0) AS answers_sent,
  coalesce(sent_rows, []) AS sent_rows
FROM asked JOIN dns_who w USING (client) LEFT JOIN paired USING (client)
  LEFT JOIN late USING (client) LEFT JOIN tracked USING (client) LEFT JOIN broken USING (client)
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

# Sampling and losses break up pairs; the kernel's own counts per flow do not suffer.
_CLIENTS_BY_FLOWS = f"""
CREATE OR REPLACE TEMP TABLE dns_clients AS
WITH asked AS (
  SELECT *, greatest(coalesce(tx_calls, 0), 0) AS sent, greatest(coalesce(rx_calls, 0), 0) AS got
  FROM flows WHERE proto = 'udp' AND remote_port = {PORT} AND local_port IS DISTINCT FROM {PORT}),
unnamed AS (
  SELECT net, tgid, local_port, sum(rx_calls) AS got FROM flows
  WHERE proto = 'udp' AND remote_port IS NULL GROUP BY ALL),
counted AS (
  SELECT a.*, CASE WHEN a.last_ts > {{settled}} THEN 0
    ELSE greatest(a.sent::HUGEINT - a.got - coalesce(u.got, 0), 0) END AS overdue
  FROM asked a LEFT JOIN unnamed u ON a.net IS NOT DISTINCT FROM u.net
    AND a.tgid IS NOT DISTINCT FROM u.tgid AND a.local_port = u.local_port),
shown AS (
  SELECT client, min(n, 8) AS shown FROM dns_messages WHERE asked GROUP BY ALL)
SELECT hash(c.net, c.tgid, c.remote_ip) AS client, c.net, c.tgid, max(comm) AS comm,
  max(pod) AS pod, max(namespace) AS namespace,
  c.remote_ip, sum(sent)::BIGINT AS queries, sum(least(got, sent))::BIGINT AS answers,
  sum(overdue)::BIGINT AS unanswered, 0::BIGINT AS raced, 0::BIGINT AS retries,
  0::BIGINT AS ambiguous, 0::BIGINT AS unsent, 0::BIGINT AS errored,
  min(first_ts) FILTER (WHERE overdue > 0) AS since,
  coalesce(any_value(s.shown), []) AS open_rows, []::BIGINT[] AS error_rows,
  CASE WHEN bool_or(ct_state = 'UNREPLIED' AND overdue > 0) THEN 'UNREPLIED'
    ELSE max(ct_state) FILTER (WHERE overdue > 0) END AS ct_state,
  NULL::VARCHAR AS answered_by, 0::BIGINT AS strange_answers, 0::BIGINT AS answers_sent,
  []::BIGINT[] AS sent_rows
FROM counted c LEFT JOIN shown s ON hash(c.net, c.tgid, c.remote_ip) = s.client
GROUP BY c.net, c.tgid, c.remote_ip HAVING sum(sent) > 0
"""


_TIMED = f"""
INSERT INTO round_trips
SELECT a.n, a.rtt_us, if(a.ambiguous OR NOT {{sure}}, 'ambiguous', 'heuristic')
FROM dns_answers a JOIN events e ON a.n = e.n JOIN kinds k USING (kind)
WHERE k.has_peer AND e.remote_port = {PORT};
DROP VIEW dns_answers;
DROP TABLE dns_pairs;
DROP TABLE dns_shapes;
DROP TABLE dns_who;
DROP TABLE dns_messages
"""


def time_answers(con: duckdb.DuckDBPyConnection, limits: Thresholds, *, sure: bool) -> None:
    """Fill round_trips (layout.py) with the time of each answer from port 53 that has a query.

    With sure=False (rows were lost) every pair is ambiguous.
    """
    if con.execute(f"SELECT 1 FROM events WHERE remote_port = {PORT} LIMIT 1").fetchone():
        _pair(con, limits)
        con.execute(_TIMED.format(sure=sure))


def _pair(con: duckdb.DuckDBPyConnection, limits: Thresholds) -> None:
    con.execute(_MESSAGES)
    con.execute(_NAMED)
    con.execute(_WHO)
    con.execute(_SHAPES)
    con.execute(_ORDERED.format(retry_us=round(limits.dns_retry_s * 1e6)))
    con.execute(_PAIRS)


def prepare(
    con: duckdb.DuckDBPyConnection, end: datetime | None, limits: Thresholds, *, exact: bool
) -> None:
    """Make the tables of the module's docstring.

    `end` is the last moment that the rows cover (UTC, naive). With exact=False (sampled or lost
    rows) who got no answer is counted from the flows, and pairs are no times.
    """
    _pair(con, limits)
    settled = _settled(con, end, limits)
    con.execute(_TALKS.format(settled=settled, race_us=round(limits.dns_race_s * 1e6)))
    con.execute(_STRANGERS)
    con.execute(_WAITING)
    con.execute(_CLIENTS if exact else _CLIENTS_BY_FLOWS.format(settled=settled))
    con.execute(_ERRORS)


def _settled(con: duckdb.DuckDBPyConnection, end: datetime | None, limits: Thresholds) -> str:
    """SQL of the time after which a query may still be answered."""
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


def records(con: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    """The lines of a query, by column."""
    found = con.execute(sql)
    names = [column[0] for column in found.description or ()]
    return [dict(zip(names, values, strict=True)) for values in found.fetchall()]
