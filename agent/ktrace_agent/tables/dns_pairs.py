# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - every part of a statement is a constant or a number
"""Pairs DNS queries and answers over UDP by the times of send and receive calls.

No payload is read. A query is a datagram to port 53, an answer is one from port 53. An exchange is
all datagrams between one socket and one server. In an exchange, a query after a silence starts a
new try, and the k-th answer of a try belongs to its k-th query. If several queries were in flight,
the answers cannot be assigned, and the pairs are `ambiguous`. An answer has the time at which the
process received it, not that of the packet.

pair() creates these tables from `rows`:

dns_messages  one line per datagram: n, ts, asked, failed; socket, client (a process and a server)
              and exchange as numbers
dns_who       client -> net, tgid, comm, cgroup_id, pod, namespace, remote_ip
dns_shapes    one line per exchange: number of queries and answers, the first and the last of each
dns_pairs     one line per query: exchange, n, ts, answer_n (NULL: none), rtt_us, ambiguous
dns_answers   one line per paired answer: n, query_n, rtt_us, ambiguous
"""

import duckdb

from ktrace_api.thresholds import Thresholds

PORT = 53
"""Not 5353: multicast DNS has no single server that must answer."""

# Numbers instead of texts: there may be a million lines. `client` is a process and a server.
_MESSAGES = f"""
CREATE OR REPLACE TEMP TABLE dns_messages AS
SELECT n, ts, type = 'udp_send' AS asked, coalesce(errno, 0) <> 0 AS failed,
  if(sock IS NULL, hash(net, tgid, local_ip, local_port), hash(sock)) AS socket,
  if(remote_port IS NULL, NULL, hash(net, tgid, remote_ip)) AS client,
  if(remote_port IS NULL, NULL, hash(socket, remote_ip)) AS exchange
FROM rows
WHERE type IN ('udp_send', 'udp_recv') AND ts IS NOT NULL AND n IS NOT NULL
  AND (remote_port = {PORT} OR (remote_port IS NULL AND type = 'udp_recv'))
  AND local_port IS DISTINCT FROM {PORT}
  AND NOT coalesce(list_has_any(flags, ['PEEK', 'ERRQUEUE', 'CORKED']), false)
"""
# A plain recv() on an unconnected socket has no peer: assume the server that was queried last.
_NAMED = """
CREATE OR REPLACE TEMP TABLE dns_unnamed AS
SELECT m.* REPLACE (q.client AS client, q.exchange AS exchange)
FROM (SELECT * FROM dns_messages WHERE exchange IS NULL) m
ASOF JOIN (SELECT socket, n, client, exchange FROM dns_messages WHERE asked) q
  ON m.socket = q.socket AND m.n >= q.n;
DELETE FROM dns_messages WHERE exchange IS NULL;
INSERT INTO dns_messages SELECT * FROM dns_unnamed;
DROP TABLE dns_unnamed
"""
_WHO = f"""
CREATE OR REPLACE TEMP TABLE dns_who AS
SELECT hash(net, tgid, remote_ip) AS client, any_value(net) AS net, any_value(tgid) AS tgid,
  any_value(comm) AS comm, any_value(cgroup_id) AS cgroup_id,
  any_value(pod) AS pod, any_value(namespace) AS namespace, any_value(remote_ip) AS remote_ip
FROM rows WHERE type IN ('udp_send', 'udp_recv') AND remote_port = {PORT}
  AND local_port IS DISTINCT FROM {PORT}
GROUP BY ALL
"""
_SHAPES = """
CREATE OR REPLACE TEMP TABLE dns_shapes AS
SELECT exchange, any_value(socket) AS socket, any_value(client) AS client,
  count(*) FILTER (WHERE asked AND NOT failed) AS queries,
  count(*) FILTER (WHERE NOT asked AND NOT failed) AS answers,
  count(*) FILTER (WHERE asked AND failed) AS unsent, count(*) FILTER (WHERE failed) AS errored,
  min(n) FILTER (WHERE asked AND NOT failed) AS query_n,
  min(ts) FILTER (WHERE asked AND NOT failed) AS query_ts,
  max(n) FILTER (WHERE NOT asked AND NOT failed) AS answer_n,
  max(ts) FILTER (WHERE NOT asked AND NOT failed) AS answer_ts,
  queries = 1 AND (answers = 0 OR answers = 1 AND answer_n > query_n) AS simple
FROM dns_messages GROUP BY exchange
"""
_ORDERED = """
CREATE OR REPLACE TEMP TABLE dns_ordered AS
WITH stepped AS (
  SELECT exchange, n, ts, asked, coalesce(asked AND date_diff('microsecond',
      lag(ts) OVER (PARTITION BY exchange ORDER BY n), ts) >= {retry_us}, false) AS again
  FROM dns_messages SEMI JOIN (SELECT exchange FROM dns_shapes WHERE NOT simple AND queries > 0)
  USING (exchange) WHERE NOT failed),
tried AS (
  SELECT *, sum(again::INTEGER) OVER (PARTITION BY exchange ORDER BY n)::INTEGER AS try
  FROM stepped)
SELECT *, (sum(asked::INTEGER) OVER w)::INTEGER AS asked_so_far,
  (sum((NOT asked)::INTEGER) OVER w)::INTEGER AS answered_so_far
FROM tried WINDOW w AS (PARTITION BY exchange, try ORDER BY n)
"""
# The first answers after a try without answers may be late answers to that try.
_PAIRS = """
CREATE OR REPLACE TEMP TABLE dns_pairs AS
WITH pairs AS (
  SELECT q.exchange, q.try, q.n, q.ts, a.n AS answer_n,
    date_diff('microsecond', q.ts, a.ts) AS rtt_us,
    coalesce(a.asked_so_far - a.answered_so_far > 0, false)
      OR q.asked_so_far - q.answered_so_far > 1 AS crowded
  FROM (SELECT * FROM dns_ordered WHERE asked) q
  LEFT JOIN (SELECT * FROM dns_ordered WHERE NOT asked) a
    ON q.exchange = a.exchange AND q.try = a.try AND q.asked_so_far = a.answered_so_far
      AND a.n > q.n),
after AS (
  SELECT exchange, try FROM (
    SELECT exchange, try,
      lag(count(answer_n) < count(*)) OVER (PARTITION BY exchange ORDER BY try) AS unheard
    FROM pairs GROUP BY exchange, try)
  WHERE unheard)
SELECT p.exchange, s.client, p.n, p.ts, p.answer_n, p.rtt_us,
  answer_n IS NOT NULL AND (crowded OR r.exchange IS NOT NULL) AS ambiguous,
  r.exchange IS NOT NULL AS again
FROM pairs p LEFT JOIN after r ON p.exchange = r.exchange AND p.try = r.try
  JOIN (SELECT exchange, client FROM dns_shapes) s ON p.exchange = s.exchange
UNION ALL
SELECT exchange, client, query_n, query_ts, answer_n,
  date_diff('microsecond', query_ts, answer_ts), false, false
FROM dns_shapes WHERE simple;
DROP TABLE dns_ordered;
CREATE OR REPLACE TEMP VIEW dns_answers AS
SELECT answer_n AS n, n AS query_n, rtt_us, ambiguous FROM dns_pairs WHERE answer_n IS NOT NULL
"""


_TIMED = f"""
INSERT INTO round_trips
SELECT a.n, a.rtt_us, if(a.ambiguous OR NOT {{sure}}, 'ambiguous', 'heuristic')
FROM dns_answers a JOIN events e ON a.n = e.n JOIN kinds k USING (kind)
WHERE k.has_peer AND e.remote_port = {PORT}
"""


def time_answers(con: duckdb.DuckDBPyConnection, *, sure: bool) -> None:
    """Fill round_trips (layout.py) with the time of each answer from port 53 that has a query.

    pair() must have run. With sure=False (rows were lost) every pair is ambiguous.
    """
    con.execute(_TIMED.format(sure=sure))


def pair(con: duckdb.DuckDBPyConnection, limits: Thresholds) -> None:
    """Create the tables of the module's docstring."""
    con.execute(_MESSAGES)
    con.execute(_NAMED)
    con.execute(_WHO)
    con.execute(_SHAPES)
    con.execute(_ORDERED.format(retry_us=round(limits.dns_retry_s * 1e6)))
    con.execute(_PAIRS)
