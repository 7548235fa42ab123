# SPDX-License-Identifier: Apache-2.0
"""Whatever the order of events, losses, crashes and late caches: what must never happen does not.

From any state, once kubelets work, every snapshot ends and nothing of it stays.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ktrace_api.names import NodeReason, Outcome
from ktrace_api.status import SnapshotStatus
from ktrace_operator.errors import ApiError, Denied
from ktrace_operator.serve.reconcile import SnapshotKey
from tests.operator.serve.model import START, ApiModel, Crash, Operator, good_result, node_of

DAY = timedelta(days=1)
NODES = ("node-a", "node-b", "node-c", "node-d")
PLATFORMS = ("linux/amd64", "linux/arm64", "windows/amd64")
"""Of nodes; the operator has an image for the first one only."""
SNAPSHOTS = ("first", "second")
CLOCKS = (None, START - DAY, START + DAY, START.replace(year=2), START.replace(year=9999))
"""What time it is on a node; None: it has the right one."""
BAD_MESSAGES = ("", "no JSON", "{}", '{"version":1,"reason":"Completed"}')


class AnyOrder(RuleBasedStateMachine):
    """Two processes of the operator, two snapshots, four nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.model = ApiModel()
        self.operators: list[Operator] = []
        self.keys: list[SnapshotKey] = []
        self.delivered: set[tuple[str, str]] = set()
        """What agents really delivered: snapshot UID and node."""
        self.ran: set[tuple[str, str]] = set()
        """Where agents really ran."""
        self.seen = 0
        self.last: dict[str, SnapshotStatus] = {}
        self.without_image: set[str] = set()

    @initialize(
        parallelism=st.integers(0, 2),
        fenced=st.booleans(),
        not_ready=st.sets(st.sampled_from(NODES), max_size=2),
        platforms=st.tuples(*[st.sampled_from(PLATFORMS)] * len(NODES)),
    )
    def begin(
        self, parallelism: int, fenced: bool, not_ready: set[str], platforms: tuple[str, ...]
    ) -> None:
        for name, platform in zip(NODES, platforms, strict=True):
            self.model.node(name, ready=name not in not_ready, platform=platform)
        self.without_image = {
            name for name, one in zip(NODES, platforms, strict=True) if one != PLATFORMS[0]
        }
        self.operators = [Operator(self.model, name) for name in ("one", "two")]
        if fenced:
            self.model.leader = "one"
        self.parallelism = parallelism
        for name in SNAPSHOTS:
            spec: dict[str, Any] = {"selector": {}, "parallelism": parallelism}
            self.keys.append(self.model.apply(name, {"nodes": spec, "duration": "30s"}))

    # The operator

    def _look(self, operator: Operator, key: SnapshotKey) -> None:
        try:
            operator.look(key)
        except ApiError:
            return
        except Crash:
            self._replace(operator)

    def _replace(self, operator: Operator) -> None:
        at = self.operators.index(operator)
        operator.close()
        self.operators[at] = Operator(self.model, operator.kube.name)

    @rule(which=st.integers(0, 1), key=st.integers(0, 1))
    def look(self, which: int, key: int) -> None:
        self._look(self.operators[which], self.keys[key])

    @rule(which=st.integers(0, 1), key=st.integers(0, 1), after=st.integers(0, 6))
    def die_after_writes(self, which: int, key: int, after: int) -> None:
        operator = self.operators[which]
        operator.kube.crash_after = after
        self._look(operator, self.keys[key])
        if operator in self.operators:
            self._replace(operator)

    @rule(key=st.integers(0, 1), at=st.integers(0, 6))
    def two_at_once(self, key: int, at: int) -> None:
        """The other process looks and acts in the middle of this one's writes."""
        one, two = self.operators
        countdown = [at]

        def interrupt() -> None:
            countdown[0] -= 1
            if countdown[0] == -1:
                if self.model.leader is not None:
                    self.model.leader = two.kube.name
                self._look(two, self.keys[key])

        one.kube.before_write = interrupt
        self._look(one, self.keys[key])
        one.kube.before_write = lambda: None

    @precondition(lambda self: self.model.leader is not None)
    @rule()
    def lead(self) -> None:
        """The Lease goes to the other one."""
        self.model.leader = "two" if self.model.leader == "one" else "one"

    # The world

    @rule()
    def cache_catches_up(self) -> None:
        self.model.sync()

    @rule(seconds=st.sampled_from((1, 7, 31, 61, 131, 401, 907)))
    def time_passes(self, seconds: int) -> None:
        self.model.now += timedelta(seconds=seconds)

    def _pods(self, *, running: bool) -> list[dict[str, Any]]:
        found = []
        for pod in self.model.pods.values():
            states = [one["state"] for one in pod["status"].get("containerStatuses", ())]
            over = pod["status"]["phase"] in ("Succeeded", "Failed")
            if not over and any("running" in one for one in states) is running:
                found.append(pod)
        return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))

    def _starting(self) -> list[dict[str, Any]]:
        return [
            pod
            for pod in self._pods(running=False)
            if "deletionTimestamp" not in pod["metadata"] and node_of(pod) in self.model.nodes
        ]

    def _one_of(self, data: st.DataObject, pods: list[dict[str, Any]]) -> dict[str, Any]:
        return pods[data.draw(st.integers(0, len(pods) - 1))]

    @precondition(lambda self: self._starting())
    @rule(data=st.data(), clock=st.sampled_from(CLOCKS))
    def kubelet_starts(self, data: st.DataObject, clock: datetime | None) -> None:
        self._start(self._one_of(data, self._starting()), clock)

    def _start(self, pod: dict[str, Any], clock: datetime | None = None) -> None:
        self.ran.add((pod["metadata"]["labels"]["ktrace.io/snapshot-uid"], node_of(pod)))
        self.model.start(pod, clock)

    @precondition(lambda self: self._starting())
    @rule(data=st.data(), reason=st.sampled_from(("ImagePullBackOff", "CreateContainerError")))
    def kubelet_cannot_start(self, data: st.DataObject, reason: str) -> None:
        self.model.wait(self._one_of(data, self._starting()), reason)

    @precondition(lambda self: self._pods(running=True))
    @rule(data=st.data())
    def agent_delivers(self, data: st.DataObject) -> None:
        self._deliver(self._one_of(data, self._pods(running=True)))

    def _deliver(self, pod: dict[str, Any]) -> None:
        self.delivered.add((pod["metadata"]["labels"]["ktrace.io/snapshot-uid"], node_of(pod)))
        self.model.succeed(pod)

    @precondition(lambda self: self._pods(running=True))
    @rule(data=st.data(), message=st.sampled_from(BAD_MESSAGES), code=st.sampled_from((0, 1, 137)))
    def agent_breaks(self, data: st.DataObject, message: str, code: int) -> None:
        self.model.end(self._one_of(data, self._pods(running=True)), message, code)

    @precondition(lambda self: self._pods(running=True))
    @rule(data=st.data())
    def agent_claims_anothers_work(self, data: st.DataObject) -> None:
        pod = self._one_of(data, self._pods(running=True))
        self.model.end(pod, good_result(pod, snapshot_uid="0" * 8), 0)

    @precondition(lambda self: self.model.pods)
    @rule(data=st.data())
    def somebody_deletes_a_pod(self, data: st.DataObject) -> None:
        pods = sorted(self.model.pods)
        self.model.delete_pod(self.model.pods[data.draw(st.sampled_from(pods))])

    @rule(why=st.sampled_from((None, "403: denied by a policy", "403: exceeded quota: pods")))
    def pods_are_denied(self, why: str | None) -> None:
        self.model.refusal = Denied(why, 403) if why else None

    @rule(name=st.sampled_from(NODES))
    def node_goes(self, name: str) -> None:
        if name in self.model.nodes:
            self.model.lose_node(name)

    @rule(name=st.sampled_from(NODES), ready=st.booleans())
    def node_changes(self, name: str, ready: bool) -> None:
        if name in self.model.nodes:
            node = self.model.nodes[name]
            self.model.nodes[name] = replace(
                node, ready=ready, not_ready_because="NodeStatusUnknown"
            )

    @rule(key=st.integers(0, 1))
    def stop(self, key: int) -> None:
        if self.keys[key] in self.model.snapshots:
            self.model.stop(self.keys[key])

    @rule(key=st.integers(0, 1))
    def delete(self, key: int) -> None:
        if self.keys[key] in self.model.snapshots:
            self.model.delete_snapshot(self.keys[key])

    # What must hold

    @invariant()
    def never_two_agents(self) -> None:
        assert all(count == 1 for count in self.model.created.values()), self.model.created

    @invariant()
    def never_an_agent_without_an_image(self) -> None:
        assert all(node_of(pod) not in self.without_image for pod in self.model.pods.values())

    @invariant()
    def never_more_at_once_than_asked(self) -> None:
        if not getattr(self, "parallelism", 0):
            return
        for key in self.keys:
            alive = [
                pod
                for pod in self.model.pods.values()
                if pod["metadata"]["labels"]["ktrace.io/snapshot"] == key.name
                and pod["status"]["phase"] in ("Pending", "Running")
                and "deletionTimestamp" not in pod["metadata"]
            ]
            ended = self._final_nodes(key)
            assert len([one for one in alive if node_of(one) not in ended]) <= self.parallelism

    def _final_nodes(self, key: SnapshotKey) -> set[str]:
        if key not in self.model.snapshots:
            return set(NODES)
        return {one.node for one in self.model.status(key).results if one.final}

    @invariant()
    def statuses_only_go_forward(self) -> None:
        for uid, status in self.model.statuses[self.seen :]:
            before = self.last.get(uid)
            if before is not None:
                self._compare(before, status)
            self._check(uid, status)
            self.last[uid] = status
        self.seen = len(self.model.statuses)

    def _compare(self, before: SnapshotStatus, after: SnapshotStatus) -> None:
        if before.start_time:
            assert after.start_time == before.start_time
            assert [one.node for one in after.results] == [one.node for one in before.results]
            for old, new in zip(before.results, after.results, strict=True):
                assert new == old or not old.final
                assert old.outcome is not Outcome.RUNNING or new.outcome is not Outcome.PENDING
        if before.finished:
            assert after.finished
            assert after.completion_time == before.completion_time
            assert after.phase == before.phase
            assert after.results == before.results

    def _check(self, uid: str, status: SnapshotStatus) -> None:
        counts = status.nodes
        parts = counts.pending + counts.running + counts.succeeded + counts.failed + counts.skipped
        assert counts.total == len(status.results) == parts
        for one in status.results:
            assert (one.reason is None) == (not one.final)
            for time in (one.started_at, one.ended_at):
                assert time is None or START <= time <= self.model.now
            if one.outcome is Outcome.SUCCEEDED:
                assert one.reason is NodeReason.COMPLETED
                assert (uid, one.node) in self.delivered, "a success that never was"
            if one.reason is NodeReason.UNSUPPORTED_PLATFORM:
                assert one.node in self.without_image
            if one.outcome is Outcome.SKIPPED:
                assert (uid, one.node) not in self.ran, "it is skipped and ran"
        assert status.finished == (status.completion_time is not None)
        if status.start_time is not None:
            assert status.finished == all(one.final for one in status.results)

    def teardown(self) -> None:
        try:
            self._to_the_end()
            self.never_two_agents()
            self.statuses_only_go_forward()
        finally:
            for operator in self.operators:
                operator.close()

    def _to_the_end(self) -> None:
        """From any state, with kubelets that work and one operator, everything ends."""
        if not self.operators:
            return
        self.model.leader, self.model.refusal = None, None
        for _ in range(40):
            self.model.sync()
            for pod in list(self.model.pods.values()):
                self._kubelet_does_its_work(pod)
            for key in self.keys:
                for _again in range(3):
                    self._look(self.operators[0], key)
            self.model.now += timedelta(seconds=101)
        assert not self.model.pods, "a pod or a finalizer is left"
        for key in self.keys:
            if key in self.model.snapshots:
                assert self.model.status(key).finished

    def _kubelet_does_its_work(self, pod: dict[str, Any]) -> None:
        if node_of(pod) not in self.model.nodes:
            self.model.pods.pop((pod["metadata"]["namespace"], pod["metadata"]["name"])) if not pod[
                "metadata"
            ]["finalizers"] else None
            return
        deleting = "deletionTimestamp" in pod["metadata"]
        running = pod["status"]["phase"] == "Running"
        if running and not deleting:
            self._deliver(pod)
        elif deleting:
            self.model.end(pod, "", 137)
        elif pod["status"]["phase"] == "Pending":
            self._start(pod)


AnyOrder.TestCase.settings = settings(
    stateful_step_count=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestAnyOrder = pytest.mark.timeout(1200)(AnyOrder.TestCase)
