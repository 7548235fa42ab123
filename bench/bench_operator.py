# SPDX-License-Identifier: Apache-2.0
"""The operator with many nodes: `bench/bench_operator.py [NODES]` (1,000 by default).

A real API server, nodes and agents simulated by kwok, and the operator of this checkout as a
process. One snapshot of all nodes, then 100 snapshots of 10 nodes each at once. Prints the figures
that have a budget: seconds until all pods are created, writes per node, size of the object, memory,
and how often the event loop was more than 0.2 s late. Needs `make setup-cluster`.
"""

import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from tests.cluster.conftest import started  # noqa: E402
from tests.cluster.crowd import Crowd, gathered, size_of  # noqa: E402
from tests.conftest import WORLDS  # noqa: E402

MANY, EACH = 100, 10
END_S = 900.0


def wide(crowd: Crowd, nodes: int) -> None:
    began = time.monotonic()
    crowd.trace("wide", [f"node-{number:04}" for number in range(nodes)])
    [snapshot] = crowd.wait(1, END_S)
    seconds, cost = time.monotonic() - began, crowd.cost()
    counts = snapshot["status"]["nodes"]
    print(f"one snapshot of {nodes} nodes: {counts['succeeded']} succeeded in {seconds:.0f} s")
    print(f"  all pods created in     {cost.creating_s:8.1f} s    (budget 60 at 1,000)")
    print(f"  writes per node         {cost.total / nodes:8.2f}      (budget 4)")
    status_writes = cost.writes["patch", "tracesnapshots/status"]
    print(f"  status writes           {status_writes:8}      (budget 15)")
    print(f"  size of the object      {size_of(snapshot) / 1024:8.0f} KiB  (budget 512)")
    report(crowd)


def many(crowd: Crowd, nodes: int) -> None:
    began = time.monotonic()
    for number in range(MANY):
        crowd.trace(
            f"many-{number}", [f"node-{(number * EACH + i) % nodes:04}" for i in range(EACH)]
        )
    snapshots = crowd.wait(MANY + 1, END_S)
    seconds = time.monotonic() - began
    good = sum(one["status"]["phase"] == "Completed" for one in snapshots) - 1
    twice = sum(times > 1 for times in crowd.cost().pods.values())
    print(f"{MANY} snapshots of {EACH} nodes at once: {good} Completed in {seconds:.0f} s")
    print(f"  pods created twice      {twice:8}      (budget 0)")
    report(crowd)


def report(crowd: Crowd) -> None:
    print(f"  operator's memory       {crowd.peak_mib():8.0f} MiB  (budget 256)")
    print(f"  event loop late > 0.2 s {crowd.late():8.0f}      (budget 0)", flush=True)


def main() -> None:
    nodes = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    if missing := WORLDS["cluster"]():
        print(f"operator: not measured, {missing}")
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        started("bench", nodes=("node-a",), lost_after_s=3600) as cluster,
        gathered(cluster, Path(folder), nodes, run_s=5) as crowd,
    ):
        wide(crowd, nodes)
        many(crowd, nodes)


if __name__ == "__main__":
    main()
