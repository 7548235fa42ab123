# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - every part of a statement is a constant or a number
"""What explains connects that failed: translation, ICMP, the other IP version, a scan.

The tables are those of connects.prepare().
"""

from dataclasses import dataclass

from ktrace_agent.analyze.findings.case import HOOKS, Case
from ktrace_agent.analyze.findings.wording import POOL, Row, literal
from ktrace_api.finding import Cause
from ktrace_api.names import RowType

_LOOKED_AT = 200
"""Failures of a client that are held against successes over the other IP version."""
_AT_ONCE_US = 100_000
"""Who falls back does so when it learns of the failure; the margin is for a busy process."""
_RACE_US = 2_000_000
"""RFC 8305 begins the next attempt 2 s after the last one at the latest."""
_LATE_SHARE = 0.1
"""Of the fallbacks: they come later where the CPU is short."""
_BUSIER = 2
"""An address with so many successes for each failure is in use anyway: it is nobody's second
choice, though some success is always near."""
_LONGEST_US = 10**12
"""Longer than any handshake, and small enough to reckon with."""


def _backends(case: Case, row: Row, outcome: str) -> str:
    """Which backend behind the translated address fails, where others do not; "" otherwise."""
    found = case.ask(
        f"SELECT backend, count(*) FILTER (WHERE outcome = '{outcome}') AS failed,"
        " count(*) FILTER (WHERE outcome = 'established') AS good FROM f_watched"
        f" WHERE backend IS NOT NULL AND client = {row['client']} GROUP BY backend"
        " ORDER BY failed DESC, backend LIMIT 20"
    )
    bad = [line["backend"] for line in found if line["failed"] > line["good"]]
    if not bad:
        return ""
    return f"backend {', '.join(bad[:2])} of {len(found)} seen"


def behind_nat(case: Case, row: Row, outcome: str, cause: Cause) -> tuple[Cause, str]:
    """The cause, and words for the title, of a failure to reach what NAT may have chosen."""
    if row["remote_port"] == 53:
        return Cause.DNS, " (DNS over TCP)"
    if row["nat"] is None:
        return cause, ""
    backends = _backends(case, row, outcome)
    return Cause.NAT, f" ({backends})" if backends else " (translated address)"


@dataclass(frozen=True, slots=True)
class Icmp:
    """ICMP "unreachable" messages that came to the client's namespace, of its IP version."""

    others: int
    """From others: what a namespace sends itself is its own."""
    proven: int
    """Of them, those that nothing but the client's own connects can have caused."""

    def may_be(self, failed: int) -> bool:
        """There are enough for a firewall that rejects `failed` connects; half, at the least."""
        return self.others >= _half(failed)

    def must_be(self, failed: int) -> bool:
        """The same, where nothing else explains them."""
        return self.proven >= _half(failed)


def refuted_by(icmp: Icmp, *, rejected: bool, doubtful: bool) -> str:
    """What would prove a refusal wrong: that nobody listens, or that a firewall rejects."""
    if rejected:
        return "RSTs of the peer in a packet capture at the client: then nobody listens there."
    if doubtful:
        return (
            "ICMP unreachable for this address in a packet capture: then a firewall rejects."
            f" {icmp.others} such messages came, which UDP, large packets or other connects of the"
            " namespace may have caused as well."
        )
    return (
        "A listener at that address while the refusals went on (then something between sends the"
        " RST), or a probe that expects a closed port."
    )


