# SPDX-License-Identifier: Apache-2.0
"""Captures of nodes with many pods: findings judge by all counters, node.json holds a part."""

import json
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from ktrace_agent import session
from ktrace_agent.bundle.seal import Sealed
from ktrace_agent.host import counter_changes
from ktrace_agent.host.counters import Files, Missing, Snapshot
from ktrace_agent.kernel import preflight
from ktrace_agent.kernel.recording import HookCounters
from ktrace_agent.session import Live
from ktrace_agent.signals import Stop
from ktrace_api.capture import CaptureConfig
from ktrace_api.finding import Confidence, Severity
from ktrace_api.names import RowType
from tests.agent.conftest import make_events, make_flows, v4
from tests.agent.kernel.fake_collector import Collector, Spool, Watches

FIRST = 4026532000
CUT = 6
"""Connections of the last pod that end in mid-stream."""
DROPPED, ARRIVED = 25, 100_000
Groups = Mapping[str, Mapping[str, int]]
AS_THEY_ARE: Mapping[str, int] = {}

SNMP: Groups = {
    "Ip": dict.fromkeys(("InReceives", "InDelivers", "OutRequests", "OutTransmits"), 900),
    "Tcp": {"ActiveOpens": 30, "PassiveOpens": 30, "EstabResets": CUT, "CurrEstab": 4,
            "InSegs": 900, "OutSegs": 900, "RetransSegs": 2, "OutRsts": 30},
    "Udp": {"InDatagrams": ARRIVED, "OutDatagrams": 60, "RcvbufErrors": DROPPED},
}  # fmt: skip
NETSTAT: Groups = {
    "TcpExt": {
        **dict.fromkeys(("TW", "DelayedACKs", "TCPHPHits", "TCPPureAcks", "TCPHPAcks"), 300),
        **dict.fromkeys(("TCPOrigDataSent", "TCPDelivered", "TCPAutoCorking", "TCPKeepAlive"), 20),
        "TCPAbortOnClose": 0, "TCPAbortOnData": CUT, "TCPAbortOnTimeout": 0,
        "TCPAbortOnMemory": 0, "TCPAbortOnLinger": 0, "TCPDSACKRecv": 0,
    },
    "IpExt": dict.fromkeys(("InOctets", "OutOctets", "InNoECTPkts"), 90_000),
}  # fmt: skip


def text(groups: Groups, times: int) -> bytes:
    """As netstat and snmp are; `times` is how often all of it happened."""
    return "".join(
        f"{group}: {' '.join(names)}\n"
        f"{group}: {' '.join(str(value * times) for value in names.values())}\n"
        for group, names in groups.items()
    ).encode()


def with_values(groups: Groups, values: Mapping[str, int]) -> Groups:
    return {group: {name: values.get(name, was) for name, was in names.items()}
            for group, names in groups.items()}  # fmt: skip


def pods(
    count: int,
    times: int,
    last: Files | Missing | None = None,
    values: Mapping[str, int] = AS_THEY_ARE,
) -> Snapshot:
    """Namespaces of pods that clients, probes and collectors use as they do; the last one by hand.

    `values` are changes to what the counters of all of them rise by.
    """
    snmp, netstat = with_values(SNMP, values), with_values(NETSTAT, values)
    files: Files = {"snmp": text(snmp, times), "netstat": text(netstat, times)}
    found: dict[int, Files | Missing] = dict.fromkeys(range(FIRST, FIRST + count), files)
    if last is not None:
        found[FIRST + count - 1] = last
    return Snapshot({}, found, FIRST, whole=True)


def cut_connections(count: int) -> bytes:
    """An event in every namespace, and clients of the last that go from ESTABLISHED to CLOSE."""
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    here = [{"ts": now, "type": 0, "ns_net": FIRST + n, "sock": n + 1, "old_state": 2,
             "new_state": 1, "local_port": 1000 + n} for n in range(count - 1)]  # fmt: skip
    there = [{"ts": now, "type": 0, "ns_net": FIRST + count - 1, "role": 1, "sock": 900 + n,
              "old_state": 1, "new_state": 7, "local_port": 40000 + n,
              "remote_addr": v4("10.0.0.2")} for n in range(CUT)]  # fmt: skip
    return make_events(here + there).tobytes()


