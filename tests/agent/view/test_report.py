# SPDX-License-Identifier: Apache-2.0
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ktrace_agent.view import findings, query_table, report, style
from ktrace_api.summary import Summary

NOTHING = {
    "seen": 0, "written": 0, "filtered": 0, "sampled": 0, "capped": 0, "lost_ring": 0,
    "lost_map": 0, "bytes": 0,
}  # fmt: skip
OVERFLOW = dict.fromkeys(
    ["socks", "calls", "cgroups", "flows", "flow_tx_bytes", "flow_rx_bytes", "flow_tx_calls",
     "flow_rx_calls"], 0,
)  # fmt: skip
CURL = {"tgid": 4711, "comm": "curl", "uid": 1000}
ETCD = {"tgid": 77, "comm": "etcd", "uid": 0}
STARTED = datetime(2026, 1, 24, 21, 57, 54, tzinfo=UTC)


def account(**counts: int) -> dict[str, int]:
    return {**NOTHING, **counts}


def quiet(**changes: Any) -> Summary:
    """A capture that saw nothing."""
    facts: dict[str, Any] = {
        "node": "etcd-1",
        "started": STARTED,
        "ended": STARTED + timedelta(seconds=60),
        "ended_by": "duration",
        "window_s": 60.0,
        "sample": 1,
        "complete": True,
        "notes": (),
        "verdict": {"verdict": "healthy", "why": "Nothing above info in 0 rows."},
        "rows": 0,
        "rows_by_type": {},
        "accounting": {"tcp_state": account(), "connect": account()},
        "overflow": OVERFLOW,
        "processes": {"top": (), "left_out": 0},
        "talkers": {"by_bytes": (), "by_connections": (), "left_out": 0},
        "flows": {"top": (), "left_out": 0},
        "connects": {"top": (), "left_out": 0, "results": {}},
        "tcp_states": {},
        "stock_start": {"states": {}, "owners": (), "left_out": 0},
        "stock_end": {"states": {}, "owners": (), "left_out": 0},
        "retransmits": {"segs": 0, "flow_segs": 0, "top": (), "left_out": 0},
    }
    return Summary.model_validate({**facts, **changes})


def talker(process: dict[str, Any], **counts: int) -> dict[str, Any]:
    zero = dict.fromkeys(
        ["tx_bytes", "rx_bytes", "tx_calls", "rx_calls", "opened", "failed", "flows"], 0
    )
    return {**process, "netns": 4026531840, "cgroup_id": 1, **zero, **counts}


def finding(name: str, severity: str, title: str, **changes: Any) -> dict[str, Any]:
    facts = {
        "id": name, "severity": severity, "title": title, "points_to": "host", "subject": {},
        "refuted_by": "-", "next": "ss -tanp", "confidence": "high",
    }  # fmt: skip
    return {**facts, **changes}


FINDINGS = (
    finding("CLOSE_WAIT_GROWING", "critical", "etcd (77) left 86 sockets in CLOSE_WAIT",
            subject={"comm": "etcd", "tgid": 77, "pod": "etcd-1", "namespace": "kube-system",
                     "netns": 4026531840}, next="ss -tanpo state close-wait",
            evidence={"rows": (3, 5)}),
    finding("TCP_CONNECT_TIMEOUT", "warning", "5 connects got no answer", confidence="low",
            subject={"comm": "curl", "tgid": 4711, "peer": "10.0.0.9:6443"}),
)  # fmt: skip
RTT = {"count": 117, "min": 900, "p50": 1_200, "p90": 2_000, "p99": 980_000, "max": 1_100_000}
RESOLVER = {"peer": "10.96.0.10:53", "clients": 3, "queries": 120, "answers": 117,
            "unanswered": 3, "ambiguous": 0, "rtt_us": RTT}  # fmt: skip
SILENT = {**RESOLVER, "peer": "10.96.0.11:53", "queries": 2, "answers": 0, "unanswered": 2,
          "rtt_us": None}  # fmt: skip


