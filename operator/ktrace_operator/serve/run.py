# SPDX-License-Identifier: Apache-2.0
"""Starts the operator's parts and connects them: Lease, watches, queue, probes.

kopf is used as transport only: `on.event` puts keys on the queue. It keeps no state: no
finalizer, no annotation, no handler that could fail.
"""

import asyncio
import gc
import logging
import os
import random
import signal
import socket
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import kopf
from prometheus_client import start_http_server

from ktrace_api.names import API_GROUP, API_VERSION, LABEL_SNAPSHOT, MANAGER, PLURAL
from ktrace_operator import metrics
from ktrace_operator.errors import ApiError, LeaseLost, OperatorError
from ktrace_operator.kube import tls
from ktrace_operator.kube.client import AGENT_SELECTOR, Kube
from ktrace_operator.kube.lease import Lease
from ktrace_operator.kube.rate_limit import TokenBucket
from ktrace_operator.kube.transport import Transport, connect
from ktrace_operator.serve.health import Health, WatchCheck
from ktrace_operator.serve.problems import Problems
from ktrace_operator.serve.reconcile import Reconciler, SnapshotKey
from ktrace_operator.serve.workqueue import WorkQueue
from ktrace_operator.settings import Settings

WORKERS = 8
_THREADS = 16
_RELIST_SECONDS = 60.0
_POD_SECONDS = 0.3
"""Delay that collects several events of pods: 1,000 starting pods cause 4,000 events."""
_COLLECT_AFTER = (20_000, 20, 50)
"""Thresholds of Python's garbage collector. With the defaults (700, 10, 10) and 1,000 nodes it
walked all objects every few seconds, 0.1 to 0.3 s each time."""

logger = logging.getLogger(__name__)


async def serve(settings: Settings) -> None:
    """Runs until a signal. Raises LeaseLost or another OperatorError if it cannot continue."""
    metrics.announce()
    _collect_seldom()
    client = connect(pool=2 * _THREADS)
    bucket = TokenBucket(settings.writes_per_second, 2 * settings.writes_per_second)
    lease = Lease(Kube(Transport(client, bucket)), settings.lease, _identity())
    kube = Kube(Transport(client, bucket, lease.may_write))
    queue = WorkQueue[SnapshotKey]()
    watches = WatchCheck()
    health = Health(lambda: queue.oldest, watches, lambda: lease.held)
    start_http_server(settings.metrics_port)
    probes = await health.serve(settings.probe_port)
    threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="api")
    loop = asyncio.get_running_loop()
    ticking = loop.create_task(health.tick())
    reconciler = Reconciler(kube, settings)
    # Until kopf installs its own handlers: PID 1 of a container ignores unhandled signals.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lease.stop)
    metrics.watch_queue(queue.unfinished)
    try:
        if not await loop.run_in_executor(threads, lease.acquire):
            return
        health.acting = True
        await _until_first(
            loop.run_in_executor(threads, lease.keep),
            queue.run(
                WORKERS, lambda key: loop.run_in_executor(threads, reconciler.reconcile, key)
            ),
            _keep_listing(settings, kube, queue, watches, threads),
            _watch(settings, queue, watches),
        )
    finally:
        ticking.cancel()
        await loop.run_in_executor(threads, lease.close)
        await probes.cleanup()
        reconciler.close()
        threads.shutdown(wait=False, cancel_futures=True)


def _collect_seldom() -> None:
    """Makes garbage collections rarer and shorter, since each one blocks the event loop."""
    gc.collect()
    gc.freeze()  # objects created by imports live until the end
    gc.set_threshold(*_COLLECT_AFTER)


async def _until_first(keeping: "asyncio.Future[None]", *work: Any) -> None:
    """Runs until kopf ends after a signal or a part fails. The Lease is kept until the end."""
    *others, watching = (asyncio.ensure_future(one) for one in work)
    tasks: set[asyncio.Future[Any]] = {keeping, *others, watching}
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks - done - {keeping}:
        task.cancel()
    await asyncio.gather(*(tasks - {keeping}), return_exceptions=True)
    if keeping in done:
        raise LeaseLost("Lease lost: another replica is the leader")
    for task in done:
        if (error := task.exception()) is not None:
            raise OperatorError(f"stopped by an error: {error!r}") from error


