# SPDX-License-Identifier: Apache-2.0
"""Reads the objects of one snapshot, calls plan() and executes the plan. It decides nothing."""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from ktrace_api.names import ConditionType
from ktrace_api.snapshot import NodeTarget, TraceSnapshot
from ktrace_api.status import SnapshotStatus
from ktrace_operator import metrics
from ktrace_operator.errors import AlreadyExists, ApiError, Conflict, Denied
from ktrace_operator.kube.client import Kube
from ktrace_operator.objects import AgentPod, Node
from ktrace_operator.plan.actions import RESYNC, Plan, abandon
from ktrace_operator.plan.events import event, steps
from ktrace_operator.plan.outputs import choose_output
from ktrace_operator.plan.plan import doubtful_nodes, give_up, owned_by_gitops, plan, wants_pods
from ktrace_operator.plan.read_snapshot import Foreign, Unreadable, read_snapshot
from ktrace_operator.plan.status_pace import wait_to_write
from ktrace_operator.plan.targets import Refusal, pod_namespace, uids_by_node
from ktrace_operator.plan.world import Denial, World
from ktrace_operator.serve.problems import Problems
from ktrace_operator.settings import Settings

logger = logging.getLogger(__name__)

_ONE_BY_ONE = 20
"""Nodes that are read one by one. More of them are listed."""
_REMOVE_AT_ONCE = 100
"""Pods removed per reconciliation, which would otherwise take long at the limited write rate."""
_AGAIN = timedelta(0)


