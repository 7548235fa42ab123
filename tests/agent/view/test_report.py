# SPDX-License-Identifier: Apache-2.0
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from syrupy.assertion import SnapshotAssertion

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
NO_ACTIVITY = "No verdict: no socket activity in 60 s. Record longer."
STARTED = datetime(2026, 1, 24, 21, 57, 54, tzinfo=UTC)


def account(**counts: int) -> dict[str, int]:
    return {**NOTHING, **counts}


def quiet(**changes: Any) -> Summary:
    """A capture without an event."""
    facts: dict[str, Any] = {
        "node": "etcd-1",
        "started": STARTED,
        "ended": STARTED + timedelta(seconds=60),
        "ended_by": "duration",
        "window_s": 60.0,
        "sample": 1,
        "complete": True,
        "notes": (),
        "verdict": {"verdict": "unknown", "why": NO_ACTIVITY},
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


LEAK = "etcd (77): 86 connections not closed after the peer closed them (CLOSE_WAIT 5 -> 91)"
FINDINGS = (
    finding("CLOSE_WAIT_GROWING", "critical", LEAK, points_to="application",
            subject={"comm": "etcd", "tgid": 77, "pod": "etcd-1", "namespace": "kube-system",
                     "netns": 4026531840}, next="ss -tanpo state close-wait",
            evidence={"rows": (3, 5)}),
    finding("TCP_CONNECT_TIMEOUT", "warning",
            "3 of 5 connection attempts to 10.0.0.9:6443 timed out (curl, pid 4711)",
            points_to="policy", confidence="low",
            subject={"comm": "curl", "tgid": 4711, "peer": "10.0.0.9:6443"}),
    finding("DNS_NO_REPLY", "warning",
            "DNS server 10.96.0.11:53 did not answer 2 of 2 queries (curl, 2 processes)",
            points_to="dns", subject={"comm": "curl", "tgid": 4712, "peer": "10.96.0.11:53"}),
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
        verdict={
            "verdict": "application",
            "findings": ("CLOSE_WAIT_GROWING",),
            "why": f"{LEAK}. Also found: DNS, network policy or firewall",
        },
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
    """The report on a console of that width, without trailing blanks."""
    out = io.StringIO()
    Console(
        file=out, width=width, force_terminal=color, color_system="standard" if color else None,
        _environ={}, highlight=False,
    ).print(report.report(summary))  # fmt: skip
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def healthy() -> Summary:
    return quiet(
        verdict={"verdict": "healthy", "why": "No problems found in 424 events."},
        rows=424,
        rows_by_type={"tcp_state": 400, "connect": 24},
        accounting={
            "tcp_state": account(seen=400, written=400),
            "connect": account(seen=24, written=24),
        },
        connects={
            "top": (
                {"peer": "10.96.0.1:443", "connects": 24, "results": {"established": 24},
                 "errors": {}, "latency_us": {"count": 24, "min": 90, "p50": 412, "p90": 900,
                                              "p99": 1_240, "max": 1_240}},
            ),
            "left_out": 0,
            "results": {"established": 24},
        },
    )  # fmt: skip


def refused() -> Summary:
    """Two clients of one server: the verdict has a meaning."""
    peer = "10.77.0.1:8090"
    titles = (
        f"{peer} refused 12 of 12 connections (curl, 12 processes)",
        f"{peer} refused 3 of 3 connections (wget, pid 4711)",
    )
    found = tuple(
        finding("TCP_CONNECT_REFUSED", "critical", title, points_to="application",
                subject={"comm": "curl", "tgid": 4711, "peer": peer})
        for title in titles
    )  # fmt: skip
    ids = ("TCP_CONNECT_REFUSED",)
    verdict = {"verdict": "application", "findings": ids, "why": titles[0]}
    return quiet(verdict=verdict, findings=found, rows=24)


def lossy() -> Summary:
    return quiet(
        complete=False,
        notes=("1,500 events were lost: the ring was full (accounting).",),
        verdict={
            "verdict": "unknown",
            "findings": ("CAPTURE_INCOMPLETE",),
            "why": "No verdict: no problems found, but data is missing."
            " Capture incomplete: 1,500 events lost",
        },
        findings=(
            finding("CAPTURE_INCOMPLETE", "warning", "Capture incomplete: 1,500 events lost",
                    points_to="unknown"),
        ),
        rows=500,
        rows_by_type={"udp_send": 500},
        accounting={"udp_send": account(seen=2_000, written=500, lost_ring=1_500)},
    )  # fmt: skip


CAPTURES = {
    "healthy": healthy, "incident": incident, "refused": refused, "lossy": lossy, "quiet": quiet,
}  # fmt: skip


@pytest.mark.parametrize("name", CAPTURES)
def test_reports(name: str, snapshot: SnapshotAssertion):
    assert text(CAPTURES[name]()) == snapshot


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"complete": False, "gaps": ("not_traced",), "hooks_missing": ("connect", "accept")},
         "INCOMPLETE: not traced: connect, accept"),
        ({"complete": False, "gaps": ("ended_early",)}, "INCOMPLETE: the capture ended early"),
        ({"complete": False, "accounting": {"connect": account(lost_map=1)}},
         "INCOMPLETE: 1 event was lost"),
        ({"complete": False, "accounting": {"connect": account(capped=5_000)}},
         "INCOMPLETE: 5,000 events were over the capture limit"),
        ({"complete": False}, "INCOMPLETE: a map was full, see `overflow` in the summary"),
    ],
)  # fmt: skip
def test_a_capture_that_misses_something_is_not_called_complete(
    changes: dict[str, Any], wanted: str
):
    headline = text(quiet(**changes)).splitlines()[1]
    assert headline == f"etcd-1  60.0 s  0 events  {wanted}"


