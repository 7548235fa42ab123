# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - every part of a statement is a constant or a number
"""Established connections: retransmitted segments, sockets not closed, full accept queues."""

from collections.abc import Iterator

from ktrace_agent.analyze.findings.case import Case, Measured, Texts, Trust
from ktrace_agent.analyze.findings.wording import Row, by, inside, literal, number, share, who
from ktrace_agent.analyze.sentences import REFUTED_BY
from ktrace_agent.analyze.titles import Variant, Words, title
from ktrace_agent.host.procfs import DUPLICATES
from ktrace_api.finding import Cause, Confidence, Finding, FindingId, Severity
from ktrace_api.names import RowType

_CONSIDERED = 50
_SEGMENT_BYTES = 1448
"""Payload of a segment on a link with an MTU of 1500 and TCP timestamps."""
_HANDSHAKES = "('SYN_SENT', 'SYN_RECV', 'NEW_SYN_RECV')"

# A server has many clients with many ports: the address alone is the peer.
_PEER = "CASE WHEN role = 'client' THEN remote ELSE remote_ip END"

_RETRANSMITS = """
CREATE OR REPLACE TEMP TABLE f_retransmits AS
SELECT n, ts, net, tgid, comm, pod, namespace, local, local_port, remote, remote_ip, role, sock,
  new_state AS state, coalesce(synack, false) AS synack, greatest(coalesce(measure, 1), 1) AS segs
FROM rows WHERE type = 'tcp_retransmit' AND n IS NOT NULL AND ts IS NOT NULL
"""
_STALLS = """
CREATE OR REPLACE TEMP TABLE f_stalls AS
WITH gaps AS (
  SELECT *, date_diff('microsecond', lag(ts) OVER w, ts) AS gap
  FROM f_retransmits WHERE state NOT IN {handshakes} AND sock IS NOT NULL
  WINDOW w AS (PARTITION BY sock ORDER BY n)),
grown AS (
  SELECT *, gap >= 1.5 * lag(gap) OVER (PARTITION BY sock ORDER BY n) AS grew FROM gaps),
runs AS (
  SELECT *, count(*) FILTER (WHERE NOT coalesce(grew, true))
    OVER (PARTITION BY sock ORDER BY n) AS run FROM grown)
SELECT sock, any_value(net) AS net, any_value(tgid) AS tgid, any_value({peer}) AS peer
FROM (SELECT *, count(*) OVER (PARTITION BY sock, run) AS length FROM runs)
WHERE length >= {retransmits} - 1 GROUP BY sock HAVING max(gap) >= {gap_us}
"""
_LOSS = f"""
WITH again AS (
  SELECT net, tgid, {_PEER} AS peer, max(comm) AS comm, max(pod) AS pod,
    max(namespace) AS namespace, sum(segs) * {{sample}} AS segs, count(*) AS events,
    count(DISTINCT sock) AS sockets, min(n, 10) AS shown, max(remote_ip) AS remote_ip
  FROM f_retransmits WHERE state NOT IN {_HANDSHAKES} GROUP BY ALL),
sent AS (
  SELECT net, tgid, {_PEER} AS peer, sum(greatest(greatest(coalesce(tx_bytes, 0), 0)
      / {_SEGMENT_BYTES}, greatest(coalesce(tx_calls, 0), 0))
      + 3.0 * greatest(coalesce(opened, 0), 0)) AS segs
  FROM flows WHERE proto = 'tcp' GROUP BY ALL HAVING count(tx_bytes) = count(*)),
stalled AS (SELECT net, tgid, peer, count(*) AS stalls FROM f_stalls GROUP BY ALL)
SELECT a.*, s.segs AS sent, coalesce(t.stalls, 0) AS stalls
FROM again a LEFT JOIN sent s ON a.net IS NOT DISTINCT FROM s.net
    AND a.tgid IS NOT DISTINCT FROM s.tgid AND a.peer IS NOT DISTINCT FROM s.peer
  LEFT JOIN stalled t ON a.net IS NOT DISTINCT FROM t.net
    AND a.tgid IS NOT DISTINCT FROM t.tgid AND a.peer IS NOT DISTINCT FROM t.peer
ORDER BY stalls DESC, a.segs DESC, a.tgid, a.peer, a.net LIMIT {_CONSIDERED}
"""
_CLOSE_WAIT = f"""
WITH ends AS (
  SELECT net, tgid, comm, pod, namespace, remote, remote_ip, role, age_us, moment, owner_source
  FROM sockets WHERE state = 'CLOSE_WAIT')
SELECT net, tgid, max(comm) AS comm, max(pod) AS pod, max(namespace) AS namespace,
  count(*) FILTER (WHERE moment = 'start') AS before,
  count(*) FILTER (WHERE moment = 'end') AS after,
  count(*) FILTER (WHERE moment = 'end' AND age_us >= {{age_us}}) AS stale,
  (max(age_us) FILTER (WHERE moment = 'end' AND age_us >= 0)
    - min(age_us) FILTER (WHERE moment = 'end' AND age_us >= 0)) AS spread,
  count(DISTINCT remote_ip) AS peers, mode(if(role = 'client', remote, remote_ip)) AS peer
FROM ends GROUP BY net, tgid HAVING after > before ORDER BY after - before DESC, tgid, net
LIMIT {_CONSIDERED}
"""


