# SPDX-License-Identifier: Apache-2.0
"""The operator dies after any write, hangs, or is there twice: the end is always the same."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.bpf.workers import wait_until
from tests.cluster.cluster import NODES, Cluster
from tests.cluster.operators import CRASHED, Operator
from tests.cluster.snapshots import PAUSE_S, Object, Snapshots, conditions, reasons

pytestmark = pytest.mark.world("cluster")

AT_ONCE = 4
MOST_WRITES = 24
FEWEST_WRITES = 8
"""List frozen, two pods made, the end written, two pods let go and deleted."""
END_S = 90.0
GOOD = dict.fromkeys(NODES, ("Succeeded", "Completed"))
FOUND = [{"id": "DNS_SLOW", "severity": "warning", "count": 6, "nodes": 2}]
LEASE_S = 12


@pytest.fixture
def operators() -> Iterator[list[Operator]]:
    """Operators that end with the test."""
    started: list[Operator] = []
    yield started
    for one in started:
        one.stop()


def check(snapshots: Snapshots, name: str) -> Object:
    """One good run, whatever happened on the way; the status."""
    status = snapshots.status(name)
    assert reasons(status) == GOOD
    assert status["phase"] == "Completed"
    assert conditions(status)["Succeeded"] == "True"
    found = [{key: one[key] for key in FOUND[0]} for one in status["findings"]]
    assert found == FOUND, "each node's findings count once"
    assert status["verdicts"] == {"unknown": 2}
    assert snapshots.made(name) == [1, 1], "one agent a node, ever"
    return status


def run_with_crash(cluster: Cluster, folder: Path, snapshots: Snapshots, after: int) -> bool:
    """A snapshot whose operator dies after its Nth write and is started again; whether it died."""
    operator = Operator(cluster, folder, [snapshots.namespace])
    try:
        snapshots.create("snap")
        operator.start(crash_after=after)
        wait_until(
            lambda: operator.exit_status is not None or over(snapshots), "an end", END_S, PAUSE_S
        )
        died = operator.exit_status is not None
        if died:
            assert operator.exit_status == CRASHED, operator.tail()
            operator.start()
        status = snapshots.end_of("snap", END_S)
        snapshots.wait_gone()
        assert check(snapshots, "snap") == status, "an ended status never changes"
    finally:
        operator.stop()
    return died


def over(snapshots: Snapshots) -> bool:
    ended = conditions(snapshots.status("snap")).get("Finished") == "True"
    return ended and not snapshots.pods()


@pytest.mark.timeout(500)
def test_killed_after_each_write(cluster: Cluster, served: Any, tmp_path: Path):
    with ThreadPoolExecutor(AT_ONCE) as pool:
        spaces = {after: served(f"crash-{after}") for after in range(1, MOST_WRITES + 1)}
        died: dict[int, bool] = {}
        for first in range(1, MOST_WRITES + 1, AT_ONCE):
            turn = range(first, min(first + AT_ONCE, MOST_WRITES + 1))
            jobs = {
                after: pool.submit(
                    run_with_crash, cluster, tmp_path / str(after), spaces[after], after
                )
                for after in turn
            }
            died |= {after: job.result() for after, job in jobs.items()}
            if not all(died.values()):
                break
    writes = sum(died.values())
    assert not all(died.values()), f"the run has more than {MOST_WRITES} writes"
    assert writes >= FEWEST_WRITES
    ended = {after: spaces[after].get("snap") for after in died}
    again = Operator(cluster, tmp_path / "again", [spaces[after].namespace for after in died])
    again.start()
    try:
        wait_until(lambda: seen_by(again) >= len(died), "a look at each", END_S, PAUSE_S)
        for after, before in ended.items():
            assert spaces[after].get("snap") == before, "an ended snapshot was written to"
            assert sum(spaces[after].created_pods().values()) == len(NODES)
    finally:
        again.stop()


def seen_by(operator: Operator) -> float:
    """Reconciliations that ended well."""
    operator.wait_ready()
    name = 'controller_runtime_reconcile_total{controller="tracesnapshot",result="%s"}'
    return operator.metric(name % "success")


def test_one_write_a_life(cluster: Cluster, served: Any, tmp_path: Path):
    snapshots = served("one-write")
    snapshots.create("snap")
    operator = Operator(cluster, tmp_path, [snapshots.namespace])
    try:
        for _ in range(MOST_WRITES):
            operator.start(crash_after=1)
            wait_until(
                lambda: operator.exit_status is not None or over(snapshots),
                "an end",
                END_S,
                PAUSE_S,
            )
            if operator.exit_status is None:
                break
            assert operator.exit_status == CRASHED, operator.tail()
        assert over(snapshots), "no life was the last"
        check(snapshots, "snap")
    finally:
        operator.stop()


def test_two_that_act_at_once(
    cluster: Cluster, served: Any, tmp_path: Path, operators: list[Operator]
):
    snapshots = served("two-at-once")
    for number in (1, 2):
        one = Operator(cluster, tmp_path / str(number), [snapshots.namespace])
        operators.append(one)
        one.start()
    for one in operators:
        one.wait_ready()
    names = [f"snap{number}" for number in range(5)]
    for name in names:
        snapshots.create(name)
    snapshots.wait(seconds=END_S)
    snapshots.wait_gone()
    for name in names:
        check(snapshots, name)
    assert all(one.exit_status is None for one in operators)


def test_a_leader_that_hangs_is_replaced_and_writes_no_more(
    cluster: Cluster, served: Any, tmp_path: Path, operators: list[Operator]
):
    snapshots = served("leaders")
    lease = {
        "enabled": True,
        "namespace": snapshots.namespace,
        "durationSeconds": LEASE_S,
        "renewSeconds": 2,
    }
    leader, second = (
        Operator(cluster, tmp_path / name, [snapshots.namespace], lease=lease)
        for name in ("leader", "second")
    )
    operators += [leader, second]
    leader.start()
    wait_until(lambda: "is the leader" in leader.tail(), "a leader", END_S, PAUSE_S)
    second.start()
    second.wait_ready()
    snapshots.create("snap")
    wait_until(lambda: snapshots.status("snap").get("startTime"), "a start", END_S, PAUSE_S)
    leader.send(signal.SIGSTOP)
    snapshots.wait("snap", seconds=END_S)
    snapshots.wait_gone()
    leader.send(signal.SIGCONT)
    assert leader.wait_end() == 3, leader.tail()
    assert second.exit_status is None, second.tail()
    check(snapshots, "snap")