def _identity() -> str:
    """Identity in the Lease: the pod's name, so that a restarted container keeps its Lease.

    Outside a cluster, each process has its own identity.
    """
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ
    return socket.gethostname() if in_pod else f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"


async def _keep_listing(
    settings: Settings,
    kube: Kube,
    queue: WorkQueue[SnapshotKey],
    watches: WatchCheck,
    threads: ThreadPoolExecutor,
) -> None:
    problems = Problems()
    while True:
        await asyncio.sleep(_RELIST_SECONDS)
        await relist(settings.namespaces, kube, queue, watches, threads, problems)


async def relist(
    namespaces: Iterable[str],
    kube: Kube,
    queue: WorkQueue[SnapshotKey],
    watches: WatchCheck,
    threads: ThreadPoolExecutor,
    problems: Problems,
) -> None:
    """Queues snapshots whose change the watch missed, and names of snapshots that have pods.

    A namespace that cannot be listed (perhaps deleted with its Role) is skipped.
    """
    loop = asyncio.get_running_loop()
    versions: dict[tuple[str, str], str] = {}
    listed: set[str] = set()
    for namespace in namespaces:
        try:
            found = await loop.run_in_executor(threads, kube.versions, namespace)
            versions |= {(namespace, name): one for name, one in found.items()}
            listed.add(namespace)
            traced = await loop.run_in_executor(threads, kube.traced, namespace)
        except ApiError as error:
            if problems.changed(namespace, str(error)):
                logger.warning("%s cannot be listed: %s", namespace, error)
            continue
        if problems.changed(namespace, None):
            logger.info("%s can be listed again", namespace)
        for name in traced:
            queue.add(SnapshotKey(namespace, name))
    for key in watches.listed(versions, listed):
        metrics.relist_corrections.inc()
        queue.add(SnapshotKey(*key))


async def _watch(settings: Settings, queue: WorkQueue[SnapshotKey], watches: WatchCheck) -> None:
    registry = kopf.OperatorRegistry()
    _register(registry, queue, watches)
    await kopf.operator(
        registry=registry,
        settings=_kopf_settings(),
        namespaces=list(settings.namespaces),
        standalone=True,
    )


def _register(
    registry: kopf.OperatorRegistry, queue: WorkQueue[SnapshotKey], watches: WatchCheck
) -> None:
    """Registers kopf's handlers. Each puts one key on the queue."""

    @kopf.on.login(registry=registry)
    def login(**arguments: Any) -> kopf.ConnectionInfo | None:
        return tls.login(**arguments)

    @kopf.on.event(API_GROUP, API_VERSION, PLURAL, registry=registry)
    async def snapshot(
        namespace: str | None,
        name: str,
        meta: kopf.Meta,
        type: str | None,  # noqa: A002 - kopf's name
        **_: Any,
    ) -> None:
        metrics.last_event.labels("tracesnapshots").set_to_current_time()
        gone = type == "DELETED"
        watches.delivered((namespace or "", name), None if gone else meta["resourceVersion"])
        queue.add(SnapshotKey(namespace or "", name))

    @kopf.on.event("v1", "pods", registry=registry)
    async def pod(namespace: str | None, labels: kopf.Labels, **_: Any) -> None:
        metrics.last_event.labels("pods").set_to_current_time()
        if name := labels.get(LABEL_SNAPSHOT):
            queue.add_after(SnapshotKey(namespace or "", name), _POD_SECONDS)


class _Backoffs:
    """Retry delays of kopf's own requests.

    They never end, because an API server may be down for an upgrade, and they are random, so that
    replicas do not retry at the same time.
    """

    def __iter__(self) -> Iterator[float]:
        delay = 1.0
        while True:
            yield delay * random.uniform(0.5, 1.0)  # noqa: S311 - spreads retries, not cryptographic
            delay = min(delay * 2, 30.0)


def _kopf_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.posting.loggers = False
    settings.posting.reporting_component = MANAGER
    settings.persistence.finalizer = f"{API_GROUP}/kopf"  # never written: on.event needs none
    settings.watching.label_selectors["pods"] = AGENT_SELECTOR
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 10
    settings.watching.chunk_size = 500
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = _Backoffs()
    settings.process.ultimate_exiting_timeout = timedelta(seconds=20).total_seconds()
    return settings
