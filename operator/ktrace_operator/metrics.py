# SPDX-License-Identifier: Apache-2.0
"""Figures for Prometheus.

Names are those of controller-runtime and client-go where they have one, so that usual dashboards
work. No label holds the name of a snapshot or a node.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version

from prometheus_client import Counter, Gauge, Histogram, Info, disable_created_metrics

from ktrace_api.status import SnapshotStatus

CONTROLLER = "tracesnapshot"

reconciles = Counter(
    "controller_runtime_reconcile", "Reconciliations by their end", ["controller", "result"]
)
reconcile_errors = Counter(
    "controller_runtime_reconcile_errors", "Reconciliations that failed", ["controller"]
)
reconcile_seconds = Histogram(
    "controller_runtime_reconcile_time_seconds", "Length of a reconciliation", ["controller"]
)
active_workers = Gauge("controller_runtime_active_workers", "Workers that work", ["controller"])
max_workers = Gauge(
    "controller_runtime_max_concurrent_reconciles", "Workers that there are", ["controller"]
)

queue_depth = Gauge("workqueue_depth", "Keys that wait", ["name"])
queue_adds = Counter("workqueue_adds", "Keys that were added", ["name"])
queue_retries = Counter("workqueue_retries", "Keys that were added again after a failure", ["name"])
queue_wait_seconds = Histogram(
    "workqueue_queue_duration_seconds", "How long a key waits for a worker", ["name"]
)
queue_unfinished_seconds = Gauge(
    "workqueue_unfinished_work_seconds", "Age of the work that is being done, summed", ["name"]
)
queue_longest_seconds = Gauge(
    "workqueue_longest_running_processor_seconds", "Age of the oldest work being done", ["name"]
)

requests = Counter("rest_client_requests", "Requests to the API server", ["code", "method"])
request_seconds = Histogram(
    "rest_client_request_duration_seconds", "Length of a request to the API server", ["verb"]
)
leading = Gauge("leader_election_master_status", "1 where this replica leads", ["name"])

finished = Counter("tracesnapshot_finished", "Snapshots that ended", ["phase", "reason"])
duration = Histogram(
    "tracesnapshot_duration_seconds",
    "From the freezing of the node list to the end",
    buckets=(10, 30, 60, 120, 300, 600, 1200, 2400),
)
nodes = Counter("tracesnapshot_nodes", "Nodes of snapshots that ended", ["outcome", "reason"])
agents_started = Counter("tracesnapshot_agents_started", "Agents' pods that were created")
status_writes = Counter("tracesnapshot_status_writes", "Writes of a status", ["result"])
relist_corrections = Counter(
    "tracesnapshot_relist_corrections", "Snapshots that a watch had not told of"
)
last_event = Gauge(
    "tracesnapshot_watch_last_event_timestamp_seconds", "When a watch told something last", ["kind"]
)
loop_lag = Histogram(
    "tracesnapshot_event_loop_lag_seconds",
    "How late the event loop was, a look a second",
    buckets=(0.01, 0.05, 0.2, 1, 5),
)
build = Info("tracesnapshot_build", "Version of the operator")


def watch_queue(unfinished: Callable[[], list[float]]) -> None:
    """Shows the ages of what is worked on whenever somebody asks."""
    queue_unfinished_seconds.labels(CONTROLLER).set_function(lambda: sum(unfinished()))
    queue_longest_seconds.labels(CONTROLLER).set_function(lambda: max(unfinished(), default=0))


def announce() -> None:
    """Says which version this is."""
    disable_created_metrics()  # type: ignore[no-untyped-call]
    build.info({"version": version("ktrace")})


@contextmanager
def request_timer(verb: str) -> Iterator[None]:
    """Times one request."""
    with request_seconds.labels(verb).time():
        yield


def count_end(status: SnapshotStatus, reason: str) -> None:
    """Counts a snapshot at its end, once: after the write that made it final."""
    finished.labels(status.phase or "", reason).inc()
    if status.start_time and status.completion_time:
        duration.observe((status.completion_time - status.start_time).total_seconds())
    for result in status.results:
        nodes.labels(result.outcome, result.reason or "").inc()
