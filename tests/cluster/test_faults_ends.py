# SPDX-License-Identifier: Apache-2.0
"""Every way in which an agent can end, or never begin, has its own reason, in time.

What the kubelet, the scheduler, an administrator or a lost node do is real; only the agent is the
stand-in, which ends as the snapshot's name says (standin.c).
"""

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
import yaml

from tests.bpf.workers import wait_until
from tests.cluster import manifests
from tests.cluster.cluster import Cluster
from tests.cluster.node import PAUSE, Node
from tests.cluster.operators import STANDIN, Operator
from tests.cluster.snapshots import PAUSE_S, Object, Snapshots, entries_of, reasons

pytestmark = [pytest.mark.world("cluster"), pytest.mark.timeout(400)]

START_S, UPLOAD_S, GRACE_S = 12, 2, 3
SEAL_S = 61
"""What the operator gives an agent to seal what is recorded in a second."""
IMAGE_S = 40
LATE_S = 45
"""Beyond a limit: the operator's margin, and a busy machine."""
END_S = 200.0
GONE_S = 60.0
RUN_S = 1 + SEAL_S + UPLOAD_S
LIMITS = {"startSeconds": START_S, "uploadSeconds": UPLOAD_S}
AGENT = {
    "image": STANDIN,
    "terminationGraceSeconds": GRACE_S,
    "resources": {
        "requests": {"memory": "16Mi"},
        "limits": {"memory": "24Mi", "ephemeral-storage": "2Mi"},
    },
}
Serve = Callable[..., Snapshots]


@pytest.fixture(scope="module")
def serve(
    cluster: Cluster,
    served: Callable[[str], Snapshots],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Serve]:
    """Makes a namespace with an operator of its own; settings of its agents by name."""
    running: list[Operator] = []

    def make(purpose: str, **agent: Any) -> Snapshots:
        snapshots = served(purpose)
        operator = Operator(
            cluster,
            tmp_path_factory.mktemp(purpose),
            [snapshots.namespace],
            agent={**AGENT, **agent},
            limits=LIMITS,
        )
        running.append(operator)
        operator.start()
        return snapshots

    yield make
    for one in running:
        one.stop()


@pytest.fixture(scope="module")
def slow(cluster: Cluster, serve: Serve) -> dict[str, Snapshots]:
    """What takes long, begun at once: name of the snapshot -> its namespace."""
    big = {"requests": {"cpu": "1000"}, "limits": {"memory": "24Mi"}}
    spaces = {
        "no-image": serve("no-image", image="localhost/ktrace-test/nowhere:1"),
        "no-room": serve("no-room", resources=big),
        "no-volume": serve("no-volume"),
        "deaf": serve("deaf"),
    }
    cluster.shared_volume("gone", spaces["no-volume"].namespace).rmdir()
    spaces["no-volume"].create("no-volume", ["node-a"], output={"pvc": {"claimName": "gone"}})
    for name in ("no-image", "no-room", "deaf"):
        spaces[name].create(name, ["node-a"])
    return spaces


@pytest.fixture(scope="module")
def quick(serve: Serve, slow: dict[str, Snapshots]) -> Snapshots:
    """A namespace for one agent after the other."""
    del slow  # begun before
    return serve("ends")


def ended(snapshots: Snapshots, name: str, node: str, limit: float) -> Object:
    """The node's entry at the end, which came within `limit` seconds; then nothing is left."""
    status = snapshots.end_of(name, END_S)
    begun, end = (datetime.fromisoformat(status[key]) for key in ("startTime", "completionTime"))
    assert (end - begun).total_seconds() <= limit + LATE_S
    snapshots.wait_gone(GONE_S)
    return entries_of(status)[node]


@pytest.mark.parametrize(
    ("name", "reason", "said"),
    [
        ("eats", "OOMKilled", "memory"),
        ("spills", "Evicted", "ephemeral"),
        ("crashes", "AgentError", "134"),
        ("mute", "ProtocolError", "without a result"),
        ("lies", "ProtocolError", "not the node of this pod"),
    ],
)
def test_an_agent_that_ends_badly(quick: Snapshots, name: str, reason: str, said: str):
    quick.create(name, ["node-a"])
    entry = ended(quick, name, "node-a", RUN_S)
    assert (entry["outcome"], entry["reason"]) == ("Failed", reason)
    assert said in entry["message"]


@pytest.mark.parametrize("how", ["delete", "evict"])
def test_a_pod_that_is_taken_away_delivers_what_it_has(quick: Snapshots, how: str):
    name = f"hangs-{how}"
    quick.create(name, ["node-a"])
    take_away(quick, how, quick.running_pod(name, "node-a", END_S))
    entry = ended(quick, name, "node-a", RUN_S)
    assert (entry["outcome"], entry["reason"]) == ("Succeeded", "Completed")
    assert entry["path"]


