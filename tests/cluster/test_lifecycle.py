# SPDX-License-Identifier: Apache-2.0
"""A snapshot as kubectl, GitOps tools and backups see it, and how it goes away at any time."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ktrace_api.names import FINALIZER
from tests.bpf.workers import wait_until
from tests.cluster.cluster import NODES, Cluster
from tests.cluster.operators import Operator
from tests.cluster.snapshots import (
    PAUSE_S,
    RESOURCE,
    Object,
    Snapshots,
    conditions,
    reasons,
    snapshot,
)

pytestmark = pytest.mark.world("cluster")

END_S = 90.0
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
Served = Callable[[str], Snapshots]


def kstatus(seen: Object) -> str:
    """What Flux, Argo CD and `kpt live` make of an object.

    The rules of sigs.k8s.io/cli-utils, pkg/kstatus/status/generic.go and status.go, for a kind
    that it does not know: deletion, then the generation, then the conditions Reconciling and
    Stalled, then Ready; without any of them an object counts as Current.
    """
    metadata, status = seen["metadata"], seen.get("status") or {}
    if metadata.get("deletionTimestamp"):
        return "Terminating"
    if status.get("observedGeneration", metadata["generation"]) != metadata["generation"]:
        return "InProgress"
    found = conditions(status)
    if found.get("Reconciling") == "True":
        return "InProgress"
    if found.get("Stalled") == "True":
        return "Failed"
    return "Current" if found.get("Ready", "True") == "True" else "InProgress"


@pytest.fixture(scope="module")
def snapshots(
    cluster: Cluster, served: Served, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Snapshots]:
    """A namespace with an operator that runs."""
    space = served("life")
    operator = Operator(cluster, tmp_path_factory.mktemp("life"), [space.namespace])
    operator.start()
    yield space
    operator.stop()
    for one in space.all():
        annotations = one["metadata"].get("annotations", {})
        assert set(annotations) <= {LAST_APPLIED}, "an operator's notes in a user's object"
        assert "finalizers" not in one["metadata"]


@pytest.fixture
def absent(
    cluster: Cluster, served: Served, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[Snapshots, Operator]]:
    """A namespace of the test's own, and its operator, which does not run yet."""
    space = served("".join(c if c.isalnum() else "-" for c in request.node.name)[:60].strip("-"))
    operator = Operator(cluster, tmp_path / "operator", [space.namespace])
    yield space, operator
    operator.stop()


def run(snapshots: Snapshots, name: str, **more: object) -> Object:
    """The object of a snapshot that came to its end."""
    snapshots.create(name, **more)  # type: ignore[arg-type]
    snapshots.wait(name, seconds=END_S)
    return snapshots.get(name)


def test_a_good_end(snapshots: Snapshots):
    ended = run(snapshots, "good")
    assert kstatus(ended) == "Current"
    assert conditions(ended["status"]) == {
        "Accepted": "True",
        "Succeeded": "True",
        "Finished": "True",
        "Reconciling": "False",
        "Stalled": "False",
        "Ready": "True",
    }
    generation = ended["metadata"]["generation"]
    assert {one["observedGeneration"] for one in ended["status"]["conditions"]} == {generation}
    head, row = snapshots.kubectl("get", "tsnap", "good").splitlines()
    assert head.split() == ["NAME", "PHASE", "NODES", "OK", "FAILED", "FINDINGS", "AGE"]
    assert row.split()[:6] == ["good", "Completed", "2", "2", "0", "DNS_SLOW"]
    wide = snapshots.kubectl("get", "tsnap", "good", "--output=wide")
    assert ended["status"]["path"] in wide
    assert "good" in snapshots.kubectl("get", "ktrace")


@pytest.mark.parametrize(
    ("name", "nodes", "phase", "ends"),
    [
        ("part", ["node-a", "node-z"], "PartiallyCompleted", ("Skipped", "NodeLost")),
        ("mute", ["node-a", "node-z"], "Failed", ("Skipped", "NodeLost")),
    ],
)
def test_a_bad_end_is_an_end(
    snapshots: Snapshots, name: str, nodes: list[str], phase: str, ends: tuple[str, str]
):
    ended = run(snapshots, name, nodes=nodes)
    assert ended["status"]["phase"] == phase
    assert reasons(ended["status"])["node-z"] == ends
    assert kstatus(ended) == "Failed"
    assert conditions(ended["status"])["Succeeded"] == "False"


def test_what_is_not_seen_yet_or_goes_on_is_in_progress(absent: tuple[Snapshots, Operator]):
    snapshots, operator = absent
    snapshots.create("hangs", ["node-a"])
    assert kstatus(snapshots.get("hangs")) == "InProgress"
    operator.start()
    snapshots.running_pod("hangs", "node-a", END_S)
    assert kstatus(snapshots.get("hangs")) == "InProgress"
    assert conditions(snapshots.status("hangs"))["Finished"] == "False"
    snapshots.kubectl("patch", "tsnap", "hangs", "--type=merge", '--patch={"spec":{"stop":true}}')
    ended = snapshots.end_of("hangs", END_S)
    assert ended["phase"] == "Canceled"
    assert reasons(ended) == {"node-a": ("Succeeded", "Completed")}, "what was recorded is kept"
    snapshots.wait_gone()


def test_explain_says_what_a_field_is(cluster: Cluster, snapshots: Snapshots):
    text = cluster.kubectl("explain", "tsnap.spec")
    assert all(field in text for field in ("nodes", "duration", "capture", "output", "stop"))
    assert "<no description>" not in cluster.kubectl("explain", "tsnap", "--recursive=false")