def _half(failed: int) -> int:
    """Counters are read a moment before or after the first and the last rows."""
    return max(failed // 2, 1)


def icmp(case: Case, row: Row) -> Icmp:
    """What came, less what UDP, packets that were too big, and other connects can have caused.

    The counter holds all codes and protocols. Messages that met a socket while connect() held
    it (TcpExt.LockDroppedIcmps) are TCP's for sure, and no matter of size.
    """
    if row["loopback"]:  # who connects there gets no ICMP from others
        return Icmp(0, 0)
    net, six = row["net"], row["family"] == "ipv6"
    came, own = case.unreachables(net, v6=six)
    others = max(came - own, 0)
    if not others or _udp_unseen(case):
        return Icmp(others, 0)
    resent = case.delta(net, "snmp", "Tcp.RetransSegs")
    resent -= case.delta(net, "netstat", "TcpExt.TCPSynRetrans")
    too_big = 0 if six else max(resent, 0)  # in IPv6 another type says so
    held = min(case.delta(net, "netstat", "TcpExt.LockDroppedIcmps"), others)
    left = max(others - _udp_unanswered(case, row) - too_big, held)
    return Icmp(others, max(left - _failed_beside(case, row) * case.coverage.sample, 0))


def _udp_unseen(case: Case) -> bool:
    """UDP of the namespace may be missing in the flows: a filter, no program, no room."""
    (found,) = case.ask(
        "SELECT count(*) AS count FROM capture WHERE len(ports) > 0 OR dns_only"
        " OR (len(events) > 0 AND NOT list_contains(events, 'udp'))"
    )
    missing = set(HOOKS[RowType.UDP_SEND]) & set(case.coverage.hooks_missing)
    return bool(found["count"]) or bool(missing) or case.coverage.overflow > 0


def _udp_unanswered(case: Case, row: Row) -> int:
    """Datagrams that may have come back as ICMP: unanswered ones, and answers of servers."""
    (found,) = case.ask(
        f"""SELECT coalesce(sum(greatest(sent - if(role = 'server', 0, got), 0)), 0) AS datagrams
            FROM (SELECT role, greatest(coalesce(tx_calls, 0), 0)::HUGEINT AS sent,
                    greatest(coalesce(rx_calls, 0), 0)::HUGEINT AS got
                  FROM flows WHERE proto = 'udp' AND net IS NOT DISTINCT FROM {literal(row["net"])}
                    AND coalesce(family, {literal(row["family"])})
                      IS NOT DISTINCT FROM {literal(row["family"])})"""
    )
    return int(found["datagrams"])


def _failed_beside(case: Case, row: Row) -> int:
    """Connects of other clients in the namespace that ended as a rejection would end them."""
    (found,) = case.ask(
        f"""SELECT coalesce(sum(refused + unreachable), 0) AS count FROM f_clients
            WHERE client <> {row["client"]} AND net IS NOT DISTINCT FROM {literal(row["net"])}
              AND family IS NOT DISTINCT FROM {literal(row["family"])}
              AND loopback IS DISTINCT FROM true"""
    )
    return int(found["count"])


# Of the latest failures: those that a success over the other IP version made up for. Successes
# are found by the step in which they began: there may be thousands of them a second.
_SECOND_CHOICES = f"""
WITH failed AS (
  SELECT n, tgid, epoch_us(ts) AS ended FROM f_connects
  WHERE client = {{client}} AND outcome = '{{outcome}}' AND ts IS NOT NULL
  ORDER BY n DESC LIMIT {_LOOKED_AT}),
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
    """The process had a choice: what failed over one IP version it then reached over the other.

    Each failure needs a success of its own, by the same process, at the same port, that began at
    once or was on its way (RFC 8305). Fewer than `limit` without one are no finding, nor is a
    tenth of them: a busy process may be late.
    """
    if row["family"] is None or row["remote_port"] is None:
        return False
    exact = case.coverage.lost_share((RowType.CONNECT,)) <= case.limits.lost_share
    if case.coverage.sample > 1 or not exact:
        return _as_many(case, row, row[outcome])
    (found,) = case.ask(
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
    """About as many successes over the other IP version: of torn pairs nothing else is left."""
    (found,) = case.ask(
        f"""SELECT count(*) AS count FROM f_connects WHERE outcome = 'established'
              AND remote_port = {row["remote_port"]} AND family <> {literal(row["family"])}
              AND net IS NOT DISTINCT FROM {literal(row["net"])}
              AND (tgid = {literal(row["tgid"])} OR ({row["pooled"]} > 1
                AND cgroup_id IS NOT DISTINCT FROM {literal(row["cgroup_id"])}
                AND comm IS NOT DISTINCT FROM {literal(row["comm"])}))"""
    )
    return 2 * int(found["count"]) >= failed


def scanned(case: Case) -> set[int]:
    """Clients that belong to a scan: they ask which ports of an address are open.

    A scan tries many ports a few times each, by one process or by one for each try. What was
    refused more often is a service that somebody wants.
    """
    tries = case.limits.scan_tries
    found = case.ask(
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
