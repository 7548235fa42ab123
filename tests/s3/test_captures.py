# SPDX-License-Identifier: Apache-2.0
"""Real captures of this host, delivered to a real S3 and compared with what lies there."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

from ktrace_api.assignment import Assignment, S3Target, SnapshotRef
from ktrace_api.capture import CaptureConfig
from ktrace_api.names import NodeReason
from ktrace_api.result import AgentResult, read
from ktrace_api.snapshot import S3Output
from tests.bpf.workers import PATIENCE_S, wait_until

from .server import AGENT, BUCKET, Identity, Server

pytestmark = [pytest.mark.world("s3"), pytest.mark.world("bpf")]

KTRACE = Path(sys.executable).with_name("ktrace")
UID = "6f2c7a0e-1111-4222-8333-444455556666"
RECORDING = "ktrace: recording "


class Agent:
    """A process as the operator's pod starts it."""

    def __init__(self, folder: Path, endpoint: str, identity: Identity = AGENT) -> None:
        self.folder, self._endpoint, self._identity = folder, endpoint, identity
        self._log = folder / "termination-log"

    def start(self, duration: str = "120s", upload_seconds: int = 60) -> Self:
        name = self.folder.name.replace("_", "-")
        assignment = Assignment(
            snapshot=SnapshotRef(namespace="ops", name=name, uid=UID),
            capture=CaptureConfig.model_validate({"node": "n1", "duration": duration}),
            target=S3Target(
                output=S3Output(bucket=BUCKET, endpoint=self._endpoint, path_style=True),
                folder=f"ops/{name}-6f2c7a0e/node=n1",
            ),
            upload_seconds=upload_seconds,
        )
        self.base = f"ops/{name}-6f2c7a0e"
        environ = {
            **{key: value for key, value in os.environ.items() if not key.startswith("AWS_")},
            **self._identity.environ,
            "KTRACE_CAPTURE": assignment.model_dump_json(),
            "KTRACE_TERMINATION_LOG": str(self._log),
            "KTRACE_WORK_DIR": str(self.folder / "work"),
        }
        with (self.folder / "stderr").open("wb") as err:
            self.process = subprocess.Popen([KTRACE], stderr=err, env=environ)
        return self

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def wait_for(self, words: str) -> None:
        def said() -> bool:
            assert self.process.poll() is None or words in self.stderr, self.stderr
            return words in self.stderr

        wait_until(said, f"the agent saying {words!r}")

    def result(self) -> tuple[int, AgentResult]:
        status = self.process.wait(PATIENCE_S)
        text = self._log.read_text()
        assert self._identity.secret not in text + self.stderr
        return status, read(text)


@pytest.fixture
def agent(tmp_path: Path, server: Server) -> Iterator[Agent]:
    one = Agent(tmp_path, server.endpoint)
    yield one
    if one.process.poll() is None:
        one.process.kill()
        one.process.wait()


def compare(server: Server, base: str, result: AgentResult) -> dict[str, Any]:
    """The bucket holds what the result says; the summary that lies there."""
    assert result.delivered is not None
    archive = server.get(f"{base}/{result.delivered.path}")
    assert len(archive) == result.delivered.bytes
    assert hashlib.sha256(archive).hexdigest() == result.delivered.sha256
    keys = server.keys(f"{base}/node=n1/")
    assert sorted(key.split("Z.", 1)[1] for key in keys) == [
        "bundle.tgz",
        "events.jsonl",
        "events.parquet",
        "node.json",
        "summary.json",
    ]
    summary: dict[str, Any] = json.loads(
        server.get(next(k for k in keys if k.endswith("summary.json")))
    )
    assert result.events == summary["rows"]
    assert result.complete == summary["complete"]
    assert result.verdict == summary["verdict"]["verdict"]
    assert {one.id for one in result.findings} <= {one["id"] for one in summary["findings"]}
    return summary


def knock(times: int) -> None:
    """Connects to a listener on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        for _ in range(times):
            with socket.create_connection(listening.getsockname()):
                listening.accept()[0].close()


def test_an_assignment_ends_in_the_bucket_and_in_the_message(server: Server, agent: Agent):
    agent.start("2s").wait_for(RECORDING)
    knock(13)
    status, result = agent.result()
    assert (status, result.reason) == (0, NodeReason.COMPLETED)
    assert (result.snapshot_uid, result.node, result.ended_by) == (UID, "n1", "duration")
    assert compare(server, agent.base, result)["rows_by_type"]["connect"] >= 13
    assert result.started
    assert result.ended
    assert (result.ended - result.started).total_seconds() >= 2


def test_sigterm_seals_and_delivers_what_there_is(server: Server, agent: Agent):
    agent.start().wait_for(RECORDING)
    knock(7)
    agent.process.send_signal(signal.SIGTERM)
    status, result = agent.result()
    assert (status, result.reason, result.ended_by) == (0, NodeReason.COMPLETED, "signal")
    assert compare(server, agent.base, result)["rows_by_type"]["connect"] >= 7


def test_a_second_agent_finds_the_node_busy(server: Server, agent: Agent, tmp_path: Path):
    agent.start().wait_for(RECORDING)
    second = tmp_path / "second"
    second.mkdir()
    status, result = Agent(second, server.endpoint).start("1s").result()
    assert (status, result.reason) == (7, NodeReason.NODE_BUSY)
    agent.process.send_signal(signal.SIGTERM)
    assert agent.result()[0] == 0


def test_a_server_that_comes_back_in_time_gets_the_one_capture(tmp_path: Path):
    server = Server(tmp_path / "server")
    server.start()
    server.stop()
    agent = Agent(tmp_path, server.endpoint).start("1s")
    try:
        agent.wait_for("refuses the connection; check the endpoint and start the server; retrying")
        server.start()
        status, result = agent.result()
        assert (status, result.reason) == (0, NodeReason.COMPLETED)
        compare(server, agent.base, result)
        assert agent.stderr.count(RECORDING) == 1
    finally:
        agent.process.kill()
        agent.process.wait()
        server.stop()


def test_a_second_signal_during_the_delivery_gives_up(tmp_path: Path, server: Server):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        agent = Agent(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}").start("1s")
        agent.wait_for("sending ")
        for _ in range(30):  # two at once may arrive as one
            agent.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                agent.process.wait(1)
                break
        status, result = agent.result()
    assert (status, result.reason) == (130, NodeReason.CANCELED)
    assert result.delivered is None


def test_the_command_line_delivers_as_well(server: Server, tmp_path: Path):
    sink = f"s3://{BUCKET}/edge?endpoint={server.endpoint}&pathStyle=true"
    done = subprocess.run(
        [KTRACE, "--duration=1s", "--node=n1", f"--out-dir={tmp_path}/out", "--json"],
        env={**os.environ, **AGENT.environ, "KTRACE_SINK": sink},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    match = re.fullmatch(
        rf"s3://{BUCKET}/(edge/node=n1/ktrace\.n1\..*\.bundle\.tgz)", told["sent_to"]
    )
    assert match
    archive = server.get(match[1])
    assert hashlib.sha256(archive).hexdigest() == told["sha256"]
    assert Path(told["paths"]["bundle"]).read_bytes() == archive
