# SPDX-License-Identifier: Apache-2.0
"""The status of a TraceSnapshot: written by the operator alone."""

from typing import Annotated, Literal

from pydantic import Field

from ktrace_api.finding import Cause, FindingId, Severity
from ktrace_api.kubeobject import ATOMIC_LIST, KubeModel, Message, Time
from ktrace_api.names import ConditionReason, ConditionType, NodeReason, Outcome, Phase

MAX_RESULTS = 1000
MAX_FINDINGS = 20


class NodeCounts(KubeModel):
    """Nodes by outcome; total is the sum of all others."""

    total: int = Field(default=0, ge=0)
    """Nodes that were chosen."""
    pending: int = Field(default=0, ge=0)
    """Nodes whose agent has not begun to record."""
    running: int = Field(default=0, ge=0)
    """Nodes whose agent runs."""
    succeeded: int = Field(default=0, ge=0)
    """Nodes whose bundle was delivered and verified."""
    failed: int = Field(default=0, ge=0)
    """Nodes without a verified bundle."""
    skipped: int = Field(default=0, ge=0)
    """Nodes on which no agent was started."""


class NodeResult(KubeModel):
    """What came of one node."""

    node: Annotated[str, Field(max_length=253)]
    """Name of the node."""
    outcome: Outcome = Outcome.PENDING
    """Pending, Running, Succeeded, Failed or Skipped."""
    reason: NodeReason | None = None
    """Why it ended so."""
    message: Message | None = None
    """One sentence for people."""
    path: Annotated[str, Field(max_length=640)] | None = None
    """The bundle, below `status.path`."""
    bytes: int | None = Field(default=None, ge=0)
    """Size of the bundle in bytes, as it was read back after the upload."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", max_length=64)] | None = None
    """SHA-256 of the bundle."""
    events: int | None = Field(default=None, ge=0)
    """Rows in the bundle."""
    lost: int | None = Field(default=None, ge=0)
    """Events that were asked for and that no row shows."""
    complete: bool | None = None
    """No row that was asked for is missing and no fact was lost."""
    started_at: Time | None = None
    """When the agent began to record."""
    ended_at: Time | None = None
    """When the agent, or the operator in its place, came to this end."""

    @property
    def final(self) -> bool:
        """Whether this outcome never changes again."""
        return self.outcome in (Outcome.SUCCEEDED, Outcome.FAILED, Outcome.SKIPPED)


class FindingRollup(KubeModel):
    """One finding over all nodes."""

    id: FindingId
    """Stable name of the finding; docs/findings explains each."""
    severity: Severity
    """The worst that a node gave it: critical, warning or info."""
    title: Annotated[str, Field(max_length=160)]
    """One sentence for people, from the node where it is worst."""
    count: int = Field(default=1, ge=1)
    """How many there are, over all nodes."""
    nodes: int = Field(default=1, ge=1)
    """Nodes that have it."""
    subject: Annotated[str, Field(max_length=200)] = "-"
    """Whom it is about, on the node where it is worst: pod or process, and peer."""


class Condition(KubeModel):
    """A condition as elsewhere in Kubernetes."""

    type: ConditionType
    """Accepted, Succeeded, Finished, Reconciling, Stalled or Ready."""
    status: Literal["True", "False", "Unknown"]
    """True, False or Unknown."""
    reason: ConditionReason
    """Why, in one word of a closed list."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """One sentence for people."""
    observed_generation: int = Field(ge=0)
    """Generation of the spec that this was said of."""
    last_transition_time: Time
    """When `status` changed last."""


class SnapshotStatus(KubeModel):
    """What came of it; written by the operator alone."""

    observed_generation: int = -1
    """Generation of the spec that the operator has seen; -1: it has not looked yet."""
    phase: Phase | None = None
    """The whole in one word, for people; programs read the conditions."""
    start_time: Time | None = None
    """When the list of nodes was frozen."""
    completion_time: Time | None = None
    """When the last node came to its end."""
    path: Annotated[str, Field(max_length=640)] | None = None
    """Where the bundles are: s3://bucket/prefix/namespace/name-uid8/ or pvc://claim/...; ends with
    a slash."""
    nodes: NodeCounts = NodeCounts()
    """Nodes by outcome."""
    results: Annotated[tuple[NodeResult, ...], Field(max_length=MAX_RESULTS)] = Field(
        default=(), json_schema_extra=ATOMIC_LIST
    )
    """One entry a node; the list of nodes never changes after the start."""
    findings: Annotated[tuple[FindingRollup, ...], Field(max_length=MAX_FINDINGS)] = Field(
        default=(), json_schema_extra=ATOMIC_LIST
    )
    """What was found, over all nodes, worst first."""
    verdicts: Annotated[
        dict[Cause, Annotated[int, Field(ge=1, description="Nodes that came to this verdict.")]],
        Field(max_length=8),
    ] = Field(default_factory=dict)
    """Verdict -> nodes that came to it."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=8)] = Field(
        default=(),
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    """Accepted, Succeeded, Finished, Reconciling, Stalled, Ready."""

    def condition(self, kind: ConditionType) -> Condition | None:
        return next((one for one in self.conditions if one.type is kind), None)

    @property
    def finished(self) -> bool:
        """Whether it came to its end; nothing is started for it ever again."""
        condition = self.condition(ConditionType.FINISHED)
        return condition is not None and condition.status == "True"