def incident() -> Summary:
    """Losses, refusals, an unanswered peer, retransmits and growing CLOSE_WAITs."""
    latency = {"count": 12, "min": 90, "p50": 412, "p90": 1_900, "p99": 1_240_000, "max": 3_050_000}
    return quiet(
        complete=False,
        notes=("22 events were lost: the ring or the disk was full (accounting).",),
        verdict={"verdict": "host", "why": "etcd (77) left 86 sockets in CLOSE_WAIT"},
        findings=FINDINGS,
        findings_left_out=3,
        dns={"queries": 122, "resolvers": (RESOLVER, SILENT)},
        ended_by="signal",
        window_s=12.34,
        sample=10,
        rows=1_234,
        rows_by_type={"tcp_state": 1_200, "connect": 30, "tcp_retransmit": 4},
        accounting={
            "tcp_state": account(seen=1_322, written=1_200, sampled=100, lost_ring=20, lost_map=2),
            "connect": account(seen=30, written=30),
            "tcp_retransmit": account(seen=4, written=4),
        },
        connects={
            "top": (
                {"peer": "10.0.0.9:6443", "connects": 5, "results": {"failed": 3, "pending": 2},
                 "errors": {"ETIMEDOUT": 3}, "latency_us": None},
                {"peer": "[fd00::2]:443", "connects": 13,
                 "results": {"established": 12, "failed": 1},
                 "errors": {"ECONNREFUSED": 1}, "latency_us": latency},
                {"peer": "10.0.0.1:22", "connects": 1, "results": {"denied": 1},
                 "errors": {"EPERM": 1}, "latency_us": None},
            ),
            "left_out": 4,
            "results": {"established": 12, "failed": 4, "pending": 2, "denied": 1},
        },
        talkers={
            "by_bytes": (
                talker(ETCD, tx_bytes=5_242_880, rx_bytes=812, opened=2, flows=2),
                talker(CURL, tx_bytes=1_024, rx_bytes=3_221_225_472, failed=4, flows=5),
            ),
            "by_connections": (),
            "left_out": 0,
        },
        flows={
            "top": (
                {**CURL, "peer": "[fd00::2]:443", "proto": "tcp", "tx_bytes": 1_024,
                 "rx_bytes": 3_221_225_472, "opened": 12, "failed": 4},
            ),
            "left_out": 1_313,
        },
        retransmits={"segs": 4, "flow_segs": 4, "left_out": 0,
                     "top": ({**CURL, "peer": "10.0.0.9:6443", "segs": 4},)},
        stock_start={"states": {"LISTEN": 3, "CLOSE_WAIT": 5}, "owners": (), "left_out": 0},
        stock_end={"states": {"LISTEN": 3, "CLOSE_WAIT": 91, "SYN_SENT": 1}, "owners": (),
                   "left_out": 0},
    )  # fmt: skip


def text(summary: Summary, *, color: bool = False, width: int = 100) -> str:
    """What a console of that width shows, without blanks at the ends of lines."""
    out = io.StringIO()
    Console(
        file=out, width=width, force_terminal=color, color_system="standard" if color else None,
        _environ={}, highlight=False,
    ).print(report.report(summary))  # fmt: skip
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def test_a_quiet_capture():
    assert (
        text(quiet())
        == """
etcd-1  60.0 s  0 rows  complete: nothing was lost

Verdict  healthy
  Nothing above info in 0 rows.

Events
type       rows
tcp_state     0
connect       0
"""
    )


def test_a_fact_without_a_program_is_not_called_complete():
    shown = text(quiet(hooks_missing=("connect", "accept")))
    assert "no event was lost, but no program serves connect, accept" in shown
    assert "complete" not in shown
    assert "nothing was lost" not in shown