def test_a_meaning_that_differs_by_peer_is_left_out():
    found = refused()
    other = found.findings[1].model_copy(
        update={"subject": found.findings[1].subject.model_copy(update={"peer": "10.0.0.3:80"})}
    )
    shown = text(found.model_copy(update={"findings": (found.findings[0], other)}))
    assert "Likely cause: application\n" in shown


def test_colour_marks_what_is_wrong_and_only_that():
    shown = text(incident(), color=True)
    assert "\x1b[1;31mINCOMPLETE" in shown.replace("  INCOMPLETE", "INCOMPLETE")
    assert "\x1b[31m" not in text(quiet(), color=True)
    assert "\x1b[32m" in text(healthy(), color=True)


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_narrow_terminal_is_not_an_exception(width: int):
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
    [(0, "0"), (1, "1 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (2**40, "1.0 TiB"), (None, "-")],
)
def test_sizes(value: int | None, wanted: str):
    assert style.size(value).plain == wanted


def whereabouts(summary: Summary, folder: Path) -> str:
    bundle = folder / "out dir" / "x.bundle.tgz"
    bundle.parent.mkdir(exist_ok=True)
    bundle.write_bytes(bytes(2048))
    return "\n".join(findings.whereabouts(summary, bundle))


def test_the_next_command_follows_the_worst_finding(tmp_path: Path):
    lines = whereabouts(incident(), tmp_path).splitlines()
    assert lines[1].endswith("x.bundle.tgz (2.0 KiB)")
    assert lines[2] == "Next step    ss -tanpo state close-wait"
    assert lines[3].startswith(f"Evidence     ktrace query '{tmp_path}/out dir/x.bundle.tgz' \"S")
    assert "WHERE n IN (3, 5)" in lines[3]


def test_without_findings_the_next_command_is_a_query(tmp_path: Path):
    assert "LIMIT 20" in whereabouts(quiet(), tmp_path)
    assert "\nNext step    ktrace query" in whereabouts(quiet(), tmp_path)
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
    assert "  To lose fewer events: free space in --out-dir, or use --ports or --sample.\n" in shown


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
