# SPDX-License-Identifier: Apache-2.0
"""Success means that the bytes are there: whatever S3, a volume or the agent does."""

import hashlib
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.bpf.workers import wait_until
from tests.cluster import installed
from tests.cluster.cluster import NODES, Cluster
from tests.cluster.daemons import Daemon
from tests.cluster.installed import AGENTS, OUTPUT
from tests.cluster.s3 import BUCKET
from tests.cluster.s3 import PORT as S3_PORT
from tests.cluster.snapshots import (
    PAUSE_S,
    Object,
    Snapshots,
    conditions,
    container_of,
    entries_of,
    message_of,
)
from tests.cluster.spaces import CONTROL_ADDRESS

pytestmark = [pytest.mark.world("cluster"), pytest.mark.timeout(600)]

SCRIPT = Path(__file__).parent / "faulty_s3.py"
FAULTY = {"error": 8401, "nobucket": 8402, "reset": 8403}
NOBODY, LATER = 8404, 8405
NO_NAME = "http://s3.nowhere.invalid:8333"
FULL = "full"
END_S = 240.0
BUNDLE = ".bundle.tgz"


def at(port: int) -> str:
    return f"http://{CONTROL_ADDRESS}:{port}"


@dataclass(frozen=True)
class Fault:
    """What is wrong with the output of one snapshot, and a word of what is said of it."""

    said: str
    s3: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> Object:
        return {"s3": {**OUTPUT, **self.s3}}


FAULTS = {
    "forbidden": Fault("is denied", {"credentialsSecret": "reader"}),
    "unknown-key": Fault("access key", {"credentialsSecret": "stranger"}),
    "half-a-key": Fault("without AWS_SECRET_ACCESS_KEY", {"credentialsSecret": "half"}),
    "no-bucket": Fault("does not exist", {"endpoint": at(FAULTY["nobucket"])}),
    "error": Fault("500", {"endpoint": at(FAULTY["error"])}),
    "reset": Fault("gave up", {"endpoint": at(FAULTY["reset"])}),
    "refused": Fault("gave up", {"endpoint": at(NOBODY)}),
    "no-name": Fault("nowhere.invalid", {"endpoint": NO_NAME}),
}


@pytest.fixture(scope="module")
def snapshots(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Snapshots]:
    """The installed chart; servers that fail; Secrets that do not help."""
    installed.load_images(cluster)
    endpoints = [OUTPUT["endpoint"], NO_NAME, *map(at, (*FAULTY.values(), NOBODY, LATER))]
    chosen = installed.values(
        output={"default": {"s3": OUTPUT}, "s3": {"allowedEndpoints": endpoints}}
    )
    snapshots = installed.install(cluster, tmp_path_factory.mktemp("chart"), chosen)
    identities = cluster.s3_server.identities
    installed.add_keys(cluster, "reader", identities["reader"])
    installed.add_keys(cluster, "stranger", type(identities["reader"])("KTRACENOBODY", "0" * 40))
    installed.add_keys(cluster, "half", identities["agent"], without="AWS_SECRET_ACCESS_KEY")
    faulty = between(cluster, "faulty-s3", **FAULTY)
    faulty.start()
    yield snapshots
    faulty.kill()
    installed.uninstall(cluster)


def between(cluster: Cluster, name: str, **faults: int) -> Daemon:
    """Servers of faulty_s3.py beside the control plane."""
    words = [f"{kind}={port}" for kind, port in faults.items()]
    command = cluster.control.space.enter(
        sys.executable, SCRIPT, CONTROL_ADDRESS, str(S3_PORT), *words
    )
    return Daemon(name, cluster.control.folder, cluster.control.space.cgroup, command)


def check_bundle(cluster: Cluster, status: Object, node: str) -> None:
    """The node's entry is a success, and its object is of this size and hash."""
    entry = entries_of(status)[node]
    assert (entry["outcome"], entry["reason"]) == ("Succeeded", "Completed")
    prefix = f"s3://{BUCKET}/"
    assert status["path"].startswith(prefix)
    content = cluster.s3().get(BUCKET, status["path"].removeprefix(prefix) + entry["path"])
    assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"])