def test_an_incident():
    assert (
        text(incident())
        == """
etcd-1  12.3 s  1,234 rows  ended early  1 in 10  INCOMPLETE: 22 events were lost
  22 events were lost: the ring or the disk was full (accounting).
  To lose less: a larger --ring-bytes, or --ports, --sample.

Verdict  this host
  etcd (77) left 86 sockets in CLOSE_WAIT

Findings  (+3 more)
CRITICAL  CLOSE_WAIT_GROWING
  etcd (77) left 86 sockets in CLOSE_WAIT
  pod kube-system/etcd-1, netns 4026531840
WARNING   TCP_CONNECT_TIMEOUT  confidence low
  5 connects got no answer
  curl (4711), peer 10.0.0.9:6443

DNS (times are a heuristic)
resolver       queries  no answer     p50     p99    max
10.96.0.10:53      120          3  1.2 ms  980 ms  1.1 s
10.96.0.11:53        2          2       -       -      -

Events
type             rows  sampled out  lost
tcp_state       1,200          100    22
connect            30            0     0
tcp_retransmit      4            0     0

Connects  (+4 in the summary)
to             how they ended                  all     p50     p99     max
10.0.0.9:6443  3 ETIMEDOUT, 2 pending            5       -       -       -
[fd00::2]:443  12 established, 1 ECONNREFUSED   13  412 us  1.24 s  3.05 s
10.0.0.1:22    1 EPERM                           1       -       -       -

Top talkers
process       sent  received  opened  failed  flows
etcd 77    5.0 MiB     812 B       2       0      2
curl 4711  1.0 KiB   3.0 GiB       0       4      5

Biggest conversations  (+1,313 in the summary)
process    peer                   sent  received  opened  failed
curl 4711  [fd00::2]:443  tcp  1.0 KiB   3.0 GiB      12       4

Retransmits: 4 segments sent again
process    peer           segments
curl 4711  10.0.0.9:6443         4

TCP sockets start -> end   CLOSE_WAIT 5 -> 91  LISTEN 3 -> 3  SYN_SENT 0 -> 1
"""
    )


def test_colour_marks_what_is_wrong_and_only_that():
    shown = text(incident(), color=True)
    assert "\x1b[1;31mINCOMPLETE" in shown.replace("  INCOMPLETE", "INCOMPLETE")
    assert "\x1b[31m" not in text(quiet(), color=True)
    assert "\x1b[32m" in text(quiet(), color=True)


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_narrow_terminal_is_no_exception(width: int):
    assert all(len(line) <= width for line in text(incident(), width=width).splitlines())


def test_names_of_processes_cannot_reach_the_terminal():
    evil = {"tgid": 1, "comm": "\x1b]0;pwned\x07[red]x[/]\n", "uid": 0}
    shown = text(quiet(talkers={
        "by_bytes": (talker(evil, tx_bytes=1),), "by_connections": (), "left_out": 0,
    }))  # fmt: skip
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "�]0;pwned�[red]x[/]� 1" in shown


@given(st.text(max_size=20))
def test_any_name_is_shown_without_control_characters(comm: str):
    assert all(char.isprintable() for char in style.plain(comm).plain)


@pytest.mark.parametrize(
    ("microseconds", "wanted"),
    [(0, "0 us"), (999, "999 us"), (1_000, "1 ms"), (12_345, "12.3 ms"), (999_600, "1 s"),
     (1_500_000, "1.5 s"), (120_000_000, "120 s")],
)  # fmt: skip
def test_spans(microseconds: int, wanted: str):
    assert style.span(microseconds) == wanted


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(0, "0"), (1, "1 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (2**40, "1.0 TiB"), ("-", "-")],
)
def test_sizes(value: int | str, wanted: str):
    assert style.size(value).plain == wanted


def whereabouts(summary: Summary, folder: Path) -> str:
    bundle = folder / "out dir" / "x.bundle.tgz"
    bundle.parent.mkdir(exist_ok=True)
    bundle.write_bytes(bytes(2048))
    return "\n".join(findings.whereabouts(summary, bundle))


