# SPDX-License-Identifier: Apache-2.0
"""The order and the times of one capture, with a kernel side that only says that it was asked."""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from ktrace_agent import session
from ktrace_agent.bundle.seal import seal
from ktrace_agent.errors import UnsupportedKernel
from ktrace_agent.host import clock
from ktrace_agent.kernel.observed import Observed
from ktrace_agent.kernel.probes import choose
from ktrace_agent.kernel.recording import Clock, HookCounters
from ktrace_agent.session import Live, Recorded
from ktrace_agent.signals import Stop
from ktrace_agent.tables.captured import Captured
from ktrace_api.capture import CaptureConfig
from ktrace_api.finding import Cause
from ktrace_api.names import RowType
from ktrace_api.node import NodeInfo
from tests.agent.conftest import make_events
from tests.agent.kernel.fake_collector import Collector, Spool, Watches
from tests.agent.kernel.test_probes import Kernel

WINDOW_S = 0.3


class _Moments:
    """An observer that takes the time on CLOCK_BOOTTIME, as the kernel side does for its rows."""

    def __init__(self) -> None:
        self.boot_ns: list[int] = []

    def warn(self, text: str) -> None:
        pass

    def ready(self) -> None:
        self.boot_ns.append(time.clock_gettime_ns(time.CLOCK_BOOTTIME))

    def tick(self, live: Live) -> None:
        self.ready()

    def sealing(self, text: str) -> None:
        pass


@pytest.fixture
def recorded(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    config: CaptureConfig,
    tmp_path: Path,
) -> Iterator[tuple[Recorded, list[int]]]:
    """A capture whose wall clock is set by `request.param` s meanwhile, and moments within it."""
    now = clock.wall_offset_ns()
    # The clock of this machine stays as it is: it is the one after the step.
    readings = [now - round(request.param * 1e9), now]
    monkeypatch.setattr(session, "wall_offset_ns", lambda: readings.pop(0))
    monkeypatch.setattr(session, "Collector", Collector)
    monkeypatch.setattr(session, "Spool", Spool)
    short = config.model_copy(update={"duration": timedelta(seconds=WINDOW_S)})
    moments = _Moments()
    watches: Any = Watches()
    made = session.record(
        short, tmp_path, cgroup_v1=False, observer=moments, stop=Stop(), watches=watches
    )
    assert moments.boot_ns
    yield made, moments.boot_ns
    os.close(made.recording.spool_fd)


class _Warnings(_Moments):
    """An observer that keeps what it is warned of before the recording."""

    def __init__(self) -> None:
        super().__init__()
        self.warned: list[str] = []

    def warn(self, text: str) -> None:
        assert not self.boot_ns
        self.warned.append(text)


class _Old(Collector):
    """Programs on a kernel without the tracepoints `lacks`; nothing may be attached."""

    lacks: tuple[str, ...] = ("sock_send_length", "sock_recv_length")

    def __init__(self, config: CaptureConfig, **_: Any) -> None:
        super().__init__()
        kernel = Kernel(functions={}, kprobes=False)
        for name in self.lacks:
            del kernel.tracepoints[name]
        self.choices = choose(kernel, config.events)


class _NoReceives(_Old):
    lacks = ("sock_recv_length",)


def attempt(
    monkeypatch: pytest.MonkeyPatch, folder: Path, collector: type[_Old], **changes: Any
) -> tuple[Recorded, list[str]]:
    """A short capture with this collector, and the warnings before it."""
    monkeypatch.setattr(session, "Collector", collector)
    monkeypatch.setattr(session, "Spool", Spool)
    watches: Any = Watches()
    observer = _Warnings()
    made = session.record(
        CaptureConfig(node="etcd-1", **changes).model_copy(
            update={"duration": timedelta(milliseconds=1)}
        ),
        folder,
        cgroup_v1=False,
        observer=observer,
        stop=Stop(),
        watches=watches,
    )
    os.close(made.recording.spool_fd)
    return made, observer.warned


def test_dns_alone_is_refused_where_no_dns_can_be_recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, snapshot: SnapshotAssertion
):
    attached: list[str] = []
    monkeypatch.setattr(_Old, "iterate", lambda _, name: attached.append(name))
    with pytest.raises(UnsupportedKernel) as refused:
        attempt(monkeypatch, tmp_path, _Old, dns_only=True)
    assert refused.value.exit_status == 4
    assert str(refused.value) == snapshot
    assert attached == []
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("collector", "changes"),
    [(_Old, {}), (_NoReceives, {"dns_only": True}), (_Old, {"dns_only": True, "events": ("tcp",)})],
)
def test_what_remains_is_recorded_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, collector: type[_Old], changes: dict[str, Any]
):
    made, warned = attempt(monkeypatch, tmp_path, collector, **changes)
    lost = [("UDP sends, DNS queries, bytes sent", "sock_send_length")][: len(collector.lacks) - 1]
    lost.append(("UDP receives, DNS answers, bytes received", "sock_recv_length"))
    why = "the kernel's BTF does not contain tracepoint"
    assert warned == [f"cannot record on this kernel: {what} ({why} {name})" for what, name in lost]
    assert not made.recording.observed.received
    assert made.recording.observed.sent is (collector is _NoReceives)


def test_a_kernel_with_everything_gives_no_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(_Old, "lacks", ())
    made, warned = attempt(monkeypatch, tmp_path, _Old, dns_only=True)
    assert warned == []
    assert made.recording.observed == Observed()


def wall(boot_ns: int, clock: Clock) -> datetime:
    """When a row of that time happened, as tables.py places it."""
    return datetime.fromtimestamp((boot_ns + clock.offset_start_ns) / 1e9, UTC)


@pytest.mark.parametrize("recorded", [0.0, -120.0, 120.0, 0.1, -0.1], indirect=True)
def test_rows_lie_between_start_and_end_whatever_the_wall_clock_does(
    recorded: tuple[Recorded, list[int]],
):
    recording, moments = recorded[0].recording, recorded[1]
    slack = timedelta(microseconds=2)
    assert recording.started - slack <= wall(moments[0], recording.clock)
    assert wall(moments[-1], recording.clock) <= recording.ended + slack
    assert WINDOW_S <= (recording.ended - recording.started).total_seconds() < 60


@pytest.mark.parametrize("recorded", [-120.0], indirect=True)
def test_queries_are_dead_also_when_the_clock_was_set_back(
    recorded: tuple[Recorded, list[int]], config: CaptureConfig, node_info: NodeInfo, tmp_path: Path
):
    recording, (first, *_) = recorded[0].recording, recorded[1]
    query = {"type": 1, "remote_port": 53, "bytes": 40}
    # A capture of a minute, of which twenty queries fill the beginning.
    recording.ended += timedelta(seconds=60)
    events = make_events(
        [query | {"ts": first + n * 10**9, "sock": n + 1, "local_port": 50000 + n}
         for n in range(20)]
    )  # fmt: skip
    os.write(recording.spool_fd, events.tobytes())
    recording.tcp_counts = None  # what else this machine did is not in the spool
    sent = HookCounters(seen=20, written=20)
    recording.counters = {**recording.counters, RowType.UDP_SEND: sent}
    summary = seal(Captured(recording, config, node_info), tmp_path / "out").summary
    assert summary.window_s > 60
    (finding,) = summary.findings
    assert (finding.id, finding.counts["unanswered"]) == ("DNS_NO_REPLY", 20)
    assert summary.verdict.verdict == Cause.DNS
    assert any("The wall clock was changed by -120.0 s" in note for note in summary.notes)