def prepare(case: Case) -> None:
    """Create f_retransmits and f_stalls."""
    limits = case.limits
    case.con.execute(_RETRANSMITS)
    case.con.execute(
        _STALLS.format(
            handshakes=_HANDSHAKES,
            peer=_PEER,
            retransmits=limits.stall_retransmits,
            gap_us=round(limits.stall_gap_s * 1e6),
        )
    )


def find(case: Case) -> Iterator[Finding]:
    """TCP_RETRANSMITS, CLOSE_WAIT_GROWING, LISTEN_OVERFLOW. Needs the tables of prepare()."""
    for row in case.query(_LOSS.format(sample=case.coverage.sample)):
        yield _loss(case, row)
    age_us = round(case.limits.close_wait_age_s * 1e6)
    for row in case.query(_CLOSE_WAIT.format(age_us=age_us)):
        yield _close_wait(case, row)
    for netns, drops in case.risen(
        "netstat", "TcpExt.ListenOverflows", "TcpExt.TCPReqQFullDrop"
    ).items():
        yield _overflow(case, netns, drops)


def _loss_severity(case: Case, segs: int, rate: float | None) -> Severity:
    limits = case.limits
    if rate is None or segs < limits.retransmit_count or rate < limits.retransmit_share:
        return Severity.INFO
    worse = rate >= limits.retransmit_critical_share and segs >= 10 * limits.retransmit_count
    return Severity.CRITICAL if worse else Severity.WARNING


def _loss(case: Case, row: Row) -> Finding:
    limits = case.limits
    segs, sent = int(row["segs"]), float(row["sent"] or 0)
    # Without a flow there is no share: 12 segments may be 12 of millions.
    rate = min(segs / sent, 1.0) if sent > 0 else None
    resent = case.delta(row["net"], "snmp", "Tcp.RetransSegs")
    known = case.delta(row["net"], "netstat", DUPLICATES)
    unknown = case.unknown(row["net"], "netstat", DUPLICATES)
    needless = resent > 0 and known / resent >= limits.retransmit_needless_share
    # If the namespace's receivers already had all but a few of the segments, no connection can
    # have lost a whole run of them.
    acknowledged = resent > 0 and resent - known < limits.stall_retransmits
    stalled = 0 if acknowledged else row["stalls"]
    severity = Severity.INFO if needless else _loss_severity(case, segs, rate)
    if stalled and severity == Severity.INFO:
        severity = Severity.WARNING
    numbers = [number("segments", segs, limits.retransmit_count, "segments")]
    if rate is not None:
        numbers.insert(0, number("retransmitted", rate, limits.retransmit_share, "share"))
    if not unknown:
        late = share(known, resent)
        numbers.append(number("needless", late, limits.retransmit_needless_share, "share"))
    return case.find(
        FindingId.TCP_RETRANSMITS,
        severity,
        Texts(
            title=_loss_title(row, segs, None if rate is None else sent, stalled),
            refuted_by=REFUTED_BY[FindingId.TCP_RETRANSMITS],
            next=inside(
                row,
                f"ss -tino dst {row['remote_ip']}",
                f"ping -M do -s 1472 -c 5 {row['remote_ip']}",
            ),
        ),
        subject=row,
        points_to=Cause.ROUTING,
        measured=Measured(
            counts={
                "segments_again": segs,
                "segments_sent": int(sent) if rate is not None else None,
                "sockets": row["sockets"],
                "stalled": stalled,
                "needless": None if unknown else known,
            },
            numbers=numbers,
            rows=row["shown"],
        ),
        trust=Trust(
            Confidence.HIGH if stalled or segs >= 50 else Confidence.MEDIUM,
            (RowType.TCP_RETRANSMIT,),
            unknown,
        ),
    )


def _loss_title(row: Row, segs: int, sent: float | None, stalled: int) -> str:
    """`sent` is the estimated number of segments, None if it is unknown."""
    fields: dict[str, Words] = {"segs": segs, "who": who(row), "peer": row["peer"]}
    if sent is not None:
        fields["sent"] = round(sent)
    if stalled:
        variant = Variant.STALLED if sent is None else Variant.RATE_STALLED
        fields["stalled"] = stalled
    elif sent is not None:
        variant = Variant.RATE
        fields["share"] = min(segs / sent, 1.0)
    else:
        variant = Variant.PLAIN
    return title(FindingId.TCP_RETRANSMITS, variant, **fields)


