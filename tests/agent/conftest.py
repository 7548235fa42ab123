# SPDX-License-Identifier: Apache-2.0
"""Recordings made of chosen records, and a session that seals one instead of recording."""

import os
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ktrace_agent import session
from ktrace_agent.bundle import seal
from ktrace_agent.kernel.recording import Clock, HookCounters, Overflow, Recording
from ktrace_agent.signals import Stop
from ktrace_agent.tables.captured import Captured
from ktrace_agent.tables.records import EVENT, FLOW, FLOW_KEY, ROW_TYPES
from ktrace_api.capture import CaptureConfig
from ktrace_api.names import RowType
from ktrace_api.node import ClockOffsets, Kernel, NodeInfo

STARTED = datetime(2026, 1, 24, 21, 57, 54, tzinfo=UTC)
BOOT_NS = 10**12
"""Boot time of the first record; the clock is set so that it happens at STARTED."""
OFFSET_NS = int(STARTED.timestamp()) * 10**9 - BOOT_NS

Make = Callable[..., Recording]


def v4(text: str) -> bytes:
    return b"\0" * 10 + b"\xff\xff" + bytes(map(int, text.split(".")))


def make_events(rows: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    """EVENT records: what a row does not say is a TCP change of process 100 at BOOT_NS + i ms."""
    events = np.zeros(len(rows), EVENT)
    for number, row in enumerate(rows):
        usual = {
            "ts": BOOT_NS + number * 10**6,
            "pid": 100,
            "tgid": 100,
            "ppid": 1,
            "ns_net": 4026531840,
            "known": 7,
            "comm": b"curl",
            "family": 4,
            "local_addr": v4("10.0.0.1"),
            "local_port": 40000,
            "remote_addr": v4("10.0.0.2"),
            "remote_port": 443,
            "owner_source": 1,
            "peer_source": 1,
            "old_state": 7,
            "new_state": 2,
        }
        for name, value in {**usual, **row}.items():
            padded = value.ljust(16, b"\0") if isinstance(value, bytes) else value
            events[name][number] = np.void(padded) if isinstance(padded, bytes) else padded
    return events


def make_flows(rows: list[dict[str, Any]]) -> tuple[bytes, bytes]:
    """Keys and values of flows: 10.0.0.1:40000 -> 10.0.0.2:443 over TCP by process 100."""
    keys, values = np.zeros(len(rows), FLOW_KEY), np.zeros(len(rows), FLOW)
    for number, row in enumerate(rows):
        usual = {
            "local_addr": v4("10.0.0.1"),
            "local_port": 40000,
            "remote_addr": v4("10.0.0.2"),
            "remote_port": 443,
            "proto": 6,
            "family": 4,
            "tgid": 100,
            "ns_net": 4026531840,
            "known": 7,
            "comm": b"curl",
        }
        for name, value in {**usual, **row}.items():
            target = keys if name in (FLOW_KEY.names or ()) else values
            padded = value.ljust(16, b"\0") if isinstance(value, bytes) else value
            target[name][number] = np.void(padded) if isinstance(padded, bytes) else padded
    return keys.tobytes(), values.tobytes()


def _making() -> Iterator[Make]:
    """Recordings from records; their counters say that every event was seen and written."""
    opened: list[int] = []

    def make(
        events: np.ndarray[Any, Any],
        flows: tuple[bytes, bytes] = (b"", b""),
        **changes: Any,
    ) -> Recording:
        fd, name = tempfile.mkstemp()
        Path(name).unlink()
        opened.append(fd)
        os.write(fd, events.tobytes())
        counts = np.bincount(events["type"], minlength=len(ROW_TYPES)).tolist()
        counters = {
            row_type: HookCounters(seen=count, written=count)
            for row_type, count in zip(RowType, counts, strict=True)
        }
        facts: dict[str, Any] = {
            "spool_fd": fd,
            "stock_start": b"",
            "stock_end": b"",
            "flow_keys": flows[0],
            "flow_values": flows[1],
            "counters": counters,
            "overflow": Overflow(),
            "cgroups": {},
            "clock": Clock(OFFSET_NS, OFFSET_NS),
            "started": STARTED,
            "ended": STARTED + timedelta(seconds=60),
            "ended_by": "duration",
            "spool_lost": {},
        }
        return Recording(**{**facts, **changes})

    yield make
    for fd in opened:
        os.close(fd)


make_recording = pytest.fixture(name="make_recording")(_making)
make_module_recording = pytest.fixture(name="make_module_recording", scope="module")(_making)
"""For a bundle that all tests of a module read: sealing takes half a second."""


@pytest.fixture(scope="session")
def config() -> CaptureConfig:
    return CaptureConfig(node="etcd-1")


@pytest.fixture(scope="session")
def node_info(config: CaptureConfig) -> NodeInfo:
    return NodeInfo(
        node="etcd-1",
        hostname="etcd-1",
        agent_version="0",
        kernel=Kernel(release="6.12", version="#1", arch="x86_64", btf=True),
        cgroup="v2",
        hooks=(),
        clock=ClockOffsets(offset_start_ns=OFFSET_NS, offset_end_ns=OFFSET_NS, step_ns=0),
        config=config,
        interfaces=(),
        host={},
        netns=(),
        cgroups={},
    )


class Session:
    """What main asked for; `then` is what happens instead of a capture."""

    def __init__(self, make_recording: Make, node_info: NodeInfo) -> None:
        self.configs: list[CaptureConfig] = []
        self.then: BaseException | None = None
        self._make, self._node_info = make_recording, node_info

    def run(
        self,
        config: CaptureConfig,
        out_dir: Path,
        observer: session.Observer,
        stop: Any,
        host_root: Path,
    ) -> seal.Sealed:
        self.configs.append(config)
        self.host_root = host_root
        assert out_dir.is_dir()
        observer.ready()
        observer.tick(session.Live(1.0, 9.0, 3, 3.0, 0))
        if self.then is not None:
            raise self.then
        assert isinstance(stop, Stop)
        return seal.seal(
            Captured(self._make(make_events([{}, {}])), config, self._node_info),
            out_dir,
            observer.sealing,
        )


@pytest.fixture
def ran(
    make_recording: Make,
    node_info: NodeInfo,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Session:
    """A stub session; the working directory is empty and no variable of ours is set."""
    stub = Session(make_recording, node_info)
    monkeypatch.setattr(session, "run", stub.run)
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("KTRACE_") or name == "NODE_NAME":
            monkeypatch.delenv(name)
    return stub