class Quiet:
    def warn(self, text: str) -> None: ...
    def ready(self) -> None: ...
    def tick(self, live: Live) -> None: ...
    def sealing(self, text: str) -> None: ...


Capture = Callable[[Snapshot, Snapshot], Sealed]


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch, config: CaptureConfig, tmp_path: Path) -> Capture:
    """A whole session between two snapshots of the counters."""

    def record(before: Snapshot, after: Snapshot) -> Sealed:
        looks, count = [before, after], len(after.netns)
        rows = {row: HookCounters() for row in RowType}
        rows[RowType.TCP_STATE] = HookCounters(seen=count - 1 + CUT, written=count - 1 + CUT)
        cgroup = SimpleNamespace(version="v2", v1_controllers=())
        platform = SimpleNamespace(
            release="6.1",
            version="#1",
            machine="x86_64",
            btf=True,
            backend="core",
            cgroup=cgroup,
        )
        monkeypatch.setattr(preflight, "check", lambda *_: platform)
        monkeypatch.setattr(session, "snapshot", lambda: looks.pop(0))
        monkeypatch.setattr(session, "Collector", Collector)
        monkeypatch.setattr(Collector, "counters", lambda *_, **__: rows)
        opened = make_flows([{"ns_net": FIRST + count - 1, "role": 1, "opened": CUT}])
        monkeypatch.setattr(Collector, "flows", lambda _: opened)
        monkeypatch.setattr(session, "Spool", Spool)
        monkeypatch.setattr(Spool, "events", cut_connections(count))
        monkeypatch.setattr(session, "Watches", Watches)
        short = config.model_copy(update={"duration": timedelta(seconds=0.01)})
        (tmp_path / "out").mkdir()
        return session.run(short, tmp_path / "out", Quiet(), Stop())

    return record


def serious(sealed: Sealed) -> set[str]:
    return {one.id for one in sealed.summary.findings if one.severity != Severity.INFO}


@pytest.mark.parametrize("count", [1, 12, 40, 120])
def test_however_many_pods_there_are_their_own_aborts_are_no_resets(capture: Capture, count: int):
    """And datagrams that were dropped are a share of those that came."""
    sealed = capture(pods(count, 1), pods(count, 2))
    assert serious(sealed) == set()
    node = json.loads(sealed.paths[3].read_bytes())
    assert len(node["netns"]) == min(count, counter_changes.KEPT_NETNS)
    assert sealed.paths[3].stat().st_size < counter_changes.MAX_BYTES + 32 * 1024


@pytest.mark.parametrize("count", [1, 12, 40, 120])
def test_however_many_pods_there_are_resets_and_drops_are_found(capture: Capture, count: int):
    """TCPAbortOnData stands still: that is known, as is that all other datagrams were lost."""
    values = {"TCPAbortOnData": 0, "InDatagrams": 0}
    sealed = capture(pods(count, 1, values=values), pods(count, 2, values=values))
    assert serious(sealed) == {"TCP_RESETS", "UDP_RCVBUF_DROPS"}


@pytest.mark.parametrize("reason", [Missing.DENIED, Missing.TOO_MANY, Missing.VANISHED])
def test_a_namespace_that_cannot_be_read_tells_of_no_resets(capture: Capture, reason: Missing):
    assert serious(capture(pods(3, 1), pods(3, 2, reason))) == set()


def test_without_the_aborts_resets_are_no_finding_above_info(capture: Capture):
    """The file of the kernel's own counts is lacking at one of both moments."""
    half: Files = {"snmp": text(SNMP, 2), "netstat": Missing.UNREADABLE}
    sealed = capture(pods(3, 1), pods(3, 2, half))
    assert serious(sealed) == set()
    (finding,) = [one for one in sealed.summary.findings if one.id == "TCP_RESETS"]
    assert finding.confidence == Confidence.LOW
    assert "are missing (TcpExt.TCPAbortOn" in finding.coverage[0]
