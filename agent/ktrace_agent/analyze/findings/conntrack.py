# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - every part of a statement is a constant or a number
"""Connection tracking: full table, colliding entries, UDP flows without replies."""

from collections.abc import Iterator
from ipaddress import IPv4Address

from ktrace_agent.analyze.findings.case import Case, Measured, Texts, Trust
from ktrace_agent.analyze.findings.wording import Row, grade, inside, literal, number, share, who
from ktrace_agent.analyze.sentences import REFUTED_BY
from ktrace_agent.analyze.titles import Variant, title
from ktrace_api.finding import Cause, Confidence, Finding, FindingId, Severity

_CONSIDERED = 50
_FILE, _NETLINK = "stat/nf_conntrack", "ctnetlink"
"""Sources of counters: /proc/net, and the dumps over netlink."""
_REPLYING_PORTS = (67, 69, 88, 123, 161, 389, 443, 500, 1812, 1813, 3478, 4500)
"""UDP ports of protocols that always reply: DHCP, TFTP, Kerberos, NTP, SNMP, CLDAP, QUIC, IKE,
RADIUS, STUN. Others (syslog, statsd, VXLAN, NetFlow) never reply; DNS has its own findings."""
_TRANSLATED = ("dnat", "snat", "both")
_GROUPS = r"^(22[4-9]|23\d)\.|^255\.255\.255\.255$|^ff[0-9a-f]{2}:"
"""Multicast and broadcast: replies come from another address (SSDP, mDNS, DHCP)."""
_BROADCAST_BITS = 8
"""Minimum host bits of a network whose last address counts as broadcast. In a smaller network it
cannot be distinguished from a host address."""

_UNREPLIED = f"""
WITH udp AS (
  SELECT *, greatest(coalesce(tx_calls, 0), 0) AS sent FROM flows
  WHERE proto = 'udp' AND remote_port IS NOT NULL AND remote_port NOT IN (53, 5353)
    AND NOT coalesce(regexp_matches(remote_ip, '{_GROUPS}'), false)),
replying AS (SELECT DISTINCT net, remote_port FROM udp WHERE rx_calls > 0),
silent AS (
  SELECT * FROM udp WHERE ct_state = 'UNREPLIED' AND coalesce(rx_calls, 0) = 0 AND sent > 0)
SELECT s.net, s.tgid, max(s.comm) AS comm, max(s.pod) AS pod, max(s.namespace) AS namespace,
  s.remote AS peer, max(s.remote_ip) AS remote_ip, max(s.remote_port) AS remote_port,
  count(*) AS flows, sum(s.sent) AS sent, max(s.nat) AS nat,
  bool_or(r.remote_port IS NOT NULL OR s.remote_port IN {_REPLYING_PORTS}) AS answers_expected
FROM silent s LEFT JOIN replying r ON s.net IS NOT DISTINCT FROM r.net
  AND s.remote_port = r.remote_port
GROUP BY s.net, s.tgid, s.remote ORDER BY answers_expected DESC, sent DESC, s.tgid, s.remote, s.net
LIMIT {_CONSIDERED}
"""


def find(case: Case) -> Iterator[Finding]:
    """CONNTRACK_FULL, CONNTRACK_INSERT_FAILED, CONNTRACK_UNREPLIED."""
    yield from _full(case)
    for netns, failed in case.risen(_FILE, "insert_failed").items():
        yield _insert_failed(case, netns, failed)
    for row in case.query(_UNREPLIED):
        if not _broadcast(case, row):
            yield _unreplied(case, row)


def _full(case: Case) -> Iterator[Finding]:
    """Each network namespace has its own table."""
    limits = case.limits
    tables = case.query(
        f"SELECT DISTINCT netns FROM counters WHERE file IN ('{_FILE}', '{_NETLINK}')"
    )
    for netns in sorted((row["netns"] for row in tables), key=lambda inode: inode or 0):
        held, left, most = _entries(case, netns)
        filled = share(held, most)
        dropped, evicted = _rise(case, netns, "drop"), _rise(case, netns, "early_drop")
        was_full = filled >= limits.conntrack_full_share
        # The kernel evicts entries only if the table has no space for a new one.
        if not was_full and not evicted:
            continue
        still = share(left, most) >= limits.conntrack_full_share
        sure = bool(dropped or evicted)
        yield case.find(
            FindingId.CONNTRACK_FULL,
            Severity.CRITICAL if sure else Severity.WARNING,
            Texts(
                title=title(
                    FindingId.CONNTRACK_FULL,
                    Variant.PLAIN if still else Variant.WAS_FULL,
                    held=round(held),
                    most=round(most),
                    dropped=dropped,
                )
                if was_full
                else title(
                    FindingId.CONNTRACK_FULL, Variant.EVICTED, evicted=evicted, dropped=dropped
                ),
                refuted_by=REFUTED_BY[FindingId.CONNTRACK_FULL],
                next=inside(
                    {"net": netns},
                    "sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max",
                    "conntrack -S",
                )
                + "; dmesg | grep 'table full'",
            ),
            subject={"net": netns},
            points_to=Cause.NAT,
            measured=Measured(
                counts={"entries": int(held), "dropped": dropped, "early_drop": evicted},
                numbers=[
                    number("peak fill level", filled, limits.conntrack_full_share, "share"),
                    number("peak entries", held, most, "entries"),
                    number("packets dropped", dropped, 0, "packets"),
                    number("entries evicted (early_drop)", evicted, 0, "entries"),
                ],
            ),
            trust=Trust(Confidence.HIGH if sure else Confidence.MEDIUM),
        )