def test_the_next_command_follows_what_was_found(tmp_path: Path):
    shown = whereabouts(incident(), tmp_path)
    assert "x.bundle.tgz (2.0 KiB)" in shown
    assert "Look closer  ss -tanpo state close-wait" in shown
    assert "WHERE n IN (3, 5)" in shown
    assert f"Its rows     ktrace query '{tmp_path}/out dir/x.bundle.tgz' \"SELECT" in shown


def test_without_findings_the_next_command_is_a_query(tmp_path: Path):
    assert "LIMIT 20" in whereabouts(quiet(), tmp_path)
    retransmits = quiet(retransmits={"segs": 1, "flow_segs": 1, "top": (), "left_out": 0})
    assert "tcp_retransmit" in whereabouts(retransmits, tmp_path)
    denied = quiet(connects={"top": (), "left_out": 0, "results": {"denied": 1}})
    assert "result <> 'established'" in whereabouts(denied, tmp_path)


def test_talkers_carry_the_names_of_pods():
    named = talker(ETCD, tx_bytes=1) | {"namespace": "shop", "pod": "cart-7d9"}
    summary = quiet(
        talkers={"by_bytes": (named, talker(CURL)), "by_connections": (), "left_out": 0}
    )
    assert "etcd 77    shop/cart-7d9   1 B" in text(summary)
    assert "curl 4711  -                 0" in text(summary)


def test_a_larger_ring_is_no_advice_where_the_disk_was_full():
    one = {"accounting": {"tcp_state": account(seen=20, lost_ring=20)}, "complete": False}
    assert "a larger --ring-bytes" in text(quiet(**one))
    shown = text(quiet(**one, disk_full=True))
    assert "--ring-bytes" not in shown
    assert "  To lose less: more room in --out-dir, or --ports, --sample.\n" in shown


NARROW_FACTS = (
    "10.0.0.9:6443", "[fd00::2]:443", "10.0.0.1:22", "10.96.0.10:53", "10.96.0.11:53", "1,200",
    "5.0 MiB", "3.0 GiB", "120", "91", "tcp_retransmit",
)  # fmt: skip
LONG = "[2001:0db8:85a3:1111:2222:8a2e:0370:7334]:65535"


@pytest.mark.parametrize("width", [40, 50, 60, 80])
def test_on_a_narrow_terminal_no_number_and_no_port_is_cut(width: int):
    shown = text(incident(), width=width)
    assert "…" not in shown
    assert [fact for fact in NARROW_FACTS if fact not in shown] == []
    assert shown.count("[fd00::2]:443") == shown.count("3.0 GiB") == 2


@pytest.mark.parametrize("width", [10, 20, 30, 40, 60, 100])
def test_what_is_wider_than_the_terminal_goes_on_in_the_next_line(width: int):
    one = {**talker(CURL, tx_bytes=1, rx_bytes=10**12), "namespace": "a-namespace-of-a-length",
           "pod": "that-nobody-would-want-to-read-7d9f8b6c5-x2x4z"}  # fmt: skip
    top = ({**CURL, "peer": LONG, "segs": 123_456},)
    shown = text(
        quiet(
            retransmits={"segs": 123_456, "flow_segs": 1, "left_out": 0, "top": top},
            talkers={"by_bytes": (one,), "by_connections": (), "left_out": 0},
        ),
        width=width,
    )
    assert "…" not in shown
    assert all(len(line) <= width for line in shown.splitlines())
    letters = "".join(shown.split())
    if width >= 30:
        assert "123,456" in shown
    if width == 100:
        assert LONG in shown
        assert all(part in letters for part in ("x2x4z", "a-namespace"))


def test_blocks_of_a_query_are_not_cut_either():
    out = io.StringIO()
    Console(file=out, width=40, _environ={}).print(
        query_table.table_or_blocks(["remote", "note"], [[LONG, "x" * 90]], 40)
    )
    assert "…" not in out.getvalue()
    assert out.getvalue().count("x") == 90
    assert "65535" in "".join(out.getvalue().split())
