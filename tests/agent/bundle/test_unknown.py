# SPDX-License-Identifier: Apache-2.0
"""What no program observed is unknown in every place, and never 0.

The recordings are those of Linux 6.1, where nothing reports a send or a receive.
"""

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ktrace_agent.bundle import query, reader
from ktrace_agent.bundle.seal import Sealed, seal
from ktrace_agent.kernel.hooks import HOOKS
from ktrace_agent.kernel.observed import observe
from ktrace_agent.kernel.probes import Choice, choose
from ktrace_agent.tables.captured import Captured
from ktrace_api.capture import CaptureConfig
from ktrace_api.finding import Cause
from ktrace_api.names import UNKNOWN, EventKind, Gap, RowType
from ktrace_api.node import HookChoice, NodeInfo, Refusal
from tests.agent.conftest import Make, make_events, make_flows
from tests.agent.kernel.test_probes import Kernel
from tests.agent.view.test_report import text

ROOT = Path(__file__).parents[3]
SENT, RECEIVED = "sock_send_length", "sock_recv_length"
CLIENT = {"remote_port": 443, "role": 1, "opened": 1}
QUERIES = 23


def without(*tracepoints: str, events: Sequence[EventKind]) -> tuple[Choice, ...]:
    """The choices on a kernel that lacks these tracepoints."""
    kernel = Kernel(functions={}, kprobes=False)
    for name in tracepoints:
        del kernel.tracepoints[name]
    return choose(kernel, events)


class Capture:
    """Seals recordings of a kernel by what it lacks."""

    def __init__(self, make: Make, node: NodeInfo, folder: Path) -> None:
        self._make, self._node, self._folder = make, node, folder

    def __call__(self, *lacks: str, record: Any = (), flows: Any = (), **changes: Any) -> Sealed:
        config = CaptureConfig(node="etcd-1", **changes)
        choices = without(*lacks, events=config.events)
        hooks = tuple(
            HookChoice(
                hook=one.hook,
                chosen=one.program or UNKNOWN,
                refused=tuple(Refusal(program=r.program, reason=r.reason) for r in one.refused),
            )
            for one in choices
        )
        served = {one.hook for one in choices if one.programs}
        recording = self._make(
            make_events([*record]),
            make_flows([*flows]),
            observed=observe(served, config.events),
        )
        node = self._node.model_copy(update={"hooks": hooks, "config": config})
        return seal(Captured(recording, config, node), self._folder)


@pytest.fixture
def capture(make_recording: Make, node_info: NodeInfo, tmp_path: Path) -> Capture:
    return Capture(make_recording, node_info, tmp_path)


def read(sealed: Sealed) -> dict[str, Any]:
    (file,) = (path for path in sealed.paths if path.name.endswith(".summary.json"))
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def sql(sealed: Sealed, question: str) -> list[tuple[Any, ...]]:
    with reader.opened(sealed.bundle) as bundle, query.database(bundle) as con:
        return con.execute(question).fetchall()


def test_without_sends_and_receives_their_figures_are_null(capture: Capture):
    found = read(capture(SENT, RECEIVED, record=[{}] * 3, flows=[CLIENT]))
    assert found["rows"] == 3
    assert found["rows_by_type"] == {
        "tcp_state": 3, "udp_send": None, "udp_recv": None, "connect": 0, "tcp_retransmit": 0,
    }  # fmt: skip
    assert found["accounting"]["udp_send"] is found["accounting"]["udp_recv"] is None
    assert found["accounting"]["tcp_state"]["seen"] == 3
    for figure in ("queries", "answers", "unanswered", "ambiguous", "retries"):
        assert found["dns"][figure] is None
    assert found["dns"]["tcp_connects"] == 0
    (talker,), (peer,) = found["talkers"]["by_bytes"], found["flows"]["top"]
    for figure in ("tx_bytes", "rx_bytes", "tx_calls", "rx_calls"):
        assert talker[figure] is None
    assert peer["tx_bytes"] is peer["rx_bytes"] is None
    assert talker["opened"] == peer["opened"] == 1
    assert found["talkers"]["by_connections"] == [talker]


def test_it_is_not_complete_and_says_why(capture: Capture):
    sealed = capture(SENT, RECEIVED, record=[{}])
    summary = sealed.summary
    assert not summary.complete
    assert summary.gaps == (Gap.NOT_TRACED,)
    assert not sealed.manifest.complete
    assert summary.hooks_missing == (
        "socket_send", "socket_recv", "udp_send_address", "udp_recv_address",
    )  # fmt: skip
    assert summary.notes[-1] == (
        "Not traced on this node: socket_send, socket_recv. Missing: UDP sends, DNS queries, bytes"
        " sent; UDP receives, DNS answers, bytes received. See `ktrace doctor`."
    )


def test_nothing_is_called_healthy_without_having_been_observed(capture: Capture):
    summary = capture(SENT, RECEIVED, record=[{}]).summary
    assert summary.verdict.verdict == Cause.UNKNOWN
    (found,) = summary.findings
    assert found.title.startswith("socket_send and socket_recv were not traced")
    assert "lost" not in found.counts


def test_the_screen_shows_a_dash(capture: Capture):
    shown = text(capture(SENT, RECEIVED, record=[{}], flows=[CLIENT]).summary)
    lines = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.split()}
    assert "INCOMPLETE: not traced: socket_send, socket_recv" in shown
    assert lines["udp_send"] == lines["udp_recv"] == ["-"]
    assert lines["tcp_state"] == ["1"]
    assert re.search(r"^curl 100 +10.0.0.2:443 +tcp +- +- +1 +0$", shown, re.MULTILINE)
    assert "DNS (estimated latency)" not in shown


