# SPDX-License-Identifier: Apache-2.0
"""Many nodes and many snapshots at once: what is written is bounded, and nothing happens twice.

How long it takes is measured by bench/bench_operator.py with 1,000 nodes.
"""

import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.bpf.workers import wait_until
from tests.cluster.conftest import started
from tests.cluster.crowd import Crowd, gathered, size_of
from tests.cluster.snapshots import entries_of

pytestmark = [pytest.mark.world("cluster"), pytest.mark.timeout(900)]

NODES = 101
MANY, EACH = 23, 7
WAITING = 499
AWAY_S = 60.0
END_S = 400.0
STATUS_WRITES = 15


def names(first: int, count: int) -> list[str]:
    """Names of played nodes, around the end to the first again."""
    return [f"node-{(first + number) % NODES:04}" for number in range(count)]


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    with (
        started("scale", nodes=("node-a",), lost_after_s=3600) as cluster,
        gathered(cluster, tmp_path_factory.mktemp("operator"), NODES, run_s=3) as crowd,
    ):
        yield crowd


def test_one_snapshot_of_many_nodes(crowd: Crowd):
    crowd.trace("wide", names(0, NODES))
    [snapshot] = crowd.wait(1, END_S)
    status, cost = snapshot["status"], crowd.cost()
    assert (status["phase"], status["nodes"]["succeeded"]) == ("Completed", NODES)
    assert Counter(cost.pods.values()) == {1: NODES}
    assert cost.total <= 4 * NODES
    assert cost.writes["patch", "tracesnapshots/status"] <= STATUS_WRITES
    assert [(one["id"], one["count"], one["nodes"]) for one in status["findings"]] == [
        ("DNS_NO_REPLY", NODES, NODES)
    ]
    assert status["verdicts"] == {"dns": NODES}
    assert size_of(snapshot) <= 524 * NODES + 8192  # of 512 KiB at 1,000 nodes
    assert crowd.late() == 0


def test_many_snapshots_at_once(crowd: Crowd):
    """They meet on the same nodes, and there each waits for the other."""
    before = crowd.cost()
    for number in range(MANY):
        crowd.trace(f"many-{number}", names(number * 3, EACH))
    snapshots = crowd.wait(MANY + 1, END_S)
    cost = crowd.cost()
    for snapshot in snapshots:
        status = snapshot["status"]
        assert status["phase"] == "Completed"
        entries = entries_of(status)
        assert len(entries) == status["nodes"]["total"] == status["nodes"]["succeeded"]
        assert all(one["path"].startswith(f"node={node}/") for node, one in entries.items())
    made = cost.pods - before.pods
    assert Counter(made.values()) == {1: MANY * EACH}
    assert crowd.peak_mib() <= 256


def test_a_pod_that_is_deleted_at_its_end_has_told_its_result(crowd: Crowd):
    """Somebody clears up ended pods all the time: the finalizer keeps what they say."""
    crowd.trace("cleared", names(5, 13))
    ended = ("pods", "--field-selector=status.phase=Succeeded", "--wait=false")

    def over() -> bool:
        crowd.snapshots.kubectl("delete", *ended)
        return "completionTime" in crowd.snapshots.status("cleared")

    wait_until(over, "the end of a snapshot whose pods are cleared up", END_S)
    outcomes = Counter(one["outcome"] for one in crowd.snapshots.status("cleared")["results"])
    assert outcomes == {"Succeeded": 13}
    crowd.snapshots.wait_gone()


def test_the_api_server_is_away_for_a_minute(crowd: Crowd):
    """It dies while agents run: whoever waited goes on, and nothing happens twice."""
    before, ended, pid = crowd.cost(), crowd.ended(), crowd.operator.pid
    crowd.trace("cut-off", names(31, 17))
    wait_until(
        lambda: crowd.snapshots.status("cut-off").get("nodes", {}).get("running"),
        "the first agent that runs",
        END_S,
    )
    with crowd.without_api_server():
        time.sleep(AWAY_S)
    crowd.wait(ended + 1, END_S)
    status = crowd.snapshots.status("cut-off")
    assert (status["phase"], status["nodes"]["succeeded"]) == ("Completed", 17)
    assert Counter((crowd.cost().pods - before.pods).values()) == {1: 17}
    assert (crowd.operator.pid, crowd.operator.exit_status) == (pid, None)


def test_a_cold_start_with_many_that_wait(crowd: Crowd):
    """Snapshots were created while no operator ran: all are served, each once."""
    before, ended = crowd.cost(), crowd.ended()
    crowd.operator.stop()
    crowd.trace_all({f"waited-{number}": names(number, 1) for number in range(WAITING)})
    crowd.operator.start()
    crowd.operator.wait_ready()
    snapshots = crowd.wait(ended + WAITING, END_S)
    phases = Counter(
        one["status"]["phase"] for one in snapshots if one["metadata"]["name"].startswith("waited-")
    )
    assert phases == {"Completed": WAITING}
    assert Counter((crowd.cost().pods - before.pods).values()) == {1: WAITING}
    assert crowd.peak_mib() <= 256