def _entries(case: Case, netns: int | None) -> tuple[float, float, float]:
    """Peak entries of a table, entries at the end, and its limit; 0 means unknown."""
    sizes = (case.counter(netns, _FILE, "entries"), case.counter(netns, _NETLINK, "count"))
    peak = case.counter(netns, _NETLINK, "peak")
    held = [max(one.before, one.after) for one in (*sizes, peak) if one]
    left = [one.after for one in sizes if one]
    limit = case.counter(netns, _NETLINK, "max") or case.counter(None, "conntrack/max", "value")
    return max(held, default=0.0), max(left, default=0.0), limit.after if limit else 0.0


def _rise(case: Case, netns: int | None, name: str) -> int:
    """Increase of a conntrack statistic; two sources may report it."""
    rises = [case.delta(netns, _FILE, name)]
    limit = case.counter(netns, _NETLINK, "max")
    # If the first dump failed, all counts start at 0, which is not an increase.
    if limit and limit.before > 0:
        rises.append(case.delta(netns, _NETLINK, name))
    return max(rises)


def _insert_failed(case: Case, netns: int | None, failed: int) -> Finding:
    limits = case.limits
    warn = failed >= limits.conntrack_insert_failed
    return case.find(
        FindingId.CONNTRACK_INSERT_FAILED,
        Severity.WARNING if warn else Severity.INFO,
        Texts(
            title=title(FindingId.CONNTRACK_INSERT_FAILED, failed=failed),
            refuted_by=REFUTED_BY[FindingId.CONNTRACK_INSERT_FAILED],
            next=inside(
                {"net": netns}, "conntrack -S", "nft list ruleset | grep -nE 'masquerade|snat'"
            ),
        ),
        subject={"net": netns},
        points_to=Cause.NAT,
        measured=Measured(
            counts={"insert_failed": failed},
            numbers=[number("insert_failed", failed, limits.conntrack_insert_failed, "packets")],
        ),
        trust=Trust(Confidence.MEDIUM),
    )


def _ipv4(address: str | None) -> int:
    """An IPv4 address as a number, 0 if it is not one."""
    try:
        return int(IPv4Address(address or ""))
    except ValueError:
        return 0


def _broadcast(case: Case, row: Row) -> bool:
    """True for the last address of a network in which the namespace has an address."""
    last = _ipv4(row["remote_ip"])
    host = (last ^ (last + 1)) >> 1  # its trailing one bits
    if host < 2**_BROADCAST_BITS - 1 or row["nat"] in _TRANSLATED:
        return False
    own = case.query(
        "SELECT DISTINCT local_ip FROM flows WHERE family = 'ipv4'"
        f" AND net IS NOT DISTINCT FROM {literal(row['net'])} AND local_ip <> '0.0.0.0'"
    )
    return any(_ipv4(line["local_ip"]) | host == last for line in own)


def _unreplied(case: Case, row: Row) -> Finding:
    limits = case.limits
    sent = int(row["sent"])
    warn = bool(row["answers_expected"]) and sent >= limits.unreplied_count
    translated = row["nat"] in _TRANSLATED
    shown = case.query(
        "SELECT min(n, 10) AS shown FROM rows WHERE type = 'udp_send'"
        f" AND net IS NOT DISTINCT FROM {literal(row['net'])}"
        f" AND tgid IS NOT DISTINCT FROM {literal(row['tgid'])}"
        f" AND remote = {literal(row['peer'])}"
    )[0]["shown"]
    return case.find(
        FindingId.CONNTRACK_UNREPLIED,
        grade(limits, 0, sent, warn=warn),
        Texts(
            title=title(FindingId.CONNTRACK_UNREPLIED, peer=row["peer"], sent=sent, who=who(row)),
            refuted_by=REFUTED_BY[FindingId.CONNTRACK_UNREPLIED],
            next=inside(
                row,
                f"conntrack -L -p udp --orig-dst {row['remote_ip']}"
                f" --orig-port-dst {row['remote_port']}",
            ),
        ),
        subject=row,
        points_to=Cause.NAT if translated else Cause.POLICY,
        measured=Measured(
            counts={"flows": row["flows"], "datagrams": sent},
            numbers=[number("unanswered datagrams", sent, limits.unreplied_count, "datagrams")],
            rows=shown,
        ),
        trust=Trust(Confidence.HIGH if warn else Confidence.LOW),
    )
