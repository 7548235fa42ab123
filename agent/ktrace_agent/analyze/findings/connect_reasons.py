# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - every part of a statement is a constant or a number
"""Explains failed connection attempts: NAT, ICMP, the other IP version, a port scan.

Uses the tables of connect_tables.prepare().
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ktrace_agent.analyze.findings.case import HOOKS, Case
from ktrace_agent.analyze.findings.wording import POOL, Row, literal
from ktrace_agent.analyze.titles import Variant, Words
from ktrace_api.finding import Cause
from ktrace_api.names import RowType

_COMPARED = 200
"""Latest failures of a client that are compared with successes over the other IP version."""
_AT_ONCE_US = 100_000
"""A client falls back as soon as the attempt fails; the margin is for a busy process."""
_RACE_US = 2_000_000
"""Maximum delay before the next attempt (RFC 8305)."""
_LATE_SHARE = 0.1
"""Share of fallbacks that may be late because the CPU is busy."""
_BUSIER = 2
"""With more successes per failure, an address is in regular use and is not a fallback: some
success is always close in time."""
_LONGEST_US = 10**12
"""Longer than any handshake, and small enough for 64-bit arithmetic."""


@dataclass(frozen=True, slots=True)
class Reason:
    """What a failure points to, and the title that says so."""

    cause: Cause
    variant: Variant = Variant.PLAIN
    fields: Mapping[str, Words] = field(default_factory=dict)
    """Fields of the title that only this variant has."""


def _backends(case: Case, row: Row, outcome: str) -> tuple[list[str], int]:
    """Backends of the translated address that mostly fail, and how many are known."""
    found = case.query(
        f"SELECT backend, count(*) FILTER (WHERE outcome = '{outcome}') AS failed,"
        " count(*) FILTER (WHERE outcome = 'established') AS good FROM f_watched"
        f" WHERE backend IS NOT NULL AND client = {row['client']} GROUP BY backend"
        " ORDER BY failed DESC, backend LIMIT 20"
    )
    return [line["backend"] for line in found if line["failed"] > line["good"]], len(found)


def behind_nat(case: Case, row: Row, outcome: str, cause: Cause) -> Reason:
    """DNS for port 53, NAT for a translated address, otherwise `cause`."""
    if row["remote_port"] == 53:
        return Reason(Cause.DNS, Variant.DNS_OVER_TCP)
    if row["nat"] is None:
        return Reason(cause)
    bad, known = _backends(case, row, outcome)
    if not bad:
        return Reason(Cause.NAT, Variant.NAT_ADDRESS)
    return Reason(Cause.NAT, Variant.NAT_BACKEND, {"backends": ", ".join(bad[:2]), "known": known})


@dataclass(frozen=True, slots=True)
class Icmp:
    """ICMP "unreachable" messages of one IP version that the client's namespace received."""

    others: int
    """Messages from other namespaces and hosts."""
    proven: int
    """Those of them that only the client's own connection attempts can have caused."""

    def may_be(self, failed: int) -> bool:
        """True if at least half of `failed` attempts may have been rejected by a firewall."""
        return self.others >= _half(failed)

    def must_be(self, failed: int) -> bool:
        """The same, counting only messages without another explanation."""
        return self.proven >= _half(failed)