@pytest.mark.parametrize("how", ["delete", "force", "evict"])
def test_a_pod_that_is_taken_away_and_says_nothing(quick: Snapshots, how: str):
    name = f"deaf-{how}"
    quick.create(name, ["node-a"])
    take_away(quick, how, quick.running_pod(name, "node-a", END_S))
    entry = ended(quick, name, "node-a", RUN_S)
    assert (entry["outcome"], entry["reason"]) == ("Failed", "PodDeleted")


def take_away(snapshots: Snapshots, how: str, pod: Object) -> None:
    name = pod["metadata"]["name"]
    force = ("--force", "--grace-period=0") if how == "force" else ()
    if how == "evict":
        metadata = {"name": name, "namespace": snapshots.namespace}
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
        path = f"/api/v1/namespaces/{snapshots.namespace}/pods/{name}/eviction"
        snapshots.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
    else:
        snapshots.kubectl("delete", "pod", name, "--wait=false", *force)


@pytest.mark.parametrize(
    ("name", "reason", "said", "limit"),
    [
        ("no-image", "ImageError", "Image", IMAGE_S),
        ("no-room", "Unschedulable", "Insufficient cpu", START_S),
        ("no-volume", "StartTimeout", f"not started within {START_S} s", START_S),
        ("deaf", "DeadlineExceeded", "did not finish in time", RUN_S + GRACE_S),
    ],
)
def test_what_does_not_begin_or_end_by_itself(
    slow: dict[str, Snapshots], name: str, reason: str, said: str, limit: float
):
    entry = ended(slow[name], name, "node-a", limit)
    assert (entry["outcome"], entry["reason"]) == ("Failed", reason)
    assert said in entry["message"]


def test_a_node_that_is_full(cluster: Cluster, serve: Serve):
    snapshots, node = serve("full"), cluster.node("node-b")
    other = manifests.pod("other", node.name, PAUSE, ["/pause"])
    other["metadata"]["namespace"] = snapshots.namespace
    cluster.apply(other)
    snapshots.kubectl("wait", "pod/other", "--for=condition=Ready", "--timeout=60s")
    with_pods(cluster, node, 1)
    try:
        snapshots.create("snap", ["node-b"])
        entry = ended(snapshots, "snap", "node-b", START_S)
    finally:
        with_pods(cluster, node, None)
    assert (entry["outcome"], entry["reason"]) == ("Failed", "Unschedulable")
    assert "Too many pods" in entry["message"]


def with_pods(cluster: Cluster, node: Node, most: int | None) -> None:
    """Restart a kubelet with this maxPods; None: as many as by default."""
    file = node.space.folder / "kubelet.yaml"
    settings = yaml.safe_load(file.read_text())
    settings.pop("maxPods", None)
    file.write_text(yaml.safe_dump(settings | ({} if most is None else {"maxPods": most})))
    node.stop_kubelet()
    node.start_kubelet()

    def told() -> bool:
        status = cluster.get("node", node.name)["status"]
        return int(status["allocatable"]["pods"]) == (110 if most is None else most)

    wait_until(told, f"what {node.name} allows", END_S, PAUSE_S)
    wait_until(lambda: node.name in cluster.ready_nodes(), f"a Ready {node.name}", END_S, PAUSE_S)


def test_a_node_that_is_lost_spoils_no_other(cluster: Cluster, serve: Serve):
    snapshots, node = serve("lost"), cluster.node("node-b")
    snapshots.create("hangs")
    for name in ("node-a", "node-b"):
        snapshots.running_pod("hangs", name, END_S)
    node.cut()
    try:
        status = snapshots.end_of("hangs", END_S)
        assert reasons(status) == {
            "node-a": ("Succeeded", "Completed"),
            "node-b": ("Failed", "NodeLost"),
        }
        assert status["phase"] == "PartiallyCompleted"
        wait_until(lambda: not snapshots.held(), "pods that nobody holds", GONE_S, PAUSE_S)
        left = snapshots.pods()
        assert all("deletionTimestamp" in pod["metadata"] for pod in left), "the kubelet's to end"
    finally:
        node.mend()
    snapshots.wait_gone(GONE_S)
    wait_until(lambda: node.name in cluster.ready_nodes(), f"a Ready {node.name}", END_S, PAUSE_S)


def test_a_node_that_is_taken_out_of_the_cluster(cluster: Cluster, serve: Serve):
    snapshots, node = serve("removed"), cluster.node("node-b")
    snapshots.create("deaf", ["node-b"])
    snapshots.running_pod("deaf", "node-b", END_S)
    node.stop_kubelet()
    cluster.kubectl("delete", "node", "node-b")
    try:
        entry = ended(snapshots, "deaf", "node-b", RUN_S)
        assert (entry["outcome"], entry["reason"]) == ("Failed", "NodeLost")
    finally:
        node.start_kubelet()
    wait_until(lambda: node.name in cluster.ready_nodes(), f"a Ready {node.name}", END_S, PAUSE_S)
