# SPDX-License-Identifier: Apache-2.0
"""What the pod of one agent says about its node: it goes on, or it has come to this end.

Nothing is remembered: the same pod at the same time gives the same answer in every process.
Deadlines count from times of the API server; only `now` is this process's own, and what a node's
clock says of a container's start is held to what can be true (Case.started).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from ktrace_api.names import NodeReason, Outcome
from ktrace_api.result import AgentResult, BadResult
from ktrace_api.status import NodeResult
from ktrace_operator.objects import AgentPod, Node, Running, Terminated, Waiting, text_of
from ktrace_operator.plan.agent_pod import MARGIN
from ktrace_operator.plan.results import entry, read_result

IMAGE_LIMIT = timedelta(seconds=40)
"""The kubelet has tried a pull three times by then."""
_IMAGE_REASONS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)
_EVICTIONS = frozenset({"Evicted", "Preempting", "Terminated", "NodeShutdown", "Shutdown"})
_REFUSALS = frozenset({"NodeAffinity", "UnexpectedAdmissionError", "AdmissionRefused"})
_NEVER = 1970
"""Year in which, or before which, a container that never ran has "started"."""


@dataclass(frozen=True, slots=True)
class Case:
    """One agent's pod, and what else is known."""

    pod: AgentPod
    node: str
    start_limit: timedelta
    run_limit: timedelta
    stop: bool
    """Whether the snapshot is to end now."""
    now: datetime
    host: Node | None = None
    asked: bool = False
    """Whether `host` was looked up: then None means that the node is gone."""

    @property
    def gone(self) -> bool:
        return self.asked and self.host is None

    @property
    def lost(self) -> bool:
        """Whether the node is known to be gone or not ready."""
        return self.asked and (self.host is None or not self.host.ready)

    @property
    def must_run_by(self) -> datetime:
        return self.pod.created + self.start_limit

    @property
    def started(self) -> datetime | None:
        """When the container began; None: it never did, or nothing says when.

        The node's clock tells, and it may be wrong by hours or lie. The start was after the pod's
        creation, and now at the latest. One after the start limit counts as at that limit, so
        that no clock moves the end by more.
        """
        told = self._told_start
        if told is None:
            return None
        # Compared before anything is added: no sum can leave what a datetime holds.
        return min(max(told, self.pod.created), self.must_run_by, self.now)

    @property
    def _told_start(self) -> datetime | None:
        container = self.pod.container
        if isinstance(container, Running):
            return container.since
        if isinstance(container, Terminated) and container.started is not None:
            return container.started if container.started.year > _NEVER else None
        return None

    @property
    def must_end_by(self) -> datetime:
        return (self.started or self.must_run_by) + self.run_limit


@dataclass(frozen=True, slots=True)
class Going:
    """The end is not there yet."""

    outcome: Outcome
    wake: datetime
    """When to look again, though nothing happens."""
    started: datetime | None = None
    end: bool = False
    """The pod is to be deleted now: SIGTERM, so that the agent seals and delivers what it has."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The node's final entry, and the agent's result where there is a good one."""

    entry: NodeResult
    result: AgentResult | None = None


def in_doubt(case: Case) -> bool:
    """Whether the answer depends on the node itself: then it is to be looked up."""
    pod = case.pod
    if isinstance(pod.container, Terminated):
        return False
    if pod.phase_ended:
        return True
    if pod.deleting is not None:
        return case.now >= pod.deleting + MARGIN
    limit = case.must_end_by if isinstance(pod.container, Running) else case.must_run_by
    return case.now >= limit


def observe(case: Case) -> Going | Ended:
    """How it stands with the agent."""
    pod = case.pod
    if isinstance(pod.container, Terminated):
        return _terminated(case, pod.container)
    if case.gone:
        return _end(case, NodeReason.NODE_LOST, "the node is gone")
    if pod.phase_ended:
        return _phase_ended(case)
    if pod.deleting is not None:
        return _deleting(case, pod.deleting)
    if isinstance(pod.container, Running):
        return _running(case)
    return _starting(case)


def _terminated(case: Case, state: Terminated) -> Ended:
    """The container is no more: its message decides, whatever happened to the pod."""
    bad = ""
    if state.message:
        try:
            result = read_result(state.message, case.pod.snapshot_uid, case.node)
            return Ended(entry(result, case.pod.created, case.now), result)
        except BadResult as error:
            bad = text_of(str(error))
    if state.reason == "OOMKilled":
        return _end(case, NodeReason.OOM_KILLED, "the agent used more memory than it may")
    return (
        _by_kubelet(case) or _by_exit(case, state, bad) or _by_deletion(case) or _crash(case, state)
    )


def _by_exit(case: Case, state: Terminated, bad: str) -> Ended | None:
    """An end that breaks the contract; `bad` is what is wrong with the message."""
    if bad:
        return _end(case, NodeReason.PROTOCOL_ERROR, f"its result cannot be used: {bad}")
    if state.exit_code == 0:
        return _end(case, NodeReason.PROTOCOL_ERROR, "the agent ended without a result")
    if state.reason in ("StartError", "ContainerCannotRun"):
        return _end(case, NodeReason.IMAGE_ERROR, f"{state.reason}: the agent could not start")
    return None


