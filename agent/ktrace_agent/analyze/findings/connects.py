# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - every part of a statement is a constant or a number
"""Connects as the findings ask them: by client and outcome."""

from ktrace_agent.analyze.findings.case import Case, Row

_CONSIDERED = 24
"""Clients of a kind that are looked at: more of them would not find room."""
_SECOND_US = 1_000_000

# A client is a process in a namespace with one remote address.
_CONNECTS = """
CREATE OR REPLACE TEMP TABLE f_connects AS
SELECT n, hash(net, tgid, remote) AS client, net, tgid, comm, pod, namespace, family, remote,
  remote_ip, remote_port, error, nat, ct_state,
  nullif(split_part(ct_reply, ' -> ', 1), '') AS backend,
  measure AS us, coalesce(measure, CASE WHEN result = 'pending' THEN {window_us} END) AS waited,
  CASE
    WHEN result = 'established' THEN 'established'
    WHEN result = 'denied' OR error IN ('EPERM', 'EACCES') THEN 'denied'
    WHEN error = 'ECONNREFUSED' THEN 'refused'
    WHEN error = 'ETIMEDOUT' THEN 'timeout'
    WHEN error IN ('EHOSTUNREACH', 'ENETUNREACH', 'ENETDOWN', 'EHOSTDOWN') THEN 'unreachable'
    WHEN error = 'EADDRNOTAVAIL' THEN 'no_port'
    WHEN result IN ('pending', 'abandoned', 'interrupted') AND waited >= {wait_us} THEN 'unanswered'
    ELSE 'other' END AS outcome
FROM rows WHERE type = 'connect' AND n IS NOT NULL
"""
_FAILURES = ("unanswered", "timeout", "refused", "unreachable", "denied", "no_port")
_COUNTS = ", ".join(
    f"count(*) FILTER (WHERE outcome = '{name}') AS {name}" for name in ("established", *_FAILURES)
)
_CLIENTS = f"""
CREATE OR REPLACE TEMP TABLE f_clients AS
SELECT client, any_value(net) AS net, any_value(tgid) AS tgid, any_value(comm) AS comm,
  any_value(pod) AS pod, any_value(namespace) AS namespace, any_value(remote) AS remote,
  any_value(remote_ip) AS remote_ip, any_value(remote_port) AS remote_port,
  any_value(family) AS family, max(nat) FILTER (WHERE nat IN ('dnat', 'both')) AS nat,
  count(*) AS connects, {_COUNTS},
  max(waited) FILTER (WHERE outcome = 'unanswered') AS longest,
  count(*) FILTER (WHERE outcome = 'unanswered' AND ct_state IN ('SYN_SENT', 'UNREPLIED'))
    AS tracked,
  max(n) FILTER (WHERE outcome = 'established') AS last_good,
  max(n) FILTER (WHERE outcome = 'refused') AS last_refused
FROM f_connects GROUP BY client
"""
_WORST = f"""
FROM f_clients WHERE {{0}} > 0 ORDER BY {{0}} DESC, tgid, remote, net LIMIT {_CONSIDERED}
"""
_WATCHED = f"""
CREATE OR REPLACE TEMP TABLE f_watched AS
SELECT n, client, outcome, error, us, backend FROM f_connects WHERE client IN (
  {" UNION ALL ".join(f"(SELECT client {_WORST.format(name)})" for name in _FAILURES)})
"""
_SLOW = f"""
WITH slow AS (
  SELECT client, count(*) AS good, count(*) FILTER (WHERE us >= {{wait_us}}) AS late,
    quantile_disc(us, [0, 0.5, 0.9, 1]) AS took, arg_max(n, us, 10) AS slowest
  FROM f_connects WHERE outcome = 'established' AND us IS NOT NULL GROUP BY client
  HAVING count(*) FILTER (WHERE us >= {{wait_us}}) > 0 OR quantile_disc(us, 0.5) >= {{p50}}
  ORDER BY late DESC, good DESC LIMIT {_CONSIDERED})
SELECT c.*, s.* EXCLUDE (client) FROM slow s JOIN f_clients c USING (client)
ORDER BY late DESC, good DESC, tgid, remote, net
"""


def prepare(case: Case) -> None:
    """Make f_connects, f_clients and f_watched."""
    wait_us = round(case.limits.syn_wait_s * _SECOND_US)
    window_us = round(min(case.coverage.window_s, 1e9) * _SECOND_US)
    case.con.execute(_CONNECTS.format(wait_us=wait_us, window_us=window_us))
    case.con.execute(_CLIENTS)
    case.con.execute(_WATCHED)


def slow(case: Case) -> list[Row]:
    """Clients whose handshakes took long, with how long they took."""
    wait_us = round(case.limits.syn_wait_s * _SECOND_US)
    return case.ask(_SLOW.format(wait_us=wait_us, p50=case.limits.connect_slow_p50_us))


def worst(case: Case, outcome: str) -> list[Row]:
    """Clients with most connects that ended so."""
    return case.ask(f"SELECT * {_WORST.format(outcome)}")


def events(case: Case, row: Row, outcome: str) -> list[int]:
    """The first rows of a client that ended so."""
    found = case.ask(
        f"SELECT n FROM f_watched WHERE outcome = '{outcome}' AND client = {row['client']}"
        " ORDER BY n LIMIT 10"
    )
    return [line["n"] for line in found]


def episodes(case: Case, row: Row) -> int:
    """Runs of refusals that a success ended, or the end of the capture."""
    (found,) = case.ask(
        f"""SELECT count(*) FILTER (WHERE outcome = 'refused' AND before IS DISTINCT FROM 'refused')
              AS episodes
            FROM (SELECT outcome, lag(outcome) OVER (ORDER BY n) AS before FROM f_watched
                  WHERE outcome IN ('refused', 'established') AND client = {row["client"]})"""
    )
    return int(found["episodes"])