def _close_wait(case: Case, row: Row) -> Finding:
    limits = case.limits
    growth = row["after"] - row["before"]
    stale = row["stale"] - row["before"]
    spread_s = (row["spread"] or 0) / 1e6
    warn = (
        stale >= limits.close_wait_growth
        and growth >= limits.close_wait_growth
        and spread_s >= limits.close_wait_spread_s
    )
    shown = case.query(
        "SELECT min(n, 10) AS shown FROM rows WHERE type = 'tcp_state' AND new_state = 'CLOSE_WAIT'"
        f" AND net IS NOT DISTINCT FROM {literal(row['net'])}"
        f" AND tgid IS NOT DISTINCT FROM {literal(row['tgid'])}"
    )[0]["shown"]
    return case.find(
        FindingId.CLOSE_WAIT_GROWING,
        Severity.WARNING if warn else Severity.INFO,
        Texts(
            title=_close_wait_title(row, growth),
            refuted_by=REFUTED_BY[FindingId.CLOSE_WAIT_GROWING],
            next=inside(row, "ss -tanpo state close-wait"),
        ),
        subject=row,
        points_to=Cause.APPLICATION,
        measured=Measured(
            counts={"before": row["before"], "after": row["after"], "stale": row["stale"]},
            numbers=[
                number("growth", growth, limits.close_wait_growth, "sockets"),
                number("older than a second, new", stale, limits.close_wait_growth, "sockets"),
                number("time between first and last", spread_s, limits.close_wait_spread_s, "s"),
            ],
            rows=shown,
        ),
        trust=Trust(rests_on=(RowType.TCP_STATE,)),
    )


def _close_wait_title(row: Row, growth: int) -> str:
    fields: dict[str, Words] = {"growth": growth, "before": row["before"], "after": row["after"]}
    if row["comm"] is None and row["tgid"] is None:
        return title(FindingId.CLOSE_WAIT_GROWING, Variant.UNKNOWN_PROCESS, **fields)
    return title(FindingId.CLOSE_WAIT_GROWING, who=who(row), **fields)


def _overflow(case: Case, netns: int | None, drops: int) -> Finding:
    """The counter is per namespace. The listener is the one with connections not accepted."""
    limits = case.limits
    same_net = f"net IS NOT DISTINCT FROM {literal(netns)}"
    # Without accept(), every connection of a server looks as if it had not been accepted.
    accepts = "accept" not in case.coverage.hooks_missing
    found = case.query(
        f"""WITH unaccepted AS (
              SELECT local_port, count(*) AS waiting, min(n, 10) AS shown FROM rows
              WHERE type = 'tcp_state' AND owner_source = 'listener' AND {same_net}
                AND {accepts} AND new_state = 'ESTABLISHED' GROUP BY local_port),
            again AS (SELECT local_port, count(*) AS again FROM f_retransmits
              WHERE synack AND {same_net} GROUP BY local_port)
            SELECT s.tgid, max(s.comm) AS comm, max(s.pod) AS pod, max(s.namespace) AS namespace,
              max(s.local) AS peer, s.local_port, max(coalesce(u.waiting, 0)) AS waiting,
              max(coalesce(a.again, 0)) AS again, any_value(u.shown) AS shown
            FROM sockets s LEFT JOIN unaccepted u ON s.local_port = u.local_port
              LEFT JOIN again a ON s.local_port = a.local_port
            WHERE s.state = 'LISTEN' AND s.net IS NOT DISTINCT FROM {literal(netns)}
            GROUP BY s.tgid, s.local_port
            ORDER BY waiting DESC, again DESC, s.tgid, s.local_port LIMIT 2"""
    )
    sure = len(found) == 1 or (bool(found) and found[0]["waiting"] > found[-1]["waiting"])
    row: Row = found[0] if sure else {"shown": None, "waiting": 0}
    finding = FindingId.LISTEN_OVERFLOW
    return case.find(
        finding,
        Severity.WARNING if drops >= limits.listen_overflow else Severity.INFO,
        Texts(
            title=title(finding, peer=row["peer"], by=by(row), drops=drops)
            if sure
            else title(finding, Variant.UNKNOWN_PROCESS, drops=drops),
            refuted_by=REFUTED_BY[finding],
            next=inside(
                row | {"net": netns},
                "ss -ltnp",
                "nstat -az TcpExtListenOverflows TcpExtListenDrops",
            )
            + " # Recv-Q equal to Send-Q: the queue is full",
        ),
        subject=row | {"net": netns},
        points_to=Cause.APPLICATION,
        measured=Measured(
            counts={"overflows": drops, "not_accepted": row["waiting"] if accepts else None},
            numbers=[number("ListenOverflows", drops, limits.listen_overflow, "attempts")],
            rows=row["shown"],
        ),
        trust=Trust(Confidence.HIGH if sure else Confidence.MEDIUM),
    )