def _half(failed: int) -> int:
    """Half of the failures: counters and rows do not start and end at the same moment."""
    return max(failed // 2, 1)


def icmp(case: Case, row: Row) -> Icmp:
    """Received messages, minus those that UDP, path MTU or other connections can have caused.

    The counter includes all codes and protocols. Messages that arrived while connect() held the
    socket lock (TcpExt.LockDroppedIcmps) certainly belong to TCP and not to path MTU discovery.
    """
    if row["loopback"]:  # no other host sends ICMP to a loopback address
        return Icmp(0, 0)
    net, six = row["net"], row["family"] == "ipv6"
    came, own = case.unreachables(net, v6=six)
    others = max(came - own, 0)
    if not others or _udp_unseen(case):
        return Icmp(others, 0)
    resent = case.delta(net, "snmp", "Tcp.RetransSegs")
    resent -= case.delta(net, "netstat", "TcpExt.TCPSynRetrans")
    too_big = 0 if six else max(resent, 0)  # ICMPv6 has its own type for it
    held = min(case.delta(net, "netstat", "TcpExt.LockDroppedIcmps"), others)
    left = max(others - _udp_unanswered(case, row) - too_big, held)
    return Icmp(others, max(left - _failed_beside(case, row) * case.coverage.sample, 0))


def _udp_unseen(case: Case) -> bool:
    """True if UDP flows of the namespace may be missing: filtered, not traced, map full."""
    (found,) = case.query(
        "SELECT count(*) AS count FROM capture WHERE len(ports) > 0 OR dns_only"
        " OR (len(events) > 0 AND NOT list_contains(events, 'udp'))"
    )
    missing = set(HOOKS[RowType.UDP_SEND]) & set(case.coverage.hooks_missing)
    return bool(found["count"]) or bool(missing) or case.coverage.overflow > 0


def _udp_unanswered(case: Case, row: Row) -> int:
    """Datagrams that ICMP may have answered: unanswered queries, and replies of servers."""
    (found,) = case.query(
        f"""SELECT coalesce(sum(greatest(sent - if(role = 'server', 0, got), 0)), 0) AS datagrams
            FROM (SELECT role, greatest(coalesce(tx_calls, 0), 0)::HUGEINT AS sent,
                    greatest(coalesce(rx_calls, 0), 0)::HUGEINT AS got
                  FROM flows WHERE proto = 'udp' AND net IS NOT DISTINCT FROM {literal(row["net"])}
                    AND coalesce(family, {literal(row["family"])})
                      IS NOT DISTINCT FROM {literal(row["family"])})"""
    )
    return int(found["datagrams"])


def _failed_beside(case: Case, row: Row) -> int:
    """Failed attempts of other clients in the namespace that a rejection may explain."""
    (found,) = case.query(
        f"""SELECT coalesce(sum(refused + unreachable), 0) AS count FROM f_clients
            WHERE client <> {row["client"]} AND net IS NOT DISTINCT FROM {literal(row["net"])}
              AND family IS NOT DISTINCT FROM {literal(row["family"])}
              AND loopback IS DISTINCT FROM true"""
    )
    return int(found["count"])


# Counts the latest failures that have a success over the other IP version. Successes are joined
# by 100 ms steps of their start, because there may be thousands per second.
_SECOND_CHOICES = f"""
WITH failed AS (
  SELECT n, tgid, epoch_us(ts) AS ended FROM f_connects
  WHERE client = {{client}} AND outcome = '{{outcome}}' AND ts IS NOT NULL
  ORDER BY n DESC LIMIT {_COMPARED}),
span AS (SELECT min(n) AS first, max(n) AS last, max(ended) AS until FROM failed),
tried AS (
  SELECT n, remote, tgid, outcome, family, epoch_us(ts) AS ended,
    ended - least(greatest(coalesce(us, 0), 0), {_LONGEST_US}) AS began
  FROM f_connects WHERE remote_port = {{port}} AND net IS NOT DISTINCT FROM {{net}}
    AND n >= (SELECT first FROM span) AND tgid IN (SELECT tgid FROM failed)),
alike AS (
  SELECT count(*) AS failures FROM tried, span WHERE outcome IN ('refused', 'unreachable')
    AND family = {{family}} AND n <= last),
good AS (
  SELECT n, remote, tgid, began FROM tried, span
  WHERE outcome = 'established' AND family <> {{family}}
    AND began <= until + {_AT_ONCE_US}),
busy AS (
  SELECT remote FROM good, alike GROUP BY remote, failures
  HAVING count(*) > {_BUSIER} * failures),
stepped AS (
  SELECT *, unnest(range((ended - {_RACE_US}) // {_AT_ONCE_US},
    (ended + {_AT_ONCE_US}) // {_AT_ONCE_US} + 1)) AS step FROM failed),
choices AS (FROM good ANTI JOIN busy USING (remote)),
met AS (
  SELECT f.n AS failure, g.n AS success FROM stepped f JOIN choices g
    ON f.tgid = g.tgid AND f.step = g.began // {_AT_ONCE_US}
  WHERE g.n > f.n AND g.began BETWEEN f.ended - {_RACE_US} AND f.ended + {_AT_ONCE_US})
SELECT (SELECT count(*) FROM failed) AS failed,
  least(count(DISTINCT failure), count(DISTINCT success)) AS met FROM met
"""


def second_choice(case: Case, row: Row, outcome: str, limit: int) -> bool:
    """True if the process fell back to the other IP version and succeeded.

    Each failure needs its own success: same process, same port, started at once or already in
    progress (RFC 8305). Fewer than `limit` failures without a success are ignored, and so is a
    tenth of them, because a busy process may fall back late.
    """
    if row["family"] is None or row["remote_port"] is None:
        return False
    exact = case.coverage.lost_share((RowType.CONNECT,)) <= case.limits.lost_share
    if case.coverage.sample > 1 or not exact:
        return _as_many(case, row, row[outcome])
    (found,) = case.query(
        _SECOND_CHOICES.format(
            client=row["client"],
            outcome=outcome,
            port=row["remote_port"],
            net=literal(row["net"]),
            family=literal(row["family"]),
        )
    )
    left = found["failed"] - found["met"]
    return bool(found["failed"]) and (left < limit or left <= _LATE_SHARE * found["failed"])


def _as_many(case: Case, row: Row, failed: int) -> bool:
    """Compares totals: an incomplete capture cannot pair failures with successes."""
    (found,) = case.query(
        f"""SELECT count(*) AS count FROM f_connects WHERE outcome = 'established'
              AND remote_port = {row["remote_port"]} AND family <> {literal(row["family"])}
              AND net IS NOT DISTINCT FROM {literal(row["net"])}
              AND (tgid = {literal(row["tgid"])} OR ({row["pooled"]} > 1
                AND cgroup_id IS NOT DISTINCT FROM {literal(row["cgroup_id"])}
                AND comm IS NOT DISTINCT FROM {literal(row["comm"])}))"""
    )
    return 2 * int(found["count"]) >= failed


def scanned(case: Case) -> set[int]:
    """Clients that belong to a port scan.

    A scan tries many ports of one address a few times each, from one process or from one process
    per try. A port that was refused more often is a service that the client needs.
    """
    tries = case.limits.scan_tries
    found = case.query(
        f"""WITH ports AS (
              SELECT client, any_value(net) AS net, any_value(remote_ip) AS ip,
                any_value(remote_port) AS port, arg_min(tgid, n) AS tgid,
                arg_min(cgroup_id, n) AS cgroup_id, arg_min(comm, n) AS comm,
                count(*) AS tries
              FROM f_connects WHERE outcome = 'refused' GROUP BY client HAVING tries <= {tries})
            SELECT client FROM ports
            QUALIFY greatest(count(DISTINCT port) OVER (PARTITION BY net, tgid, ip),
                count(DISTINCT port) OVER (PARTITION BY {POOL.format("ip")}))
              >= {case.limits.scan_ports}"""
    )
    return {row["client"] for row in found}
