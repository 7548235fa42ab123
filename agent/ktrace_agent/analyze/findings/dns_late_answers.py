# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - every part of a statement is a constant
"""DNS answers that arrived after the client closed its socket, estimated from Udp.NoPorts.

The kernel counts datagrams for closed ports by namespace and not by sender. So late answers are
assumed only if nothing else explains the counter. In doubt, a query counts as unanswered.
"""

from typing import NamedTuple

from ktrace_agent.analyze.findings.case import Case
from ktrace_agent.analyze.findings.wording import LOOPBACK

MOST_A_QUERY = 2
"""A late answer is one datagram per query. If there are more than twice as many, other senders are
involved, and all of them may come from others."""


class Space(NamedTuple):
    """One IP version of a network namespace; each has its own counters."""

    net: int | None
    v6: bool


# Queries that may have a late answer. For the others conntrack recorded that no reply arrived.
_OPEN = """
SELECT net, coalesce(contains(remote_ip, ':'), false) AS v6,
  coalesce(sum(unanswered), 0)::BIGINT AS unanswered, coalesce(sum(raced), 0)::BIGINT AS raced
FROM dns_clients WHERE ct_state IS DISTINCT FROM 'UNREPLIED' GROUP BY ALL
"""
# Datagrams sent to a port of a namespace on which no process received any.
_SILENT = f"""
WITH places AS (
  SELECT DISTINCT net, local_ip AS address FROM flows
  WHERE local_ip NOT IN ('0.0.0.0', '::') AND NOT {LOOPBACK.format("local_ip")}),
heard AS (SELECT DISTINCT net, local_port AS port FROM flows WHERE proto = 'udp' AND rx_calls > 0),
sent AS (
  SELECT net, remote_ip AS address, remote_port AS port, sum(tx_calls::HUGEINT) AS datagrams
  FROM flows WHERE proto = 'udp' AND tx_calls > 0 AND coalesce(rx_calls, 0) <= 0
  GROUP BY ALL),
met AS (
  SELECT net, net AS sender, address, port, datagrams FROM sent WHERE {LOOPBACK.format("address")}
  UNION ALL
  SELECT p.net, s.net, s.address, s.port, s.datagrams FROM sent s JOIN places p USING (address))
SELECT net, contains(address, ':') AS v6,
  coalesce(sum(datagrams) FILTER (WHERE net IS NOT DISTINCT FROM sender), 0) AS own,
  coalesce(sum(datagrams) FILTER (WHERE net IS DISTINCT FROM sender), 0) AS foreign
FROM met ANTI JOIN heard USING (net, port) GROUP BY ALL
"""


def spaces(case: Case) -> set[Space]:
    """Namespaces where late answers explain every unanswered query. Needs table dns_clients."""
    silent = {_space(row): (int(row["own"]), int(row["foreign"])) for row in case.query(_SILENT)}
    believed = set()
    for row in case.query(_OPEN):
        space = _space(row)
        late = _late(case, space, *silent.get(space, (0, 0)))
        unread = row["unanswered"] + row["raced"]  # the losers of a race may be late as well
        if row["unanswered"] and unread <= late <= MOST_A_QUERY * unread:
            believed.add(space)
    return believed


def _space(row: dict[str, int | None]) -> Space:
    return Space(row["net"], bool(row["v6"]))


def _late(case: Case, space: Space, own: int, foreign: int) -> int:
    """Datagrams for closed ports that no known sender except a resolver explains.

    `own` and `foreign` were sent by the namespace itself and by other namespaces to ports that no
    process reads. A datagram to the own closed port causes one ICMP message sent and received.
    """
    counter = ("snmp6", "Udp6NoPorts") if space.v6 else ("snmp", "Udp.NoPorts")
    echoed = min(case.unreachables(space.net, v6=space.v6))
    return case.delta(space.net, *counter) - max(own, echoed) - foreign
