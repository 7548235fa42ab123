# SPDX-License-Identifier: Apache-2.0
"""Whatever the tables hold: an analysis, of bounded size. Healthy traffic: nothing above info."""

import math
from datetime import datetime, timedelta
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ktrace_agent.analyze.findings import DNS_BYTES, FINDINGS_BYTES, analyze
from ktrace_agent.tables import contract
from ktrace_api.finding import Cause, Findings
from tests.agent.analyze.capture_builder import CLIENT, SERVER, Captured, at, ends, serious

WORDS = {
    "type": ["tcp_state", "udp_send", "udp_recv", "connect", "tcp_retransmit"],
    "result": ["established", "failed", "abandoned", "interrupted", "pending", "denied"],
    "error": ["-", "ECONNREFUSED", "ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH", "EPERM", "EACCES",
              "EADDRNOTAVAIL"],
    "role": ["client", "server", "-"],
    "old_state": ["ESTABLISHED", "CLOSE_WAIT", "SYN_SENT", "LISTEN"],
    "new_state": ["ESTABLISHED", "CLOSE_WAIT", "CLOSE", "SYN_SENT", "NEW_SYN_RECV"],
    "state": ["ESTABLISHED", "CLOSE_WAIT", "LISTEN"],
    "moment": ["start", "end"],
    "proto": ["tcp", "udp"],
    "local_ip": ["10.0.0.1", "0.0.0.0", "::1", "a'b"],
    "remote_ip": ["10.0.0.2", "::1", "a'b"],
    "remote": ["10.0.0.2:53", "[::1]:443", "a'b:1", ":"],
    "ct_state": ["UNREPLIED", "REPLIED", "SYN_SENT", "ESTABLISHED"],
    "ct_reply": ["10.0.0.9:80 -> 10.0.0.1:40000", "-", ""],
    "nat": ["dnat", "snat", "both", "none"],
    "owner_source": ["process", "listener", "accept", "inventory", "none"],
    "family": ["ipv4", "ipv6"],
    "file": ["snmp", "snmp6", "netstat", "stat/nf_conntrack", "softnet_stat", "pressure/cpu",
             "pressure/memory", "conntrack/max", "sockstat", "ctnetlink"],
    "name": ["Udp.RcvbufErrors", "Udp.InDatagrams", "Udp6RcvbufErrors", "Udp.NoPorts", "drop",
             "entries", "insert_failed", "early_drop", "dropped", "processed", "some.total",
             "full.total", "value", "TCP.tw", "TcpExt.ListenOverflows", "Icmp.InDestUnreachs",
             "Tcp.EstabResets", "Tcp.RetransSegs", "peak", "count", "max", "TcpExt.TCPDSACKRecv",
             "net.ipv4.ip_local_port_range"],
    "hook": ["connect", "tcp_state", "socket_send"],
}  # fmt: skip
BIGINT = st.sampled_from([0, 1, 2, 53, -1, 10**6, 2**63 - 1, -(2**63)]) | st.integers(-5, 500)
PORT = st.sampled_from([53, 443, 123, 8080, 0, 65535, -1, 40000])
TIMES = st.integers(0, 10**8).map(lambda us: at(us / 1e6)) | st.datetimes(
    datetime(1970, 1, 1),  # noqa: DTZ001
    datetime(2262, 1, 1),  # noqa: DTZ001
)


def values(name: str, kind: str) -> st.SearchStrategy[Any]:
    known: st.SearchStrategy[Any]
    if kind == "VARCHAR[]":
        known = st.lists(st.sampled_from(["PEEK", "CORKED", "ERRQUEUE", "x: y"]), max_size=2)
    elif kind == "INTEGER[]":
        known = st.lists(PORT, max_size=3)
    elif name in WORDS:
        known = st.sampled_from(WORDS[name])
        if name not in ("type", "moment"):
            known |= st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
    elif kind == "VARCHAR":
        known = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=300)
    else:
        known = {
            "BIGINT": BIGINT,
            "INTEGER": PORT if name.endswith("port") else st.integers(-(2**31), 2**31 - 1),
            "BOOLEAN": st.booleans(),
            "DOUBLE": st.floats() | st.integers(0, 10**9).map(float),
            "TIMESTAMP": TIMES,
        }[kind]
    return st.none() | known if name != "type" else known


def lines(table: str, most: int) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    columns = [values(name, kind) for name, kind in contract.COLUMNS[table].items()]
    return st.lists(st.tuples(*columns), max_size=most)


MADE = ("findings", "dns_suspects")
"""Tables of what the analysis returns."""
TABLES = st.fixed_dictionaries(
    {
        table: lines(table, 12 if table == "rows" else 5)
        for table in contract.COLUMNS
        if table not in MADE
    }
)


def check(found: Findings) -> None:
    assert len(found.findings) <= 20
    assert sum(len(one.to_bytes()) for one in found.findings) <= FINDINGS_BYTES
    assert len(found.dns.to_bytes()) <= DNS_BYTES
    assert Findings.model_validate_json(found.to_bytes()) == found
    for finding in found.findings:
        assert all(math.isfinite(number.value) for number in finding.evidence.numbers)


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(TABLES)
@example({"accounting": [("tcp_state", -(2**63), None, 1, *[None] * 7)]})
def test_any_tables_of_the_right_types_are_analysed(tables: dict[str, list[tuple[Any, ...]]]):
    con = duckdb.connect()
    try:
        for table, columns in contract.COLUMNS.items():
            if table in MADE:
                continue
            con.execute(contract.create(table))
            marks = ", ".join("?" * len(columns))
            for line in tables.get(table, ()):
                con.execute(f"INSERT INTO {table} VALUES ({marks})", line)
        check(analyze(con))
    finally:
        con.close()


