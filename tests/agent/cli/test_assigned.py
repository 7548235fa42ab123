# SPDX-License-Identifier: Apache-2.0
"""A run of KTRACE_CAPTURE from outside; the session behind it seals a prepared recording."""

import json
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ktrace_agent import session, signals
from ktrace_agent.bundle.seal import Sealed
from ktrace_agent.bundle.seal import seal as seal_bundle
from ktrace_agent.cli import assigned
from ktrace_agent.errors import AgentError, PermissionDenied, SinkFailed, UnsupportedKernel
from ktrace_agent.tables.captured import Captured
from ktrace_api.assignment import Assignment, SnapshotRef, VolumeTarget
from ktrace_api.capture import CaptureConfig
from ktrace_api.names import NodeReason
from ktrace_api.node import NodeInfo
from ktrace_api.result import MAX_MESSAGE_BYTES, AgentResult, read
from ktrace_api.snapshot import PvcOutput
from tests.agent.conftest import Make, make_events

UID = "6f2c7a0e-1111-4222-8333-444455556666"
FOLDER = "ops/slow-6f2c7a0e/node=n1"
CANARY = "canary-of-a-secret-9d41"


class Node:
    """A node with a volume, as a pod gives it; `then` is raised instead of a capture."""

    def __init__(self, folder: Path, seal: Callable[[CaptureConfig, Path], Sealed]) -> None:
        self.volume = folder / "volume"
        self.volume.mkdir()
        self.log = folder / "termination-log"
        self.work = folder / "work"
        self.then: BaseException | None = None
        self.configs: list[CaptureConfig] = []
        self._seal = seal
        self.environ = {
            "KTRACE_CAPTURE": self.assignment().model_dump_json(),
            "KTRACE_TERMINATION_LOG": str(self.log),
            "KTRACE_WORK_DIR": str(self.work),
            "NODE_NAME": "n1",
            "AWS_SECRET_ACCESS_KEY": CANARY,
        }

    def assignment(self, **capture: Any) -> Assignment:
        return Assignment(
            snapshot=SnapshotRef(namespace="ops", name="slow", uid=UID),
            capture=CaptureConfig(node="n1", **capture),
            target=VolumeTarget(
                output=PvcOutput(claim_name="traces"), mount=str(self.volume), folder=FOLDER
            ),
        )

    def capture(
        self, config: CaptureConfig, folder: Path, observer: session.Observer, *_: Any
    ) -> Sealed:
        self.configs.append(config)
        observer.ready()
        if self.then is not None:
            raise self.then
        return self._seal(config, folder)

    def run(self, **environ: str) -> tuple[int, AgentResult]:
        status = assigned.run(self.environ | environ)
        message = self.log.read_bytes()
        assert len(message) <= MAX_MESSAGE_BYTES
        return status, read(message)


@pytest.fixture
def node(
    make_recording: Make, node_info: NodeInfo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Node:
    def seal(config: CaptureConfig, folder: Path) -> Sealed:
        recording = make_recording(make_events([{}, {}, {}]))
        return seal_bundle(Captured(recording, config, node_info), folder)

    one = Node(tmp_path, seal)
    monkeypatch.setattr(session, "run", one.capture)
    monkeypatch.setattr(assigned, "SOCKET", f"\0ktrace-test-{tmp_path}")
    return one


def test_what_is_reported_is_what_lies_in_the_volume(node: Node):
    status, result = node.run()
    assert (status, result.reason) == (0, NodeReason.COMPLETED)
    assert (result.snapshot_uid, result.node) == (UID, "n1")
    assert (result.events, result.lost, result.complete) == (3, 0, True)
    assert result.ended_by == "duration"
    assert result.delivered is not None
    path = node.volume / "ops/slow-6f2c7a0e" / result.delivered.path
    assert path.stat().st_size == result.delivered.bytes
    names = sorted(one.name.rsplit(".", 2)[-2] for one in path.parent.iterdir())
    assert names == ["bundle", "events", "events", "node", "summary"]


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (PermissionDenied("no"), 3, NodeReason.PERMISSION_DENIED),
        (UnsupportedKernel("no"), 4, NodeReason.UNSUPPORTED_KERNEL),
        (SinkFailed("no"), 5, NodeReason.UPLOAD_FAILED),
        (AgentError("no"), 1, NodeReason.AGENT_ERROR),
        (RuntimeError("no"), 1, NodeReason.AGENT_ERROR),
        (MemoryError(), 1, NodeReason.AGENT_ERROR),
        (KeyboardInterrupt(), 130, NodeReason.CANCELED),
    ],
)
def test_every_failure_has_its_reason(
    node: Node, error: BaseException, status: int, reason: NodeReason
):
    node.then = error
    found, result = node.run()
    assert (found, result.reason) == (status, reason)
    assert result.delivered is None
    assert result.message
    assert (result.snapshot_uid, result.node) == (UID, "n1")