class SnapshotKey(NamedTuple):
    """Key of a snapshot, which may not exist."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Reconciler:
    """Safe for threads as long as no two process the same key."""

    def __init__(
        self,
        kube: Kube,
        settings: Settings,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        at_once: int = 8,
    ) -> None:
        """at_once: concurrent writes to pods."""
        self._kube, self._settings, self._clock = kube, settings, clock
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="pods")
        self._creating = threading.Lock()
        """Two snapshots must see each other's agents before they create their own."""
        self._written: dict[SnapshotKey, datetime] = {}
        """Time of the last status write. Only the rate of writes depends on it."""
        self._problems = Problems()
        """Problems of namespaces and snapshots that were logged. Nothing else depends on it."""

    def close(self) -> None:
        """Stops the threads after their current request."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def reconcile(self, key: SnapshotKey) -> timedelta | None:
        """Reconciles once. Returns the delay until the next time, or None."""
        after = self._reconcile(key, fresh=False)
        if after is None:
            self._written.pop(key, None)
        return after

    def _reconcile(self, key: SnapshotKey, *, fresh: bool) -> timedelta | None:
        """fresh: read pods from etcd instead of the API server's cache."""
        # Pods before the status: a missing pod was released before the status is read, so that
        # status already contains its result.
        pods = self._kube.agents(key.namespace, key.name, fresh=fresh)
        raw = self._kube.snapshot(key.namespace, key.name)
        now = self._clock().replace(microsecond=0)
        if raw is None:
            self._problems.changed(key, None)
            if self._remove(abandon(pods)):
                return _AGAIN
            return RESYNC if pods else None
        snapshot = read_snapshot(raw)
        if isinstance(snapshot, Foreign):
            return self._leave(key, snapshot, pods)
        self._problems.changed(key, None)
        if isinstance(snapshot, Unreadable):
            return self._give_up(key, snapshot, pods, now)
        world = self._world(snapshot, pods, now, fresh=fresh)
        made = plan(world, self._settings, now)
        if made.needs_fresh:
            with self._creating:
                return self._reconcile(key, fresh=True)
        denied = self._create(made)
        if denied:
            made = plan(replace(world, denied=denied), self._settings, now)
        return self._apply(key, snapshot, made, now, more=bool(made.create) and not denied)

    def _apply(
        self, key: SnapshotKey, snapshot: TraceSnapshot, made: Plan, now: datetime, *, more: bool
    ) -> timedelta | None:
        after = self._write_in_time(key, snapshot, made, now)
        some_left = self._remove(made)
        if made.delete_snapshot:
            self._kube.delete_snapshot(snapshot.metadata)
            return None
        return _AGAIN if more or some_left else after

    def _write_in_time(
        self, key: SnapshotKey, snapshot: TraceSnapshot, made: Plan, now: datetime
    ) -> timedelta | None:
        """Writes the status if it is due. Returns the delay until the next time, or None."""
        began = snapshot.status.start_time or now
        last = self._written.get(key)
        since = self._clock() - last if last is not None else None
        wait = wait_to_write(snapshot.status, made.status, snapshot.spec, since, now - began)
        if wait is not None and wait <= _AGAIN:
            self._write(key, snapshot, made.status)
            return _AGAIN
        waits = [max(made.wake - now, _AGAIN)] if made.wake is not None else []
        waits += [wait] if wait is not None else []
        return min(waits, default=None)

    def _write(self, key: SnapshotKey, snapshot: TraceSnapshot, status: SnapshotStatus) -> None:
        try:
            self._kube.write_status(snapshot.metadata, status)
        except Conflict:
            metrics.status_writes.labels("conflict").inc()
            raise
        metrics.status_writes.labels("written").inc()
        self._written[key] = self._clock()
        gitops = snapshot.spec.ttl_after_finished is not None and owned_by_gitops(snapshot)
        for step in steps(snapshot.status, status, gitops_ttl=gitops):
            logger.info("%s: %s: %s", key, step.reason, step.note)
            try:
                self._kube.create_event(event(snapshot, step))
            except ApiError as error:
                logger.warning("%s: Event not written: %s", key, error)
        succeeded = status.condition(ConditionType.SUCCEEDED)
        if status.finished and not snapshot.status.finished and succeeded is not None:
            metrics.count_end(status, succeeded.reason)

    def _create(self, made: Plan) -> dict[str, Denial]:
        """Creates the pods. Returns node -> Denial for those that were refused."""

        def one(node: str, manifest: Mapping[str, Any]) -> tuple[str, Denial | None]:
            try:
                if self._kube.create_agent(manifest):
                    metrics.agents_started.inc()
            except Denied as error:
                if error.namespace_terminating:
                    raise
                return node, Denial(str(error)[:256], passing=error.quota)
            except AlreadyExists as error:
                return node, Denial(str(error)[:256], passing=True)
            return node, None

        answers = self._pool.map(lambda item: one(*item), made.create)
        return {node: denial for node, denial in answers if denial is not None}

    def _remove(self, made: Plan) -> bool:
        """Releases and deletes pods. Returns whether some are left for the next time."""
        release, delete = ({pod.uid for pod in pods} for pods in (made.release, made.delete))

        def one(pod: AgentPod) -> None:
            try:
                if pod.uid in release:
                    self._kube.release(pod)
                if pod.uid in delete:
                    self._kube.delete_agent(pod)
            except Conflict as error:
                logger.debug("%s: %s; reading it again", pod.name, error)

        pods = list({pod.uid: pod for pod in (*made.release, *made.delete)}.values())
        for _ in self._pool.map(one, pods[:_REMOVE_AT_ONCE]):
            pass
        return len(pods) > _REMOVE_AT_ONCE

    # Reading

    def _world(
        self, snapshot: TraceSnapshot, pods: list[AgentPod], now: datetime, *, fresh: bool
    ) -> World:
        world = World(snapshot=snapshot, pods=tuple(pods), fresh=fresh)
        if snapshot.status.finished:
            return world
        if snapshot.status.start_time is None:
            return self._resolved(world)
        doubtful = doubtful_nodes(world, self._settings, now)
        world = replace(world, nodes=self._nodes(doubtful))
        if fresh and wants_pods(snapshot, pods):
            targets = self._target_pods(snapshot)
            world = replace(world, busy=self._busy(snapshot), target_pods=targets)
        return world

    def _resolved(self, world: World) -> World:
        """The world with the objects that the spec names."""
        snapshot, namespace = world.snapshot, world.snapshot.metadata.namespace
        target = snapshot.spec.nodes
        output = choose_output(snapshot.spec, self._settings.output)
        secret, claim = None, None
        if not isinstance(output, Refusal):
            if output.s3 is not None and output.s3.credentials_secret:
                secret = self._kube.secret(namespace, output.s3.credentials_secret)
            if output.pvc is not None:
                claim = self._kube.claim(namespace, output.pvc.claim_name)
        pods = self._target_pods(snapshot)
        nodes = self._target_nodes(target, pods)
        return replace(world, secret=secret, claim=claim, target_pods=pods, nodes=nodes)

    def _target_pods(self, snapshot: TraceSnapshot) -> dict[str, tuple[str, ...]]:
        target = snapshot.spec.nodes.pods
        if target is None:
            return {}
        namespace = pod_namespace(snapshot, self._settings.pod_targets)
        if not isinstance(namespace, str):
            return {}  # begin() refuses with the reason
        return uids_by_node(self._kube.target_pods(namespace, target.selector))

    def _target_nodes(self, target: NodeTarget, pods: Iterable[str]) -> dict[str, Node | None]:
        if target.selector is not None:
            return {node.name: node for node in self._kube.nodes(target.selector)}
        return self._nodes(set(target.names or pods))

    def _nodes(self, names: set[str]) -> dict[str, Node | None]:
        """Current nodes by name. None: no node has this name."""
        if not names:
            return {}
        if len(names) <= _ONE_BY_ONE:
            return {name: self._kube.node(name) for name in sorted(names)}
        there = {node.name: node for node in self._kube.nodes()}
        return {name: there.get(name) for name in names}

    def _busy(self, snapshot: TraceSnapshot) -> dict[str, str]:
        """Hash of each node that has an agent of another snapshot -> `namespace/name` of that."""
        uid = snapshot.metadata.uid
        return {
            pod.node_hash: f"{pod.namespace}/{pod.snapshot}"
            for namespace in self._settings.namespaces
            for pod in self._agents_in(namespace, own=snapshot.metadata.namespace)
            if pod.snapshot_uid != uid and not pod.phase_ended
        }

    def _agents_in(self, namespace: str, own: str) -> list[AgentPod]:
        """Agent pods of a namespace; empty if the operator has no rights there.

        The Role goes with a deleted namespace, which must not stop snapshots of other namespaces.
        An agent that still runs there makes ours on the same node end with NodeBusy. Raises
        Denied for the snapshot's `own` namespace, where nothing works without rights.
        """
        try:
            pods = self._kube.agents(namespace)
        except Denied as error:
            if namespace == own:
                raise
            if self._problems.changed(namespace, str(error)):
                logger.warning("agent pods of %s cannot be listed: %s", namespace, error)
            return []
        if self._problems.changed(namespace, None):
            logger.info("agent pods of %s can be listed again", namespace)
        return pods

    def _leave(self, key: SnapshotKey, what: Foreign, pods: list[AgentPod]) -> timedelta | None:
        """Leaves the status and the agents of an unfinished snapshot to the other version."""
        if self._problems.changed(key, what.message):
            text = "%s: ignored, its status was written by another operator version: %s"
            logger.warning(text, key, what.message)
        rest = [pod for pod in pods if what.ended or pod.snapshot_uid != what.metadata.uid]
        if self._remove(abandon(rest)):
            return _AGAIN
        return RESYNC if pods or not what.ended else None

    def _give_up(
        self, key: SnapshotKey, what: Unreadable, pods: list[AgentPod], now: datetime
    ) -> timedelta | None:
        made = give_up(what.metadata, what.status, pods, what.message, now)
        if made.status != what.status:
            logger.warning("%s: %s", key, what.message)
            self._kube.write_status(what.metadata, made.status)
        some_left = self._remove(made)
        return _AGAIN if some_left else RESYNC if pods else None