@st.composite
def healthy(draw: st.DrawFn) -> Captured:
    """Traffic as a node without trouble has it, in any mixture."""
    made = Captured(sample=draw(st.sampled_from([1, 1, 10])), ports=draw(
        st.sampled_from([[], [53, 443]])))  # fmt: skip
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sampled = made.con.execute("SELECT sample FROM capture").fetchone() != (1,)
    for number in range(draw(st.integers(0, 40))):  # lookups, of which one may be lost
        port, sock = 30000 + number, 1000 + number
        second, rtt = rng.uniform(0, 58), rng.exponential(0.01)
        heard = not (sampled and rng.random() < 0.5)
        made.query(second, min(rtt, 0.12) if heard else None, sock=sock, local_port=port)
        made.flow("udp", port=53, local_port=port, tx_calls=1, rx_calls=1,
                  first_ts=at(second), last_ts=at(second + 0.1))  # fmt: skip
        if draw(st.booleans()) and heard:  # AAAA right behind it
            made.query(second + 1e-4, min(rtt, 0.12), sock=sock, local_port=port)
    for number in range(draw(st.integers(0, 40))):  # short connections
        us = int(rng.exponential(2000))
        made.connect(rng.uniform(0, 59), us=us, local_port=40000 + number)
    for number in range(draw(st.integers(0, 2))):  # start-up: refused once or twice
        made.connect(0.1 + number / 10, "failed", "ECONNREFUSED", port=9000)
    for number in range(waits := draw(st.integers(0, 20))):  # a loop until a server is up
        made.connect(number, "failed", "ECONNREFUSED", port=9100, tgid=500 + number, comm="nc")
    made.connect(waits, port=9100, tgid=500 + waits, comm="nc")
    for port in range(draw(st.integers(0, 30))):  # a scan with a process for each port
        made.connect(40, "failed", "ECONNREFUSED", port=20_000 + port, tgid=600 + port, comm="nc")
    for port in range(draw(st.integers(0, 30))):  # a health checker's scan
        made.connect(20 + port / 10, "failed", "ECONNREFUSED", port=10_000 + port, tgid=77)
    for _ in range(draw(st.integers(0, 5))):  # happy eyeballs
        made.connect(30, "failed", "ENETUNREACH", to="2001:db8::2", port=443)
        made.connect(30.1)
        made.connect(31, "abandoned", us=int(rng.uniform(0, 250_000)), to="2001:db8::2")
    for number in range(draw(st.integers(0, 8))):  # probes of the tail
        made.retransmit(rng.uniform(0, 60), sock=number + 1)
    made.flow(tx_bytes=50_000_000, rx_bytes=10, tx_calls=1000, opened=40)
    for number in range(draw(st.integers(0, 30))):  # aborted by the client, as probes do
        change = {"old_state": "ESTABLISHED", "new_state": "CLOSE", "role": "client"}
        made.row(40, "tcp_state", sock=number, **change, **ends(CLIENT, 50000 + number, SERVER, 80))
    for _ in range(draw(st.integers(0, 9))):  # idle pools
        made.socket("end", "CLOSE_WAIT", rng.uniform(0, 50))
    for _ in range(draw(st.integers(0, 50))):
        made.socket("end", "ESTABLISHED", 5000.0)
    made.counter("snmp", "Udp.RcvbufErrors", draw(st.integers(0, 19)))
    made.counter("netstat", "TcpExt.ListenOverflows", draw(st.integers(0, 2)))
    made.counter("pressure/cpu", "some.total", draw(st.floats(0, 0.8)) * 60e6, netns=None)
    made.counter("softnet_stat", "time_squeeze", 1000, netns=None)
    return made


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(healthy())
def test_healthy_traffic_has_nothing_above_info(made: Captured):
    found = made.analyze()
    assert serious(found) == set()
    assert found.verdict.verdict in (Cause.HEALTHY, Cause.UNKNOWN)
    check(found)


def test_the_worst_names_stay_within_the_size():
    """Long names in characters that JSON and UTF-8 make longer."""
    made = Captured()
    name = "\N{GRINNING FACE}" * 300
    for tgid in range(60):
        facts: dict[str, Any] = {"comm": name, "pod": name, "namespace": name, "tgid": tgid}
        for number in range(5):
            made.query(number, None, sock=tgid * 10 + number, to=f"10.9.0.{tgid}", **facts)
            made.connect(number, "failed", "ECONNREFUSED", to=f"10.9.1.{tgid}", **facts)
    found = made.analyze()
    assert found.findings_left_out > 50
    check(found)


def test_times_out_of_order_and_far_apart():
    made = Captured(started=at(0), ended=at(0) - timedelta(days=9000), window_s=-1.0)
    made.query(1, -0.5).query(2, 10**8).connect(3, "pending", us=None)
    check(made.analyze())
