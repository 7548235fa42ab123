# SPDX-License-Identifier: Apache-2.0
"""The status of a TraceSnapshot. Only the operator writes it."""

from typing import Annotated, Literal

from pydantic import Field

from ktrace_api.finding import Cause, FindingId, Severity
from ktrace_api.kubeobject import ATOMIC_LIST, KubeModel, Message, Time
from ktrace_api.model import MAX_HOOKS, HookName
from ktrace_api.names import ConditionReason, ConditionType, Gap, NodeReason, Outcome, Phase

MAX_RESULTS = 1000
MAX_FINDINGS = 20


class NodeCounts(KubeModel):
    """Number of nodes by outcome. The total is the sum of all others."""

    total: int = Field(default=0, ge=0)
    """Number of selected nodes."""
    pending: int = Field(default=0, ge=0)
    """Number of nodes whose agent is not running yet."""
    running: int = Field(default=0, ge=0)
    """Number of nodes whose agent is running."""
    succeeded: int = Field(default=0, ge=0)
    """Number of nodes whose bundle was delivered and verified."""
    failed: int = Field(default=0, ge=0)
    """Number of nodes whose agent delivered no verified bundle."""
    skipped: int = Field(default=0, ge=0)
    """Number of nodes on which no agent was started."""


class NodeResult(KubeModel):
    """Result for one node."""

    node: Annotated[str, Field(max_length=253)]
    """Name of the node."""
    outcome: Outcome = Outcome.PENDING
    """Pending, Running, Succeeded, Failed or Skipped."""
    reason: NodeReason | None = None
    """Machine-readable reason of the outcome; set when the outcome is final."""
    message: Message | None = None
    """Human-readable details of the reason, one line."""
    path: Annotated[str, Field(max_length=640)] | None = None
    """Path of the bundle, relative to status.path."""
    bytes: int | None = Field(default=None, ge=0)
    """Size of the bundle in bytes, read back after the upload."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", max_length=64)] | None = None
    """SHA-256 of the bundle."""
    events: int | None = Field(default=None, ge=0)
    """Number of events (rows) in the bundle."""
    lost: int | None = Field(default=None, ge=0)
    """Number of requested events that are missing in the bundle; not set if it is unknown because
    the kernel cannot record some of them (hooksMissing)."""
    complete: bool | None = None
    """Whether the bundle contains every requested event and all its details."""
    gaps: Annotated[tuple[Gap, ...], Field(max_length=len(Gap))] | None = Field(
        default=None, json_schema_extra=ATOMIC_LIST
    )
    """Reasons why the bundle is not complete."""
    hooks_missing: Annotated[tuple[HookName, ...], Field(max_length=MAX_HOOKS)] | None = Field(
        default=None, json_schema_extra=ATOMIC_LIST
    )
    """Requested hooks that no eBPF program serves on this node's kernel. Counts that depend on them
    are unknown. `ktrace doctor` on the node lists the reasons."""
    started_at: Time | None = None
    """Time at which the agent started to record."""
    ended_at: Time | None = None
    """Time at which the agent ended, or at which the operator recorded its end."""

    @property
    def final(self) -> bool:
        """Whether this outcome never changes again."""
        return self.outcome in (Outcome.SUCCEEDED, Outcome.FAILED, Outcome.SKIPPED)


class FindingRollup(KubeModel):
    """One finding, summarized over all nodes."""

    id: FindingId
    """Stable identifier of the finding; docs/findings describes each."""
    severity: Severity
    """Highest severity on any node: critical, warning or info."""
    title: Annotated[str, Field(max_length=160)]
    """Human-readable summary, from the worst node."""
    count: int = Field(default=1, ge=1)
    """Number of occurrences on all nodes."""
    nodes: int = Field(default=1, ge=1)
    """Number of nodes with this finding."""
    subject: Annotated[str, Field(max_length=200)] = "-"
    """Affected pod or process and its peer, from the worst node."""


class Condition(KubeModel):
    """Condition in the usual form of Kubernetes."""

    type: ConditionType
    """Accepted, Succeeded, Finished, Reconciling, Stalled or Ready."""
    status: Literal["True", "False", "Unknown"]
    """True, False or Unknown."""
    reason: ConditionReason
    """Machine-readable reason from a closed list."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """Human-readable details of the reason, one line."""
    observed_generation: int = Field(ge=0)
    """metadata.generation that this condition reflects."""
    last_transition_time: Time
    """Last time the status of this condition changed."""


class SnapshotStatus(KubeModel):
    """Observed state, set by the operator."""

    observed_generation: int = -1
    """metadata.generation that the status reflects; -1: not processed by an operator yet."""
    phase: Phase | None = None
    """Overall phase, for humans; controllers should use conditions."""
    start_time: Time | None = None
    """Time at which the node list was fixed."""
    completion_time: Time | None = None
    """Time at which the last node ended."""
    path: Annotated[str, Field(max_length=640)] | None = None
    """Location of the bundles: s3://bucket/prefix/namespace/name-uid8/ or pvc://claim/..., with a
    trailing slash."""
    nodes: NodeCounts = NodeCounts()
    """Number of nodes by outcome."""
    results: Annotated[tuple[NodeResult, ...], Field(max_length=MAX_RESULTS)] = Field(
        default=(), json_schema_extra=ATOMIC_LIST
    )
    """One entry per node. The list of nodes is fixed at the start."""
    findings: Annotated[tuple[FindingRollup, ...], Field(max_length=MAX_FINDINGS)] = Field(
        default=(), json_schema_extra=ATOMIC_LIST
    )
    """Findings summarized over all nodes, worst first."""
    verdicts: Annotated[
        dict[Cause, Annotated[int, Field(ge=1, description="Number of nodes with this verdict.")]],
        Field(max_length=8),
    ] = Field(default_factory=dict)
    """Number of nodes by verdict."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=8)] = Field(
        default=(),
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    """Conditions: Accepted, Succeeded, Finished, Reconciling, Stalled, Ready."""

    def condition(self, kind: ConditionType) -> Condition | None:
        return next((one for one in self.conditions if one.type is kind), None)

    @property
    def finished(self) -> bool:
        """Whether the snapshot has ended. No agent is started for it again."""
        condition = self.condition(ConditionType.FINISHED)
        return condition is not None and condition.status == "True"