def _crash(case: Case, state: Terminated) -> Ended:
    detail = f"exit status {state.exit_code}"
    if state.reason not in ("", "Error"):
        detail = f"{state.reason}, {detail}"
    text = f"the agent ended without a result: {detail}"
    return _end(case, NodeReason.AGENT_ERROR, text)


def _by_kubelet(case: Case) -> Ended | None:
    """An end that the kubelet (or the pod garbage collector) wrote down."""
    reason, message = case.pod.reason, case.pod.message or "no more is said"
    if reason in _EVICTIONS:
        return _end(case, NodeReason.EVICTED, f"{reason}: {message}")
    if reason == "DeadlineExceeded":
        return _end(case, NodeReason.DEADLINE_EXCEEDED, "the pod was active for too long")
    if reason == "NodeLost":
        return _end(case, NodeReason.NODE_LOST, message)
    if reason.startswith("OutOf") or reason in _REFUSALS:
        return _end(case, NodeReason.UNSCHEDULABLE, f"{reason}: {message}")
    return None


def _by_deletion(case: Case) -> Ended | None:
    """The end of a pod that was deleted: by us at a stop or a deadline, or by somebody else."""
    if case.pod.deleting is None:
        return None
    if case.stop:
        return _end(case, NodeReason.CANCELED, "stopped before there was a result")
    ran = isinstance(case.pod.container, Running | Terminated)
    if ran and case.now >= case.must_end_by:
        return _end(case, NodeReason.DEADLINE_EXCEEDED, "the agent did not end in time")
    return _end(case, NodeReason.POD_DELETED, "the agent's pod was deleted")


def _phase_ended(case: Case) -> Going | Ended:
    """The pod is said to have ended, the container is not."""
    if isinstance(case.pod.container, Running):
        last = max(case.must_end_by, case.pod.deleting or case.must_end_by) + MARGIN
        if case.now < last and not case.lost:
            return Going(Outcome.RUNNING, last, case.started)
    by_kubelet = _by_kubelet(case)
    if by_kubelet is not None:
        return by_kubelet
    if case.lost:
        return _end(case, NodeReason.NODE_LOST, _not_ready(case))
    text = case.pod.message or case.pod.reason or "nothing says why"
    return _by_deletion(case) or _end(
        case, NodeReason.AGENT_ERROR, f"the pod ended without a result: {text}"
    )


def _deleting(case: Case, gone_by: datetime) -> Going | Ended:
    """Deleted, and the kubelet has not said yet that the container is no more."""
    by_deletion = _by_deletion(case)
    assert by_deletion is not None
    if not case.pod.node_name:
        return by_deletion
    if case.now < gone_by + MARGIN:
        if isinstance(case.pod.container, Running):
            return Going(Outcome.RUNNING, gone_by + MARGIN, case.started)
        return Going(Outcome.PENDING, gone_by + MARGIN)
    if case.lost:
        return _end(case, NodeReason.NODE_LOST, _not_ready(case))
    return by_deletion


def _running(case: Case) -> Going | Ended:
    if case.now < case.must_end_by and not case.stop:
        return Going(Outcome.RUNNING, case.must_end_by, case.started)
    if case.now >= case.must_end_by and case.lost:
        return _end(case, NodeReason.NODE_LOST, _not_ready(case))
    return Going(Outcome.RUNNING, case.now + MARGIN, case.started, end=True)


def _starting(case: Case) -> Going | Ended:
    pod = case.pod
    if case.stop:
        # Deleted first: a pod that is being deleted is never bound or started any more.
        return Going(Outcome.PENDING, case.now + MARGIN, end=True)
    waiting = pod.container if isinstance(pod.container, Waiting) else Waiting()
    no_image = waiting.reason in _IMAGE_REASONS
    limit = pod.created + min(case.start_limit, IMAGE_LIMIT) if no_image else case.must_run_by
    if case.now < limit:
        return Going(Outcome.PENDING, limit)
    return _not_started(case, waiting, no_image=no_image)


def _not_started(case: Case, waiting: Waiting, *, no_image: bool) -> Ended:
    """The start limit is over."""
    why = f"{waiting.reason}: {waiting.message}".strip(": ")
    if no_image:
        return _end(case, NodeReason.IMAGE_ERROR, why)
    if case.lost:
        return _end(case, NodeReason.NODE_LOST, _not_ready(case))
    if case.pod.unschedulable is not None:
        return _end(case, NodeReason.UNSCHEDULABLE, case.pod.unschedulable)
    seconds = int(case.start_limit.total_seconds())
    detail = why or "the node does not say why"
    return _end(case, NodeReason.START_TIMEOUT, f"not started within {seconds} s: {detail}")


def _not_ready(case: Case) -> str:
    because = case.host.not_ready_because if case.host else "gone"
    return f"the node is not ready ({because}); its agent was given up"


def _end(case: Case, reason: NodeReason, message: str) -> Ended:
    """An end without a result of the agent's own."""
    skipped = reason is NodeReason.CANCELED and case.started is None
    return Ended(
        NodeResult(
            node=case.node,
            outcome=Outcome.SKIPPED if skipped else Outcome.FAILED,
            reason=reason,
            message=text_of(message, 256),
            started_at=case.started,
            ended_at=case.now,
        )
    )
