# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - every part of a statement is a constant or a number
"""Tables of connection attempts by client and outcome."""

from ktrace_agent.analyze.findings.case import Case
from ktrace_agent.analyze.findings.wording import LOOPBACK, POOL, Row, share
from ktrace_api.thresholds import Thresholds

_CONSIDERED = 24
"""Maximum clients to examine per outcome; the summary has no space for more."""
_SECOND_US = 1_000_000

_RAW = """
CREATE OR REPLACE TEMP TABLE f_connects AS
WITH raw AS NOT MATERIALIZED (
  SELECT n, ts, hash(net, tgid, remote) AS process, net, tgid, cgroup_id, comm, pod, namespace,
    family, remote, remote_ip, remote_port, error, nat, ct_state,
    nullif(split_part(ct_reply, ' -> ', 1), '') AS backend,
    measure AS us, coalesce(measure, CASE WHEN result = 'pending' THEN {window_us} END) AS waited,
    CASE
      WHEN result = 'established' THEN 'established'
      WHEN result = 'denied' OR error IN ('EPERM', 'EACCES') THEN 'denied'
      WHEN error = 'ECONNREFUSED' THEN 'refused'
      WHEN error = 'ETIMEDOUT' THEN 'timeout'
      WHEN error IN ('EHOSTUNREACH', 'ENETUNREACH', 'ENETDOWN', 'EHOSTDOWN') THEN 'unreachable'
      WHEN error = 'EADDRNOTAVAIL' THEN 'no_port'
      WHEN result IN ('pending', 'abandoned', 'interrupted') AND waited >= {wait_us}
        THEN 'unanswered'
      ELSE 'other' END AS outcome
  FROM rows WHERE type = 'connect' AND n IS NOT NULL),
"""
# A process whose failures reach a limit is its own client; the others are pooled.
_CONNECTS = f"""
{_RAW}
processes AS (
  SELECT process, any_value(net) AS net, any_value(remote) AS remote,
    arg_min(cgroup_id, n) AS cgroup_id, arg_min(comm, n) AS comm,
    {{apart}} AS apart
  FROM raw GROUP BY process),
clients AS (SELECT process, if(apart, process, {POOL.format("remote")}) AS client FROM processes)
SELECT r.*, client FROM raw r JOIN clients USING (process)
"""
_FAILURES = ("unanswered", "timeout", "refused", "unreachable", "denied", "no_port")
_COUNTS = ", ".join(
    f"count(*) FILTER (WHERE outcome = '{name}') AS {name}" for name in ("established", *_FAILURES)
)
_CLIENTS = f"""
CREATE OR REPLACE TEMP TABLE f_clients AS
SELECT client, count(DISTINCT process) AS pooled, any_value(net) AS net,
  arg_max(tgid, n) AS tgid, arg_max(comm, n) AS comm, arg_max(cgroup_id, n) AS cgroup_id,
  any_value(pod) AS pod, any_value(namespace) AS namespace, any_value(remote) AS remote,
  any_value(remote_ip) AS remote_ip, any_value(remote_port) AS remote_port,
  any_value({LOOPBACK.format("remote_ip")}) AS loopback,
  any_value(family) AS family, max(nat) FILTER (WHERE nat IN ('dnat', 'both')) AS nat,
  count(*) AS connects, {_COUNTS},
  max(waited) FILTER (WHERE outcome = 'unanswered') AS longest,
  count(*) FILTER (WHERE outcome = 'unanswered' AND ct_state IN ('SYN_SENT', 'UNREPLIED'))
    AS tracked,
  max(n) FILTER (WHERE outcome = 'established') AS last_good
FROM f_connects GROUP BY client
"""
_WORST = f"""
FROM f_clients WHERE {{0}} > 0 ORDER BY {{0}} DESC, tgid, remote, net LIMIT {_CONSIDERED}
"""
_WATCHED = f"""
CREATE OR REPLACE TEMP TABLE f_watched AS
SELECT n, client, process, outcome, error, us, backend FROM f_connects
WHERE client IN (
  {" UNION ALL ".join(f"(SELECT client {_WORST.format(name)})" for name in _FAILURES)})
"""
# The latest process that failed represents the client: it may still be running.
_SUBJECTS = f"""
WITH worst AS (SELECT * {_WORST}),
failed AS (
  SELECT client, count(DISTINCT process) AS processes, max(n) AS n
  FROM f_watched WHERE outcome = '{{0}}' GROUP BY client)
SELECT w.* REPLACE (l.tgid AS tgid, l.comm AS comm), processes
FROM worst w JOIN failed f USING (client) JOIN f_connects l ON l.n = f.n
ORDER BY {{0}} DESC, w.tgid, w.remote, w.net
"""
_SLOW = f"""
WITH slow AS (
  SELECT client, count(*) AS good, count(*) FILTER (WHERE us >= {{wait_us}}) AS late,
    quantile_disc(us, [0, 0.5, 0.9, 1]) AS took, arg_max(n, us, 10) AS slowest,
    count(DISTINCT process) AS processes
  FROM f_connects WHERE outcome = 'established' AND us IS NOT NULL GROUP BY client
  HAVING count(*) FILTER (WHERE us >= {{wait_us}}) > 0 OR quantile_disc(us, 0.5) >= {{p50}}
  ORDER BY late DESC, good DESC LIMIT {_CONSIDERED})
SELECT c.*, s.* EXCLUDE (client) FROM slow s JOIN f_clients c USING (client)
ORDER BY late DESC, good DESC, tgid, remote, net
"""


