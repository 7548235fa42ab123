# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - every part of a statement is a constant or a number
"""Connections of clients that their peers reset in mid-stream."""

from collections.abc import Iterator

from ktrace_agent.analyze.findings.case import Case
from ktrace_agent.analyze.findings.wording import Row, inside, literal, number, share, who
from ktrace_agent.host.procfs import ABORTS
from ktrace_api.finding import Cause, Confidence, Finding, FindingId, Severity
from ktrace_api.names import RowType

_CONSIDERED = 50
# A connection that left ESTABLISHED or CLOSE_WAIT at once was aborted by one of its ends. Where
# both are on this node, the end that went first did it: by_peer is true or false. Where only one
# is, by_peer is NULL and the counters of its namespace decide. They count every end alike, so
# `taken` has the ends whose reset is no open question, or is none of a client's: clients that
# are known to be reset, and all others that did not go first. `aborted` has those that did.
_RESETS = f"""
WITH cut AS (
  SELECT n, net, tgid, comm, pod, namespace, local, remote, remote_ip,
    role IS NOT DISTINCT FROM 'client' AS client FROM rows
  WHERE type = 'tcp_state' AND old_state IN ('ESTABLISHED', 'CLOSE_WAIT') AND new_state = 'CLOSE'
    AND n IS NOT NULL),
ends AS (SELECT local, remote, min(n) AS first, min(n) FILTER (WHERE NOT client) AS first_other
  FROM cut GROUP BY ALL),
told AS (
  SELECT c.*, if(c.client, e.first_other, e.first) < c.n AS by_peer FROM cut c
  LEFT JOIN ends e ON c.local = e.remote AND c.remote = e.local),
spaces AS (
  SELECT net, count(*) FILTER (WHERE client AND by_peer IS NULL) AS open_there,
    count(*) FILTER (WHERE if(client, by_peer IS true, by_peer IS DISTINCT FROM false)) AS taken,
    count(*) FILTER (WHERE NOT by_peer) AS aborted
  FROM told GROUP BY net),
peers AS (
  SELECT net, tgid, remote AS peer, max(comm) AS comm, max(pod) AS pod,
    max(namespace) AS namespace, max(remote_ip) AS remote_ip, count(*) AS cut,
    count(*) FILTER (WHERE by_peer) AS by_peer, count(*) FILTER (WHERE by_peer IS NULL) AS open,
    min(n, 10) AS shown
  FROM told WHERE client GROUP BY net, tgid, remote)
SELECT p.*, s.open_there, s.taken, s.aborted
FROM peers p JOIN spaces s ON p.net IS NOT DISTINCT FROM s.net
ORDER BY cut DESC, tgid, peer, p.net LIMIT {_CONSIDERED}
"""


def find(case: Case) -> Iterator[Finding]:
    """TCP_RESETS."""
    for row in case.ask(_RESETS):
        if reset := _by_peer(case, row):
            yield _reset(case, row, reset)


def _by_peer(case: Case, row: Row) -> int:
    """Connections of a client that its peer reset, in rows; 0 where it may have been none.

    What the namespace's counters leave is shared by all its clients whose other end is not here:
    none of them is known to have got more than its part.
    """
    sample = case.coverage.sample
    aborted = case.delta(row["net"], "netstat", *ABORTS)
    received = case.delta(row["net"], "snmp", "Tcp.EstabResets") - aborted - row["taken"] * sample
    # Whatever a filter hides of the rest: no more of these can have been aborted by this side.
    aborted = max(aborted - row["aborted"] * sample, 0)
    received = min(received, row["open_there"] * sample - aborted)
    if received <= 0 or not row["open"]:
        return int(row["by_peer"])
    part = row["open"] * received // (row["open_there"] * sample)
    return int(row["by_peer"] + min(part, row["open"]))


def _opened(case: Case, row: Row) -> int | None:
    """Connections to the peer, of which these were cut; None where nobody counted them.

    A process that has more of them cut than it opened uses what another one opened (its parent):
    then all of the namespace count.
    """
    (flows,) = case.ask(
        f"""SELECT coalesce(sum(opened), 0) AS everybody, coalesce(sum(opened) FILTER (
              WHERE tgid IS NOT DISTINCT FROM {literal(row["tgid"])}), 0) AS own
            FROM flows WHERE proto = 'tcp' AND opened > 0
              AND net IS NOT DISTINCT FROM {literal(row["net"])}
              AND remote = {literal(row["peer"])}"""
    )
    least = row["cut"] * case.coverage.sample
    return next((int(flows[who]) for who in ("own", "everybody") if flows[who] >= least), None)


def _reset(case: Case, row: Row, resets: int) -> Finding:
    limits = case.limits
    opened = _opened(case, row)
    sample = case.coverage.sample
    part = None if opened is None else share(resets * sample, opened)
    # Without these counters the rest may be what these clients did themselves.
    unknown = case.unknown(row["net"], "netstat", *ABORTS)
    sure = int(row["by_peer"]) if unknown else resets
    sure_part = None if opened is None else share(sure * sample, opened)
    warn = sure >= limits.reset_count and (sure_part or 0) >= limits.reset_share
    numbers = [number("resets", resets, limits.reset_count, "connections")]
    if part is not None:
        numbers.append(number("of the connections opened", part, limits.reset_share, "share"))
    return case.find(
        FindingId.TCP_RESETS,
        Severity.WARNING if warn else Severity.INFO,
        f"{resets} connections of {who(row)} to {row['peer']} were reset in mid-stream",
        subject=row,
        points_to=Cause.APPLICATION,
        refuted_by="A client that aborts its connections itself (SO_LINGER 0, unread data): then"
        " TcpExt.TCPAbortOn* rises in its namespace.",
        look=inside(
            row,
            f"tcpdump -nni any 'tcp[tcpflags] & tcp-rst != 0 and host {row['remote_ip']}'",
        ),
        rests_on=(RowType.TCP_STATE,),
        confidence=Confidence.HIGH if row["by_peer"] >= limits.reset_count else Confidence.MEDIUM,
        counts={"resets": resets, "cut": row["cut"], "opened": opened},
        rows=row["shown"],
        numbers=numbers,
        unknown=unknown if resets > row["by_peer"] else (),
    )
