# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - every part of a statement is a constant or a number
"""This node: full receive buffers and backlog queues, CPU and memory pressure."""

from collections.abc import Iterator

from ktrace_agent.analyze.findings.case import Case, Measured, Texts, Trust
from ktrace_agent.analyze.findings.wording import Row, inside, literal, number, share, who
from ktrace_agent.analyze.sentences import NEXT, REFUTED_BY
from ktrace_agent.analyze.titles import Variant, Words, title
from ktrace_api.finding import Cause, Confidence, Finding, FindingId, Severity

_UDP = {
    "snmp": (("Udp.RcvbufErrors", "Udp.MemErrors"), "Udp.InDatagrams"),
    "snmp6": (("Udp6RcvbufErrors", "Udp6MemErrors"), "Udp6InDatagrams"),
}
"""File -> counters of dropped datagrams, counter of received ones."""


def find(case: Case) -> Iterator[Finding]:
    """UDP_RCVBUF_DROPS, SOFTNET_DROPS, CPU_PRESSURE, MEMORY_PRESSURE."""
    for file, (names, _) in _UDP.items():
        for netns, drops in case.risen(file, *names).items():
            yield _udp(case, file, netns, drops)
    yield from _softnet(case)
    yield from _cpu(case)
    yield from _memory(case)


def _reader(case: Case, netns: int | None) -> tuple[Row, bool]:
    """The process that received most datagrams in a namespace; True if it was the only one."""
    same_net = f"net IS NOT DISTINCT FROM {literal(netns)}"
    found = case.query(
        f"""SELECT tgid, max(comm) AS comm, max(pod) AS pod, max(namespace) AS namespace,
              count(*) AS calls, min(n, 10) AS shown
            FROM rows WHERE type = 'udp_recv' AND {same_net} AND remote_port IS DISTINCT FROM 53
            GROUP BY tgid ORDER BY calls DESC, tgid LIMIT 2"""
    )
    return (found[0] if found else {"shown": None}), len(found) == 1


def _udp(case: Case, file: str, netns: int | None, drops: int) -> Finding:
    limits = case.limits
    names, came = _UDP[file]
    taken = case.delta(netns, file, came)
    lost = share(drops, drops + taken)
    unknown = case.unknown(netns, file, came)
    warn = drops >= limits.udp_drops and lost >= limits.udp_drop_share and not unknown
    row, alone = _reader(case, netns)
    numbers = [number(" + ".join(names), drops, limits.udp_drops, "datagrams")]
    if not unknown:
        numbers.append(number("of all datagrams", lost, limits.udp_drop_share, "share"))
    return case.find(
        FindingId.UDP_RCVBUF_DROPS,
        Severity.WARNING if warn else Severity.INFO,
        Texts(
            title=_udp_title(row, drops, None if unknown else lost),
            refuted_by=REFUTED_BY[FindingId.UDP_RCVBUF_DROPS],
            next=inside(
                row | {"net": netns}, "ss -uanmp", "nstat -az UdpRcvbufErrors Udp6RcvbufErrors"
            )
            + "; sysctl net.core.rmem_max",
        ),
        subject=row | {"net": netns},
        points_to=Cause.APPLICATION,
        measured=Measured(
            counts={"dropped": drops, "received": None if unknown else taken},
            numbers=numbers,
            rows=row["shown"],
        ),
        trust=Trust(Confidence.HIGH if alone else Confidence.MEDIUM, unknown=unknown),
    )


def _udp_title(row: Row, drops: int, lost: float | None) -> str:
    """`lost` is the share of all datagrams, None if it is unknown."""
    fields: dict[str, Words] = {"drops": drops}
    if lost is not None:
        fields["share"] = lost
    if row.get("tgid") is not None:
        fields["who"] = who(row)
    variant = {
        (False, False): Variant.PLAIN,
        (True, False): Variant.RATE,
        (False, True): Variant.READER,
        (True, True): Variant.RATE_READER,
    }["share" in fields, "who" in fields]
    return title(FindingId.UDP_RCVBUF_DROPS, variant, **fields)


def _softnet(case: Case) -> Iterator[Finding]:
    limits = case.limits
    dropped = case.delta(None, "softnet_stat", "dropped")
    if not dropped:
        return
    processed = case.delta(None, "softnet_stat", "processed")
    lost = share(dropped, dropped + processed)
    warn = dropped >= limits.softnet_drops and lost >= limits.softnet_drop_share
    yield case.find(
        FindingId.SOFTNET_DROPS,
        Severity.WARNING if warn else Severity.INFO,
        Texts(
            title=title(FindingId.SOFTNET_DROPS, dropped=dropped, share=lost),
            refuted_by=REFUTED_BY[FindingId.SOFTNET_DROPS],
            next=NEXT[FindingId.SOFTNET_DROPS],
        ),
        subject={},
        points_to=Cause.HOST,
        measured=Measured(
            counts={
                "dropped": dropped,
                "processed": processed,
                "time_squeeze": case.delta(None, "softnet_stat", "time_squeeze"),
            },
            numbers=[
                number("dropped", dropped, limits.softnet_drops, "packets"),
                number("of all packets", lost, limits.softnet_drop_share, "share"),
            ],
        ),
    )


def _stalled(case: Case, file: str, kind: str) -> float:
    """Share of the capture in which tasks waited. The counter is in microseconds."""
    return min(share(case.delta(None, file, f"{kind}.total") / 1e6, case.coverage.window_s), 1.0)


def _cpu(case: Case) -> Iterator[Finding]:
    limits = case.limits
    some = _stalled(case, "pressure/cpu", "some")
    if some < limits.cpu_some_share / 2:
        return
    long = case.coverage.window_s >= limits.cpu_min_window_s
    yield case.find(
        FindingId.CPU_PRESSURE,
        Severity.WARNING if some >= limits.cpu_some_share and long else Severity.INFO,
        Texts(
            title=title(FindingId.CPU_PRESSURE, some=some),
            refuted_by=REFUTED_BY[FindingId.CPU_PRESSURE],
            next=NEXT[FindingId.CPU_PRESSURE],
        ),
        subject={},
        points_to=Cause.HOST,
        measured=Measured(
            numbers=[
                number("time in which some task waited", some, limits.cpu_some_share, "share"),
                number(
                    "length of the capture", case.coverage.window_s, limits.cpu_min_window_s, "s"
                ),
            ],
        ),
        trust=Trust(Confidence.MEDIUM),
    )


def _memory(case: Case) -> Iterator[Finding]:
    limits = case.limits
    some, full = (_stalled(case, "pressure/memory", kind) for kind in ("some", "full"))
    if some < limits.memory_some_share / 10:
        return
    warn = some >= limits.memory_some_share or full >= limits.memory_full_share
    yield case.find(
        FindingId.MEMORY_PRESSURE,
        Severity.WARNING if warn else Severity.INFO,
        Texts(
            title=title(FindingId.MEMORY_PRESSURE, some=some, full=full),
            refuted_by=REFUTED_BY[FindingId.MEMORY_PRESSURE],
            next=NEXT[FindingId.MEMORY_PRESSURE],
        ),
        subject={},
        points_to=Cause.HOST,
        measured=Measured(
            numbers=[
                number("time in which some waited", some, limits.memory_some_share, "share"),
                number("time in which all waited", full, limits.memory_full_share, "share"),
            ],
        ),
    )
