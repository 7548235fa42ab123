# SPDX-License-Identifier: Apache-2.0
"""The state of one agent, derived from its pod: still going, or ended with a result or a reason.

A pure function: the same pod at the same time gives the same state in every process. Deadlines
count from times set by the API server. Only `now` is this process's clock, and the start time that
a node reports is limited to plausible values (Case.started).
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
"""Time in which the kubelet tries to pull an image three times."""
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
"""Latest year of the start time that runtimes report for a container that never ran."""


@dataclass(frozen=True, slots=True)
class Case:
    """Everything that decides the state of one agent."""

    pod: AgentPod
    node: str
    start_limit: timedelta
    run_limit: timedelta
    stop: bool
    """Whether the snapshot must end now."""
    now: datetime
    host: Node | None = None
    host_read: bool = False
    """Whether `host` was read. If so, None means that the node was deleted."""

    @property
    def gone(self) -> bool:
        return self.host_read and self.host is None

    @property
    def lost(self) -> bool:
        """Whether the node is known to be deleted or not ready."""
        return self.host_read and (self.host is None or not self.host.ready)

    @property
    def must_run_by(self) -> datetime:
        return self.pod.created + self.start_limit

    @property
    def started(self) -> datetime | None:
        """When the container started; None: it did not, or the time is unknown.

        The node reports it by its own clock, which may be wrong by hours or forged. The value is
        limited to the time from the pod's creation to now, and to the start limit, so that a wrong
        clock cannot move the deadline further.
        """
        reported = self._reported_start
        if reported is None:
            return None
        # Compared before anything is added, so that no sum can overflow a datetime.
        return min(max(reported, self.pod.created), self.must_run_by, self.now)

    @property
    def _reported_start(self) -> datetime | None:
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
    """The agent has not ended."""

    outcome: Outcome
    wake: datetime
    """Time of the next plan if no event comes before."""
    started: datetime | None = None
    end: bool = False
    """Whether to delete the pod now: on SIGTERM the agent seals and delivers its events so far."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The node's final entry, and the agent's result if it is valid."""

    entry: NodeResult
    result: AgentResult | None = None


def in_doubt(case: Case) -> bool:
    """Whether the state depends on the node object, which must then be read."""
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
    """The state of the agent."""
    pod = case.pod
    if isinstance(pod.container, Terminated):
        return _terminated(case, pod.container)
    if case.gone:
        return _end(case, NodeReason.NODE_LOST, "the node was deleted")
    if pod.phase_ended:
        return _phase_ended(case)
    if pod.deleting is not None:
        return _deleting(case, pod.deleting)
    if isinstance(pod.container, Running):
        return _running(case)
    return _starting(case)


def _terminated(case: Case, state: Terminated) -> Ended:
    """The container has terminated. A valid result decides, whatever happened to the pod."""
    bad = ""
    if state.message:
        try:
            result = read_result(state.message, case.pod.snapshot_uid, case.node)
            return Ended(entry(result, case.pod.created, case.now), result)
        except BadResult as error:
            bad = text_of(str(error))
    if state.reason == "OOMKilled":
        return _end(case, NodeReason.OOM_KILLED, "the agent exceeded its memory limit")
    return (
        _by_kubelet(case) or _by_exit(case, state, bad) or _by_deletion(case) or _crash(case, state)
    )


def _by_exit(case: Case, state: Terminated, bad: str) -> Ended | None:
    """An end that breaks the protocol. `bad` is the fault of the message, or empty."""
    if bad:
        return _end(case, NodeReason.PROTOCOL_ERROR, f"invalid agent result: {bad}")
    if state.exit_code == 0:
        return _end(case, NodeReason.PROTOCOL_ERROR, "the agent exited without a result")
    if state.reason in ("StartError", "ContainerCannotRun"):
        return _end(case, NodeReason.IMAGE_ERROR, f"{state.reason}: the agent could not start")
    return None


