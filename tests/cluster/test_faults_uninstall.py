# SPDX-License-Identifier: Apache-2.0
"""`helm uninstall` while agents run: nothing is stuck, and what people made can be deleted."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import installed
from tests.cluster.cluster import NODES, Cluster
from tests.cluster.installed import AGENTS, OPERATORS, RELEASE
from tests.cluster.operators import load_standin
from tests.cluster.snapshots import Snapshots

pytestmark = [pytest.mark.world("cluster"), pytest.mark.timeout(600)]

END_S = 120.0


@pytest.fixture
def snapshots(cluster: Cluster, tmp_path: Path) -> Iterator[Snapshots]:
    """The chart with the stand-in for an agent; its agents' namespace outlives it."""
    installed.load_images(cluster)
    load_standin(cluster, tmp_path)
    image = {"repository": "ktrace-test/standin", "tag": "1"}
    agents = {"agents": {"name": AGENTS, "keep": True}}
    chosen = installed.values(agent={"image": image}, namespaces=agents)
    yield installed.install(cluster, tmp_path, chosen)
    cluster.kubectl("delete", "namespace", "--ignore-not-found", "--timeout=90s", AGENTS, OPERATORS)


def test_uninstalled_while_agents_run(cluster: Cluster, snapshots: Snapshots):
    snapshots.create("hangs")
    for node in NODES:
        snapshots.running_pod("hangs", node, END_S)
    assert len(snapshots.held()) == len(NODES)
    cluster.helm_uninstall(RELEASE, OPERATORS)
    assert not snapshots.held()
    snapshots.wait_gone()
    assert snapshots.get("hangs")["metadata"].get("finalizers") is None
    snapshots.create("nobody-comes")
    snapshots.kubectl("delete", "tsnap", "--all", "--timeout=10s")
    cluster.kubectl("delete", "namespace", AGENTS, "--timeout=60s")
