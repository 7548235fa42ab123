# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - every part of a statement is a constant or a number
"""Connection tracking: a full table, entries that collide, flows that nobody answers."""

from collections.abc import Iterator
from ipaddress import IPv4Address

from ktrace_agent.analyze.findings.case import Case
from ktrace_agent.analyze.findings.wording import Row, grade, inside, literal, number, share, who
from ktrace_api.finding import Cause, Confidence, Finding, FindingId, Severity

_CONSIDERED = 50
_FILE, _ASKED = "stat/nf_conntrack", "ctnetlink"
"""Files of counters: of /proc, and what the looks by netlink were told."""
_ASKED_AND_ANSWERED = (67, 69, 88, 123, 161, 389, 443, 500, 1812, 1813, 3478, 4500)
"""UDP ports of protocols that always answer: DHCP, TFTP, Kerberos, NTP, SNMP, CLDAP, QUIC, IKE,
RADIUS, STUN. Others (syslog, statsd, VXLAN, NetFlow) never do; DNS has findings of its own."""
_TRANSLATED = ("dnat", "snat", "both")
_GROUPS = r"^(22[4-9]|23\d)\.|^255\.255\.255\.255$|^ff[0-9a-f]{2}:"
"""Multicast and broadcast: who answers does so from an address of its own (SSDP, mDNS, DHCP)."""
_BROADCAST_BITS = 8
"""Host bits of a network whose last address is taken for its broadcast: in a smaller one it looks
like any other."""

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
  bool_or(r.remote_port IS NOT NULL OR s.remote_port IN {_ASKED_AND_ANSWERED}) AS answers_expected
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
    for row in case.ask(_UNREPLIED):
        if not _broadcast(case, row):
            yield _unreplied(case, row)


def _full(case: Case) -> Iterator[Finding]:
    """Each namespace has a table of its own."""
    limits = case.limits
    tables = case.ask(f"SELECT DISTINCT netns FROM counters WHERE file IN ('{_FILE}', '{_ASKED}')")
    for netns in sorted((row["netns"] for row in tables), key=lambda inode: inode or 0):
        held, left, most = _entries(case, netns)
        filled = share(held, most)
        dropped, thrown_out = _rose(case, netns, "drop"), _rose(case, netns, "early_drop")
        seen_full = filled >= limits.conntrack_full_share
        # The kernel throws entries out for new ones only where the table has no room for another.
        if not seen_full and not thrown_out:
            continue
        still = share(left, most) >= limits.conntrack_full_share
        shown = f"{held:.0f} of {most:.0f} entries"
        yield case.find(
            FindingId.CONNTRACK_FULL,
            Severity.CRITICAL if dropped or thrown_out else Severity.WARNING,
            f"The connection tracking table {'is' if still else 'was'} full:"
            f" {shown if seen_full else f'{thrown_out} entries thrown out for new ones'},"
            f" {dropped} packets of new connections dropped",
            subject={"net": netns},
            points_to=Cause.NAT,
            refuted_by="A count that stays well below nf_conntrack_max in that namespace while drop"
            " and early_drop stand still.",
            look=inside(
                {"net": netns},
                "sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max",
                "conntrack -S",
            )
            + "; dmesg | grep 'table full'",
            confidence=Confidence.HIGH if dropped or thrown_out else Confidence.MEDIUM,
            counts={"entries": int(held), "dropped": dropped, "early_drop": thrown_out},
            numbers=[
                number("filled at most", filled, limits.conntrack_full_share, "share"),
                number("entries at most", held, most, "entries"),
                number("packets dropped", dropped, 0, "packets"),
                number("entries thrown out (early_drop)", thrown_out, 0, "entries"),
            ],
        )