def _crash(case: Case, state: Terminated) -> Ended:
    detail = f"exit status {state.exit_code}"
    if state.reason not in ("", "Error"):
        detail = f"{state.reason}, {detail}"
    text = f"the agent exited without a result: {detail}"
    return _end(case, NodeReason.AGENT_ERROR, text)


def _by_kubelet(case: Case) -> Ended | None:
    """An end that the kubelet or the pod garbage collector recorded in the pod's status."""
    reason, message = case.pod.reason, case.pod.message or "no details reported"
    if reason in _EVICTIONS:
        return _end(case, NodeReason.EVICTED, f"{reason}: {message}")
    if reason == "DeadlineExceeded":
        text = "the pod exceeded its activeDeadlineSeconds"
        return _end(case, NodeReason.DEADLINE_EXCEEDED, text)
    if reason == "NodeLost":
        return _end(case, NodeReason.NODE_LOST, message)
    if reason.startswith("OutOf") or reason in _REFUSALS:
        return _end(case, NodeReason.UNSCHEDULABLE, f"{reason}: {message}")
    return None


def _by_deletion(case: Case) -> Ended | None:
    """The end of a deleted pod: by the operator at a stop or deadline, or by another client."""
    if case.pod.deleting is None:
        return None
    if case.stop:
        return _end(case, NodeReason.CANCELED, "stopped before the agent had a result")
    ran = isinstance(case.pod.container, Running | Terminated)
    if ran and case.now >= case.must_end_by:
        return _end(case, NodeReason.DEADLINE_EXCEEDED, "the agent did not finish in time")
    return _end(case, NodeReason.POD_DELETED, "the agent's pod was deleted")


def _phase_ended(case: Case) -> Going | Ended:
    """The pod's phase has ended, but its container is not reported as terminated."""
    if isinstance(case.pod.container, Running):
        last = max(case.must_end_by, case.pod.deleting or case.must_end_by) + MARGIN
        if case.now < last and not case.lost:
            return Going(Outcome.RUNNING, last, case.started)
    by_kubelet = _by_kubelet(case)
    if by_kubelet is not None:
        return by_kubelet
    if case.lost:
        return _end(case, NodeReason.NODE_LOST, _not_ready(case))
    text = case.pod.message or case.pod.reason or "no reason reported"
    return _by_deletion(case) or _end(
        case, NodeReason.AGENT_ERROR, f"the pod ended without a result: {text}"
    )


def _deleting(case: Case, gone_by: datetime) -> Going | Ended:
    """The pod is being deleted, and the kubelet has not reported the container's end yet."""
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
        # Deleted before the entry is final: a pod being deleted is never bound or started.
        return Going(Outcome.PENDING, case.now + MARGIN, end=True)
    waiting = pod.container if isinstance(pod.container, Waiting) else Waiting()
    no_image = waiting.reason in _IMAGE_REASONS
    limit = pod.created + min(case.start_limit, IMAGE_LIMIT) if no_image else case.must_run_by
    if case.now < limit:
        return Going(Outcome.PENDING, limit)
    return _not_started(case, waiting, no_image=no_image)


def _not_started(case: Case, waiting: Waiting, *, no_image: bool) -> Ended:
    """The end of a pod that reached the start limit."""
    why = f"{waiting.reason}: {waiting.message}".strip(": ")
    if no_image:
        return _end(case, NodeReason.IMAGE_ERROR, why)
    if case.lost:
        return _end(case, NodeReason.NODE_LOST, _not_ready(case))
    if case.pod.unschedulable is not None:
        return _end(case, NodeReason.UNSCHEDULABLE, case.pod.unschedulable)
    seconds = int(case.start_limit.total_seconds())
    detail = why or "no reason reported"
    return _end(case, NodeReason.START_TIMEOUT, f"not started within {seconds} s: {detail}")


def _not_ready(case: Case) -> str:
    if case.host is None:
        return "agent abandoned: the node was deleted"
    return f"agent abandoned: node NotReady ({case.host.not_ready_because})"


def _end(case: Case, reason: NodeReason, message: str) -> Ended:
    """An end without a valid result from the agent."""
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