def prepare(case: Case) -> None:
    """Create f_connects, f_clients and f_watched."""
    wait_us = round(case.limits.syn_wait_s * _SECOND_US)
    window_us = round(min(case.coverage.window_s, 1e9) * _SECOND_US)
    apart = _apart(case.limits, wait_us)
    case.con.execute(_CONNECTS.format(wait_us=wait_us, window_us=window_us, apart=apart))
    case.con.execute(_CLIENTS)
    case.con.execute(_WATCHED)


def _apart(limits: Thresholds, wait_us: int) -> str:
    """SQL condition: a process reaches a limit on its own."""
    counts = dict.fromkeys(_FAILURES, limits.min_count)
    counts |= {"refused": limits.refused_count, "no_port": limits.ephemeral_failures}
    ways = [
        f"count(*) FILTER (WHERE outcome = '{name}') >= {count}" for name, count in counts.items()
    ]
    good = "count(us) FILTER (WHERE outcome = 'established'"
    ways.append(f"{good} AND us >= {wait_us}) >= {limits.connect_slow_count}")
    half = f"2 * {good} AND us >= {limits.connect_slow_p50_us}) >= {good})"
    ways.append(f"{good}) >= {limits.connect_slow_count} AND {half}")
    return " OR ".join(ways)


def slow(case: Case) -> list[Row]:
    """Clients with slow handshakes and their latencies."""
    wait_us = round(case.limits.syn_wait_s * _SECOND_US)
    return case.query(_SLOW.format(wait_us=wait_us, p50=case.limits.connect_slow_p50_us))


def worst(case: Case, outcome: str) -> list[Row]:
    """Clients with the most attempts of this outcome.

    A client consists of `pooled` processes; `processes` of them had the outcome.
    """
    return case.query(_SUBJECTS.format(outcome))


def many(case: Case, row: Row, failed: int) -> bool:
    """True if the failures are not chance: among many processes, single failures are normal."""
    return row["pooled"] <= 1 or share(failed, row["connects"]) >= case.limits.pooled_share


def events(case: Case, row: Row, outcome: str) -> list[int]:
    """The first rows of a client with this outcome."""
    found = case.query(
        f"SELECT n FROM f_watched WHERE outcome = '{outcome}' AND client = {row['client']}"
        " ORDER BY n LIMIT 10"
    )
    return [line["n"] for line in found]


def refusals_ended(case: Case, row: Row) -> bool:
    """True if a success followed the last refusal; for a pool, all but a few refusals.

    After a backend restart, one of many processes may still be refused.
    """
    if row["last_good"] is None:
        return False
    (since,) = case.query(
        "SELECT count(*) AS refused FROM f_watched WHERE outcome = 'refused'"
        f" AND client = {row['client']} AND n > {row['last_good']}"
    )
    few = case.limits.refused_count if row["pooled"] > 1 else 1
    return int(since["refused"]) < few


def episodes(case: Case, row: Row) -> int:
    """Runs of refusals, each ended by a success or by the end of the capture."""
    (found,) = case.query(
        f"""SELECT count(*) FILTER (WHERE outcome = 'refused' AND before IS DISTINCT FROM 'refused')
              AS episodes
            FROM (SELECT outcome, lag(outcome) OVER (ORDER BY n) AS before FROM f_watched
                  WHERE outcome IN ('refused', 'established') AND client = {row["client"]})"""
    )
    return int(found["episodes"])
