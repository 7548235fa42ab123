# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics.

Names follow controller-runtime and client-go if they define one, so that common dashboards work.
No label contains the name of a snapshot or a node.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version

from prometheus_client import Counter, Gauge, Histogram, Info, disable_created_metrics

from ktrace_api.status import SnapshotStatus

CONTROLLER = "tracesnapshot"

reconciles = Counter(
    "controller_runtime_reconcile", "Reconciliations by result", ["controller", "result"]
)
reconcile_errors = Counter(
    "controller_runtime_reconcile_errors", "Failed reconciliations", ["controller"]
)
reconcile_seconds = Histogram(
    "controller_runtime_reconcile_time_seconds", "Duration of a reconciliation", ["controller"]
)
active_workers = Gauge("controller_runtime_active_workers", "Busy workers", ["controller"])
max_workers = Gauge(
    "controller_runtime_max_concurrent_reconciles", "Number of workers", ["controller"]
)

queue_depth = Gauge("workqueue_depth", "Waiting keys", ["name"])
queue_adds = Counter("workqueue_adds", "Added keys", ["name"])
queue_retries = Counter("workqueue_retries", "Keys added again after a failure", ["name"])
queue_wait_seconds = Histogram(
    "workqueue_queue_duration_seconds", "Time that a key waits for a worker", ["name"]
)
queue_unfinished_seconds = Gauge(
    "workqueue_unfinished_work_seconds", "Sum of the ages of the keys in work", ["name"]
)
queue_longest_seconds = Gauge(
    "workqueue_longest_running_processor_seconds", "Age of the oldest key in work", ["name"]
)

requests = Counter("rest_client_requests", "Requests to the API server", ["code", "method"])
request_seconds = Histogram(
    "rest_client_request_duration_seconds", "Duration of a request to the API server", ["verb"]
)
leading = Gauge("leader_election_master_status", "1 if this replica is the leader", ["name"])

finished = Counter("tracesnapshot_finished", "Finished snapshots", ["phase", "reason"])
duration = Histogram(
    "tracesnapshot_duration_seconds",
    "Time from the fixing of the node list to the end",
    buckets=(10, 30, 60, 120, 300, 600, 1200, 2400),
)
nodes = Counter("tracesnapshot_nodes", "Nodes of finished snapshots", ["outcome", "reason"])
agents_started = Counter("tracesnapshot_agents_started", "Created agent pods")
status_writes = Counter("tracesnapshot_status_writes", "Status writes", ["result"])
relist_corrections = Counter(
    "tracesnapshot_relist_corrections", "Snapshot changes that a watch did not deliver"
)
last_event = Gauge(
    "tracesnapshot_watch_last_event_timestamp_seconds", "Time of the last watch event", ["kind"]
)
loop_lag = Histogram(
    "tracesnapshot_event_loop_lag_seconds",
    "Delay of the event loop, measured every second",
    buckets=(0.01, 0.05, 0.2, 1, 5),
)
build = Info("tracesnapshot_build", "Version of the operator")


def watch_queue(unfinished: Callable[[], list[float]]) -> None:
    """Computes the ages of the keys in work at each scrape."""
    queue_unfinished_seconds.labels(CONTROLLER).set_function(lambda: sum(unfinished()))
    queue_longest_seconds.labels(CONTROLLER).set_function(lambda: max(unfinished(), default=0))


def announce() -> None:
    """Sets the build metric and disables the `_created` series."""
    disable_created_metrics()  # type: ignore[no-untyped-call]
    build.info({"version": version("ktrace")})


@contextmanager
def request_timer(verb: str) -> Iterator[None]:
    """Measures the duration of one request."""
    with request_seconds.labels(verb).time():
        yield


def count_end(status: SnapshotStatus, reason: str) -> None:
    """Counts a finished snapshot. To be called once, after the write that made it final."""
    finished.labels(status.phase or "", reason).inc()
    if status.start_time and status.completion_time:
        duration.observe((status.completion_time - status.start_time).total_seconds())
    for result in status.results:
        nodes.labels(result.outcome, result.reason or "").inc()