def check_failed(status: Object, node: str, reason: str) -> str:
    """The node's entry is a failure without a path; its message."""
    entry = entries_of(status)[node]
    assert (entry["outcome"], entry["reason"]) == ("Failed", reason), entry
    assert not {"path", "bytes", "sha256"} & entry.keys()
    return str(entry["message"])


@pytest.fixture(scope="module")
def undelivered(cluster: Cluster, snapshots: Snapshots) -> dict[str, Object]:
    """Name of each fault -> the status of its snapshot, which all ran one after the other."""
    nodes = {name: NODES[number % len(NODES)] for number, name in enumerate(FAULTS)}
    for name, fault in FAULTS.items():
        snapshots.create(name, [nodes[name]], output=fault.output)
    snapshots.wait(*FAULTS, seconds=END_S)
    return {name: snapshots.status(name) for name in FAULTS}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_not_delivered_is_no_success(
    cluster: Cluster, undelivered: dict[str, Object], name: str
):
    status = undelivered[name]
    [node] = entries_of(status)
    assert FAULTS[name].said in check_failed(status, node, "UploadFailed")
    assert status["phase"] == "Failed"
    assert conditions(status)["Succeeded"] == "False"
    folder = status["path"].removeprefix(f"s3://{BUCKET}/")
    assert not [key for key in cluster.s3().keys(BUCKET, folder) if key.endswith(BUNDLE)]


def test_a_volume_that_is_full(cluster: Cluster, snapshots: Snapshots):
    node = cluster.node("node-a")
    folder = cluster.shared_volume(FULL, AGENTS)
    node.space.run("mount", "-t", "tmpfs", "-o", "size=8k", "none", str(folder))
    try:
        snapshots.create(FULL, [node.name], output={"pvc": {"claimName": FULL}})
        status = snapshots.end_of(FULL, END_S)
        assert "space" in check_failed(status, node.name, "UploadFailed")
        assert not node.space.run("find", str(folder), "-name", f"*{BUNDLE}")
    finally:
        snapshots.wait_gone()
        node.space.run("umount", str(folder))


def test_s3_that_comes_back_in_time_gets_what_was_recorded(cluster: Cluster, snapshots: Snapshots):
    name, node = "late", "node-b"
    snapshots.create(name, [node], output=Fault("", {"endpoint": at(LATER)}).output)
    pod = snapshots.running_pod(name, node, END_S)
    wait_until(lambda: "retrying" in logs(snapshots, pod), "a try that failed", END_S, PAUSE_S)
    relay = between(cluster, "late-s3", relay=LATER)
    relay.start()
    try:
        status = snapshots.end_of(name, END_S)
    finally:
        relay.kill()
    check_bundle(cluster, status, node)
    assert status["phase"] == "Completed"
    assert snapshots.made(name) == [1], "a second capture"


def test_an_agent_that_is_killed_spoils_no_other_node(cluster: Cluster, snapshots: Snapshots):
    good, killed = NODES
    snapshots.create("killed", duration="5s")
    pod = snapshots.running_pod("killed", killed, END_S)
    wait_until(lambda: "recording" in logs(snapshots, pod), "a recording", END_S, PAUSE_S)
    victims = cluster.node(killed).processes(container_of(pod))
    assert victims
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    status = snapshots.end_of("killed", END_S)
    check_bundle(cluster, status, good)
    assert "137" in check_failed(status, killed, "AgentError")
    assert status["phase"] == "PartiallyCompleted"
    assert f"1 of 2 nodes delivered a bundle; AgentError: {killed}" in message_of(
        status, "Finished"
    )


def logs(snapshots: Snapshots, pod: Object) -> str:
    return snapshots.kubectl("logs", pod["metadata"]["name"])


def test_no_secret_is_in_what_is_left_in_the_cluster(
    cluster: Cluster, snapshots: Snapshots, undelivered: dict[str, Object]
):
    kinds = ("pods", "events", "configmaps", "tracesnapshots.ktrace.io")
    text = "".join(snapshots.kubectl("get", kind, "--output=yaml") for kind in kinds)
    assert all(name in text for name in undelivered)
    for identity in cluster.s3_server.identities.values():
        assert identity.secret_key not in text