def test_the_same_manifest_again_starts_nothing(snapshots: Snapshots):
    manifest = json.dumps(snapshot("again"))
    snapshots.kubectl("apply", "--filename=-", stdin=manifest)
    ended = snapshots.end_of("again", END_S)
    before = snapshots.get("again")
    assert "unchanged" in snapshots.kubectl("apply", "--filename=-", stdin=manifest)
    snapshots.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=manifest)
    run(snapshots, "afterwards")
    assert snapshots.status("again") == ended
    assert snapshots.get("again")["metadata"]["generation"] == before["metadata"]["generation"]
    assert snapshots.made("again") == [1, 1]
    changed = json.dumps(snapshot("again", duration="2s"))
    with pytest.raises(AssertionError, match="spec is immutable except"):
        snapshots.kubectl("apply", "--filename=-", stdin=changed)


def test_one_that_comes_back_from_a_backup_does_not_run(
    snapshots: Snapshots, absent: tuple[Snapshots, Operator]
):
    restored, operator = absent
    kept = run(snapshots, "kept")
    copy = snapshot("kept", **kept["spec"])
    restored.kubectl("create", "--filename=-", stdin=json.dumps(copy))
    patch = json.dumps({"status": kept["status"]})
    restored.kubectl("patch", "tsnap", "kept", "--subresource=status", "--type=merge", "-p", patch)
    operator.start()
    run(restored, "new")
    assert restored.status("kept") == kept["status"]
    assert restored.made("kept") == []


def test_deleted_in_the_middle(snapshots: Snapshots):
    snapshots.create("hangs-deleted")
    for node in NODES:
        snapshots.running_pod("hangs-deleted", node, END_S)
    snapshots.kubectl("delete", "tsnap", "hangs-deleted", "--timeout=10s")
    wait_until(lambda: not snapshots.pods("hangs-deleted"), "the end of its pods", 60, PAUSE_S)
    made = [pod for pod in snapshots.created_pods().elements() if pod.startswith("hangs-deleted-")]
    assert len(made) == len(set(made)) == len(NODES)


def test_deleted_while_no_operator_runs(absent: tuple[Snapshots, Operator]):
    snapshots, operator = absent
    start_and_kill(snapshots, operator)
    snapshots.kubectl("delete", "tsnap", "hangs", "--timeout=10s")
    assert len(snapshots.held()) == len(NODES), "nobody has let go of them"
    operator.start()
    snapshots.wait_gone()


def test_the_namespace_is_deleted_while_no_operator_runs(
    cluster: Cluster, absent: tuple[Snapshots, Operator]
):
    snapshots, operator = absent
    start_and_kill(snapshots, operator)
    snapshots.create("later")
    cluster.kubectl("delete", "namespace", snapshots.namespace, "--wait=false")

    def deleting() -> bool:
        return all("deletionTimestamp" in pod["metadata"] for pod in snapshots.pods())

    wait_until(deleting, "the namespace controller", END_S, PAUSE_S)
    assert len(snapshots.held()) == len(NODES), "nobody has let go of them"
    operator.start()
    name = f"namespace/{snapshots.namespace}"
    cluster.kubectl("wait", "--for=delete", "--timeout=60s", name)
    assert not [pod for pod in snapshots.created_pods() if pod.startswith("later-")]
    assert operator.exit_status is None, operator.tail()


def start_and_kill(snapshots: Snapshots, operator: Operator) -> None:
    """A snapshot whose agents run, and whose operator is dead."""
    snapshots.create("hangs")
    operator.start()
    for node in NODES:
        snapshots.running_pod("hangs", node, END_S)
    operator.kill()


def test_it_deletes_itself_but_not_from_under_a_gitops_tool(snapshots: Snapshots):
    owned = snapshot("owned", ["node-a"], ttlAfterFinished="1s")
    owned["metadata"]["labels"] = {"argocd.argoproj.io/instance": "app"}
    snapshots.kubectl("create", "--filename=-", stdin=json.dumps(owned))
    snapshots.create("brief", ["node-a"], ttlAfterFinished="1s")
    name = f"{RESOURCE}/brief"
    snapshots.kubectl("wait", "--for=delete", f"--timeout={END_S:g}s", name)
    snapshots.wait("owned", seconds=END_S)

    def told() -> bool:
        return "TTLIgnoredGitOps" in snapshots.kubectl("get", "events")

    wait_until(told, "an Event", END_S, PAUSE_S)
    assert snapshots.get("owned")


def test_a_node_that_takes_no_pods_is_traced(cluster: Cluster, snapshots: Snapshots):
    cluster.kubectl("cordon", "node-b")
    cluster.kubectl("taint", "node", "node-b", "test.ktrace.io/no=pods:NoExecute")
    try:
        ended = run(snapshots, "cordoned", nodes=["node-b"])
    finally:
        cluster.kubectl("taint", "node", "node-b", "test.ktrace.io/no-")
        cluster.kubectl("uncordon", "node-b")
    assert reasons(ended["status"]) == {"node-b": ("Succeeded", "Completed")}


def test_no_pod_is_left_and_nothing_is_held(snapshots: Snapshots):
    run(snapshots, "last")
    snapshots.wait_gone()
    assert FINALIZER not in snapshots.kubectl("get", "pods", "--output=yaml")
