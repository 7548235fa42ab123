# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - every part of a statement is a constant or a number
"""Established connections of clients that their peers reset."""

from collections.abc import Iterator

from ktrace_agent.analyze.findings.case import Case, Measured, Texts, Trust
from ktrace_agent.analyze.findings.wording import Row, inside, literal, number, share, who
from ktrace_agent.analyze.sentences import REFUTED_BY
from ktrace_agent.analyze.titles import title
from ktrace_agent.host.procfs import ABORTS
from ktrace_api.finding import Cause, Confidence, Finding, FindingId, Severity
from ktrace_api.names import RowType

_CONSIDERED = 50
# A connection that goes from ESTABLISHED or CLOSE_WAIT straight to CLOSE was aborted by one of its
# endpoints. If both are on this node, the one that closed first did it: by_peer is true or false.
# Otherwise by_peer is NULL and the counters of the namespace decide. They count every endpoint, so
# `taken` counts those that are already explained: clients known to be reset, and all servers that
# did not close first. `aborted` counts the endpoints that closed first.
_RESETS = f"""
WITH cut AS (
  SELECT n, net, tgid, comm, pod, namespace, local, remote, remote_ip,
    role IS NOT DISTINCT FROM 'client' AS client FROM rows
  WHERE type = 'tcp_state' AND old_state IN ('ESTABLISHED', 'CLOSE_WAIT') AND new_state = 'CLOSE'
    AND n IS NOT NULL),
endpoints AS (SELECT local, remote, min(n) AS first, min(n) FILTER (WHERE NOT client) AS first_other
  FROM cut GROUP BY ALL),
attributed AS (
  SELECT c.*, if(c.client, e.first_other, e.first) < c.n AS by_peer FROM cut c
  LEFT JOIN endpoints e ON c.local = e.remote AND c.remote = e.local),
spaces AS (
  SELECT net, count(*) FILTER (WHERE client AND by_peer IS NULL) AS open_there,
    count(*) FILTER (WHERE if(client, by_peer IS true, by_peer IS DISTINCT FROM false)) AS taken,
    count(*) FILTER (WHERE NOT by_peer) AS aborted
  FROM attributed GROUP BY net),
peers AS (
  SELECT net, tgid, remote AS peer, max(comm) AS comm, max(pod) AS pod,
    max(namespace) AS namespace, max(remote_ip) AS remote_ip, count(*) AS cut,
    count(*) FILTER (WHERE by_peer) AS by_peer, count(*) FILTER (WHERE by_peer IS NULL) AS open,
    min(n, 10) AS shown
  FROM attributed WHERE client GROUP BY net, tgid, remote)
SELECT p.*, s.open_there, s.taken, s.aborted
FROM peers p JOIN spaces s ON p.net IS NOT DISTINCT FROM s.net
ORDER BY cut DESC, tgid, peer, p.net LIMIT {_CONSIDERED}
"""


def find(case: Case) -> Iterator[Finding]:
    """TCP_RESETS."""
    for row in case.query(_RESETS):
        if reset := _by_peer(case, row):
            yield _reset(case, row, reset)


def _by_peer(case: Case, row: Row) -> int:
    """Connections of a client that its peer reset, in rows; 0 if possibly none.

    The resets that remain in the namespace's counters are shared by all clients whose peer is not
    on this node, in proportion to their connections.
    """
    sample = case.coverage.sample
    aborted = case.delta(row["net"], "netstat", *ABORTS)
    received = case.delta(row["net"], "snmp", "Tcp.EstabResets") - aborted - row["taken"] * sample
    # Upper bound, because a filter may hide other sockets: no more than the clients in question
    # minus what this side aborted.
    aborted = max(aborted - row["aborted"] * sample, 0)
    received = min(received, row["open_there"] * sample - aborted)
    if received <= 0 or not row["open"]:
        return int(row["by_peer"])
    part = row["open"] * received // (row["open_there"] * sample)
    return int(row["by_peer"] + min(part, row["open"]))


def _opened(case: Case, row: Row) -> int | None:
    """Connections opened to the peer; None if they were not counted.

    If more were cut than the process opened, it uses connections of another process (its parent):
    then all connections of the namespace count.
    """
    (flows,) = case.query(
        f"""SELECT coalesce(sum(opened), 0) AS every_process, coalesce(sum(opened) FILTER (
              WHERE tgid IS NOT DISTINCT FROM {literal(row["tgid"])}), 0) AS own
            FROM flows WHERE proto = 'tcp' AND opened > 0
              AND net IS NOT DISTINCT FROM {literal(row["net"])}
              AND remote = {literal(row["peer"])}"""
    )
    least = row["cut"] * case.coverage.sample
    return next(
        (int(flows[name]) for name in ("own", "every_process") if flows[name] >= least), None
    )


def _reset(case: Case, row: Row, resets: int) -> Finding:
    limits = case.limits
    opened = _opened(case, row)
    sample = case.coverage.sample
    part = None if opened is None else share(resets * sample, opened)
    # Without these counters, the clients may have aborted the remaining ones themselves.
    unknown = case.unknown(row["net"], "netstat", *ABORTS)
    sure = int(row["by_peer"]) if unknown else resets
    sure_part = None if opened is None else share(sure * sample, opened)
    warn = sure >= limits.reset_count and (sure_part or 0) >= limits.reset_share
    numbers = [number("resets", resets, limits.reset_count, "connections")]
    if part is not None:
        numbers.append(number("of the connections opened", part, limits.reset_share, "share"))
    confidence = Confidence.HIGH if row["by_peer"] >= limits.reset_count else Confidence.MEDIUM
    return case.find(
        FindingId.TCP_RESETS,
        Severity.WARNING if warn else Severity.INFO,
        Texts(
            title=title(FindingId.TCP_RESETS, peer=row["peer"], resets=resets, who=who(row)),
            refuted_by=REFUTED_BY[FindingId.TCP_RESETS],
            next=inside(
                row,
                f"tcpdump -nni any 'tcp[tcpflags] & tcp-rst != 0 and host {row['remote_ip']}'",
            ),
        ),
        subject=row,
        points_to=Cause.APPLICATION,
        measured=Measured(
            counts={"resets": resets, "cut": row["cut"], "opened": opened},
            numbers=numbers,
            rows=row["shown"],
        ),
        trust=Trust(confidence, (RowType.TCP_STATE,), unknown if resets > row["by_peer"] else ()),
    )
