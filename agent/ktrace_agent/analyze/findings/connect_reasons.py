# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - every part of a statement is a constant or a number
"""What explains connects that failed: translation, ICMP, the other IP version, a scan.

The tables are those of connects.prepare().
"""

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


def rejections(case: Case, row: Row) -> int:
    """ICMP "unreachable" that came from others: what a namespace sends itself is its own."""
    came = case.delta(row["net"], "snmp", "Icmp.InDestUnreachs")
    own = case.delta(row["net"], "snmp", "Icmp.OutDestUnreachs")
    came6 = case.delta(row["net"], "snmp6", "Icmp6InDestUnreachs")
    own6 = case.delta(row["net"], "snmp6", "Icmp6OutDestUnreachs")
    return max(came - own, 0) + max(came6 - own6, 0)


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
