# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - every part of a statement is a constant or a number
"""What explains connects that failed: translation, ICMP, the other IP version, a scan.

The tables are those of connects.prepare().
"""

from dataclasses import dataclass

from ktrace_agent.analyze.findings.case import Case, Row, literal
from ktrace_api.finding import Cause


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
    names = ("snmp6", "Icmp6InDestUnreachs", "Icmp6OutDestUnreachs")
    file, came, own = names if six else ("snmp", "Icmp.InDestUnreachs", "Icmp.OutDestUnreachs")
    others = max(case.delta(net, file, came) - case.delta(net, file, own), 0)
    if not others or _udp_unseen(case):
        return Icmp(others, 0)
    resent = case.delta(net, "snmp", "Tcp.RetransSegs")
    resent -= case.delta(net, "netstat", "TcpExt.TCPSynRetrans")
    too_big = 0 if six else max(resent, 0)  # in IPv6 another type says so
    held = min(case.delta(net, "netstat", "TcpExt.LockDroppedIcmps"), others)
    left = max(others - _udp_unanswered(case, row) - too_big, held)
    return Icmp(others, max(left - _failed_beside(case, row) * case.coverage.sample, 0))


def _udp_unseen(case: Case) -> bool:
    """UDP of the namespace may be missing in the flows: a filter, or no room for them."""
    (found,) = case.ask(
        "SELECT count(*) AS count FROM capture WHERE len(ports) > 0 OR dns_only"
        " OR (len(events) > 0 AND NOT list_contains(events, 'udp'))"
    )
    return bool(found["count"]) or case.coverage.overflow > 0


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


def other_family(case: Case, row: Row) -> bool:
    """The process reached the same port over the other IP version: it had a choice."""
    if row["family"] is None or row["tgid"] is None:
        return False
    (found,) = case.ask(
        f"""SELECT count(*) AS count FROM f_clients WHERE established > 0
              AND tgid = {literal(row["tgid"])}
              AND remote_port = {literal(row["remote_port"])}
              AND family <> {literal(row["family"])}"""
    )
    return bool(found["count"])


def scans(case: Case) -> set[tuple[int | None, int | None, str | None]]:
    """Processes that were refused by many ports of one address: they ask which are open."""
    found = case.ask(
        f"""SELECT net, tgid, remote_ip FROM f_clients WHERE refused > 0
            GROUP BY ALL HAVING count(DISTINCT remote_port) >= {case.limits.scan_ports}"""
    )
    return {(row["net"], row["tgid"], row["remote_ip"]) for row in found}