def test_tables_have_null(capture: Capture):
    sealed = capture(SENT, RECEIVED, record=[{}], flows=[CLIENT])
    figures = "tx_bytes, rx_bytes, tx_calls, rx_calls, opened, failed, retrans_segs"
    assert sql(sealed, f"SELECT {figures} FROM flows") == [(None,) * 4 + (1, 0, 0)]
    assert sql(sealed, "SELECT type FROM accounting WHERE seen IS NULL ORDER BY 1") == [
        ("udp_recv",), ("udp_send",),
    ]  # fmt: skip
    assert sql(sealed, "SELECT complete, gaps, lost FROM capture") == [
        (False, ["not_traced"], None)
    ]


def test_the_check_of_the_readme_shows_it(capture: Capture):
    sealed = capture(SENT, RECEIVED, record=[{}])
    readme = (ROOT / "README.md").read_text()
    (filter_,) = re.findall(r"^jq '([^']*)' .*# is anything missing\?$", readme, re.MULTILINE)
    (file,) = (path for path in sealed.paths if path.name.endswith(".summary.json"))
    done = subprocess.run(["jq", filter_, file], check=True, capture_output=True, text=True)
    shown = json.loads(done.stdout)
    assert shown["complete"] is False
    assert shown["gaps"] == ["not_traced"]
    assert "socket_send" in shown["hooks_missing"]
    assert shown["accounting"]["udp_send"] is None


def queries(**changes: Any) -> list[dict[str, Any]]:
    """DNS queries, one a second, each from a socket of its own."""
    return [
        {"type": 1, "remote_port": 53, "bytes": 40, "sock": n + 1, "local_port": 50000 + n,
         "ts": n * 10**9, **changes}
        for n in range(QUERIES)
    ]  # fmt: skip


def test_without_receives_no_query_is_unanswered(capture: Capture):
    """With them the same rows are a DNS server that does not answer."""
    blind = capture(RECEIVED, record=queries()).summary
    assert (blind.dns.queries, blind.dns.answers, blind.dns.unanswered) == (QUERIES, None, None)
    (resolver,) = blind.dns.resolvers
    assert (resolver.queries, resolver.answers, resolver.unanswered) == (QUERIES, None, None)
    assert blind.dns.suspects == ()
    assert [one.id for one in blind.findings] == ["CAPTURE_INCOMPLETE"]
    assert re.search(r"^10.0.0.2:53 +23 +- ", text(blind), re.MULTILINE)
    seeing = capture(record=queries()).summary
    assert (seeing.dns.answers, seeing.dns.unanswered) == (0, QUERIES)
    assert seeing.verdict.verdict == Cause.DNS


def test_a_query_that_could_not_be_sent_is_a_finding_without_receives(capture: Capture):
    summary = capture(RECEIVED, record=queries(error=1)).summary
    (found,) = (one for one in summary.findings if one.id == "DNS_NO_REPLY")
    assert found.title.startswith(f"The kernel blocked {QUERIES} of {QUERIES} queries")
    assert "unanswered" not in found.counts
    assert "answers" not in found.counts


def test_without_sends_no_dns_figure_is_known(capture: Capture):
    answers = queries(type=2)
    dns = capture(SENT, record=answers).summary.dns
    assert (dns.queries, dns.answers, dns.unanswered, dns.resolvers) == (None, None, None, ())


def test_one_direction_is_known_without_the_other(capture: Capture):
    flow = {**CLIENT, "tx_bytes": 7, "tx_calls": 2}
    (talker,) = capture(RECEIVED, flows=[flow]).summary.talkers.by_bytes
    assert (talker.tx_bytes, talker.rx_bytes) == (7, None)
    assert (talker.tx_calls, talker.rx_calls) == (2, None)


def test_a_sum_with_an_unknown_part_is_unknown(make_recording: Make, node_info: NodeInfo,
                                               tmp_path: Path):  # fmt: skip
    """accept() is not traced: how many connections a server opened is unknown."""
    served = {hook.name for hook in HOOKS} - {"accept"}
    flows = make_flows([CLIENT, {**CLIENT, "role": 2, "opened": 0, "local_port": 8080},
                        {"tgid": 7, "comm": b"dig", "proto": 17, "rx_bytes": 1}])  # fmt: skip
    config = CaptureConfig(node="etcd-1")
    recording = make_recording(make_events([]), flows, observed=observe(served, config.events))
    summary = seal(Captured(recording, config, node_info), tmp_path).summary
    opened = {one.comm: one.opened for one in summary.talkers.by_bytes}
    assert opened == {"curl": None, "dig": 0}


def test_what_was_not_requested_is_unknown_but_not_missing(capture: Capture):
    kinds = ("tcp", "udp", "connect")
    summary = capture(record=[{}], flows=[CLIENT], events=kinds).summary
    assert summary.complete
    assert summary.rows_by_type[RowType.TCP_RETRANSMIT] is None
    assert summary.accounting[RowType.TCP_RETRANSMIT] is None
    assert (summary.retransmits.segs, summary.retransmits.flow_segs) == (None, None)
    assert summary.verdict.verdict == Cause.HEALTHY


def test_without_tcp_there_are_no_states_and_no_sockets(capture: Capture):
    summary = capture(record=[{"type": 1}], events=("udp",)).summary
    assert (summary.tcp_states, summary.connects) == (None, None)
    assert (summary.stock_start, summary.stock_end) == (None, None)
    assert (summary.dns.tcp_connects, summary.dns.tcp_failed) == (None, None)
    assert "TCP sockets" not in text(summary)