def test_no_secret_is_in_the_message_or_the_log(node: Node, capsys: pytest.CaptureFixture[str]):
    node.then = RuntimeError(f"something said {CANARY} aloud")
    _, result = node.run()
    assert result.message == "RuntimeError: something said *** aloud"
    out, err = capsys.readouterr()
    assert CANARY not in out + err + node.log.read_text()


def test_a_bundle_that_cannot_be_delivered_stays_and_is_told(node: Node):
    (node.volume / "ops").write_bytes(b"")
    status, result = node.run()
    assert (status, result.reason) == (5, NodeReason.UPLOAD_FAILED)
    assert result.message.endswith(f"the bundle is in {node.work}/bundle")
    assert result.events == 3
    assert len(list(node.work.glob("bundle/*.bundle.tgz"))) == 1


def test_a_node_has_one_agent(node: Node):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(assigned.SOCKET)
        status, result = node.run()
    assert (status, result.reason) == (7, NodeReason.NODE_BUSY)
    assert node.configs == []
    assert node.run()[0] == 0


def test_what_is_narrowed_to_pods_is_recorded_so(node: Node):
    narrowed = node.assignment().model_copy(update={"pods": (UID,)})
    assert node.run(KTRACE_CAPTURE=narrowed.model_dump_json())[0] == 0
    assert node.configs[0].pods == (UID,)


WRONG: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("the whole document", lambda _: "{"),
    ("the whole document", lambda _: "[]"),
    ("version", lambda one: one | {"version": 2}),
    ("capture.node", lambda one: one | {"capture": {"node": "-"}}),
    ("capture.duration", lambda one: one | {"capture": {"node": "n1", "duration": "1h"}}),
    ("target", lambda one: one | {"target": {"kind": "ftp"}}),
    ("target.volume.folder", lambda one: one | {"target": one["target"] | {"folder": "../x"}}),
    ("pods.0", lambda one: one | {"pods": ["web-0"]}),
    ("hostPath", lambda one: one | {"hostPath": "/"}),
]


@pytest.mark.parametrize(("field", "change"), WRONG)
def test_a_wrong_assignment_names_the_field(
    node: Node, field: str, change: Callable[[dict[str, Any]], Any]
):
    changed = change(json.loads(node.environ["KTRACE_CAPTURE"]))
    text = changed if isinstance(changed, str) else json.dumps(changed)
    status, result = node.run(KTRACE_CAPTURE=text)
    assert (status, result.reason) == (2, NodeReason.PROTOCOL_ERROR)
    assert result.message.startswith(f"KTRACE_CAPTURE: {field}: ")
    assert node.configs == []
    assert result.node in ("n1", "-")
    assert result.snapshot_uid == ("" if isinstance(changed, str) else UID)


def test_a_result_that_cannot_be_written_is_no_success(
    node: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    node.environ["KTRACE_TERMINATION_LOG"] = str(tmp_path)
    assert assigned.run(node.environ) == 1
    assert f"cannot write the result to {tmp_path}: " in capsys.readouterr().err


def test_an_older_message_is_replaced(node: Node):
    node.log.write_bytes(b"x" * 9000)
    assert node.run()[0] == 0


@pytest.mark.parametrize("number", signals.BOTH)
def test_signals_are_the_processs_own_again(node: Node, number: signal.Signals):
    before = signal.getsignal(number)
    node.run()
    assert signal.getsignal(number) is before