def _entries(case: Case, netns: int | None) -> tuple[float, float, float]:
    """Entries that a table held at most and in the end, and its limit; 0: not known."""
    sizes = (case.counter(netns, _FILE, "entries"), case.counter(netns, _ASKED, "count"))
    peak = case.counter(netns, _ASKED, "peak")
    held = [max(one.before, one.after) for one in (*sizes, peak) if one]
    left = [one.after for one in sizes if one]
    limit = case.counter(netns, _ASKED, "max") or case.counter(None, "conntrack/max", "value")
    return max(held, default=0.0), max(left, default=0.0), limit.after if limit else 0.0


def _rose(case: Case, netns: int | None, name: str) -> int:
    """A statistic of connection tracking, which two sources tell."""
    rises = [case.delta(netns, _FILE, name)]
    limit = case.counter(netns, _ASKED, "max")
    # Where the first look could not ask, all begins at 0: that is no rise of this capture.
    if limit and limit.before > 0:
        rises.append(case.delta(netns, _ASKED, name))
    return max(rises)


def _insert_failed(case: Case, netns: int | None, failed: int) -> Finding:
    limits = case.limits
    warn = failed >= limits.conntrack_insert_failed
    return case.find(
        FindingId.CONNTRACK_INSERT_FAILED,
        Severity.WARNING if warn else Severity.INFO,
        f"{failed} packets were dropped because their connection tracking entry clashed with"
        " another",
        subject={"net": netns},
        points_to=Cause.NAT,
        refuted_by="No source NAT and no parallel queries from one port in that namespace.",
        look=inside(
            {"net": netns}, "conntrack -S", "nft list ruleset | grep -nE 'masquerade|snat'"
        ),
        confidence=Confidence.MEDIUM,
        counts={"insert_failed": failed},
        numbers=[number("insert_failed", failed, limits.conntrack_insert_failed, "packets")],
    )


def _ipv4(address: str | None) -> int:
    """An IPv4 address as a number, 0 where it is none."""
    try:
        return int(IPv4Address(address or ""))
    except ValueError:
        return 0


def _broadcast(case: Case, row: Row) -> bool:
    """The last address of a network in which the namespace has an address itself."""
    last = _ipv4(row["remote_ip"])
    host = (last ^ (last + 1)) >> 1  # the ones at its end
    if host < 2**_BROADCAST_BITS - 1 or row["nat"] in _TRANSLATED:
        return False
    own = case.ask(
        "SELECT DISTINCT local_ip FROM flows WHERE family = 'ipv4'"
        f" AND net IS NOT DISTINCT FROM {literal(row['net'])} AND local_ip <> '0.0.0.0'"
    )
    return any(_ipv4(line["local_ip"]) | host == last for line in own)


def _unreplied(case: Case, row: Row) -> Finding:
    limits = case.limits
    sent = int(row["sent"])
    warn = bool(row["answers_expected"]) and sent >= limits.unreplied_count
    translated = row["nat"] in _TRANSLATED
    shown = case.ask(
        "SELECT min(n, 10) AS shown FROM rows WHERE type = 'udp_send'"
        f" AND net IS NOT DISTINCT FROM {literal(row['net'])}"
        f" AND tgid IS NOT DISTINCT FROM {literal(row['tgid'])}"
        f" AND remote = {literal(row['peer'])}"
    )[0]["shown"]
    return case.find(
        FindingId.CONNTRACK_UNREPLIED,
        grade(limits, 0, sent, warn=warn),
        f"Connection tracking saw no packet come back for {sent} datagrams of {who(row)} to"
        f" {row['peer']}",
        subject=row,
        points_to=Cause.NAT if translated else Cause.POLICY,
        refuted_by="A protocol that never answers (syslog, statsd, NetFlow), or answers in a"
        " packet capture.",
        look=inside(
            row,
            f"conntrack -L -p udp --orig-dst {row['remote_ip']}"
            f" --orig-port-dst {row['remote_port']}",
        ),
        confidence=Confidence.HIGH if warn else Confidence.LOW,
        counts={"flows": row["flows"], "datagrams": sent},
        rows=shown,
        numbers=[number("datagrams without an answer", sent, limits.unreplied_count, "datagrams")],
    )
