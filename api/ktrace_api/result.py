# SPDX-License-Identifier: Apache-2.0
"""AgentResult: the termination message of an agent's pod, maximum 4096 bytes.

The message is not trusted: read() is strict and bounded, and the operator compares `snapshot_uid`
and `node` with those of the pod.
"""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from ktrace_api.finding import Cause, FindingId, Severity
from ktrace_api.model import MAX_HOOKS, HookName, Model, first_error
from ktrace_api.names import Gap, NodeReason

MAX_MESSAGE_BYTES = 4096
"""Maximum length of a termination message; the kubelet cuts longer ones."""
MAX_FINDINGS = 12
MAX_COUNT = 2**53
"""Maximum number in a message: the status stores sums over nodes as int64, and many JSON parsers
use doubles."""

Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class BadResult(ValueError):
    """A message that is not a valid AgentResult; the error is one line."""


class ReportedFinding(Model):
    """A finding of the bundle in brief."""

    id: FindingId
    severity: Severity
    title: Annotated[str, Field(max_length=160)]
    count: Annotated[int, Field(ge=1, le=MAX_COUNT)] = 1
    subject: Annotated[str, Field(max_length=200)] = "-"
    """Affected pod (namespace/name) or process, and its peer, in one line."""


class Delivered(Model):
    """A delivered bundle, verified by reading it back."""

    path: Annotated[str, Field(min_length=1, max_length=640, pattern=r"^[A-Za-z0-9_.=/-]+$")]
    """Path below the snapshot's folder: node=NAME/ktrace.NAME.TS.bundle.tgz."""
    bytes: Count
    sha256: Sha256


class AgentResult(Model):
    """Result of one agent."""

    version: Literal[1] = 1
    snapshot_uid: Annotated[str, Field(max_length=64)]
    node: Annotated[str, Field(max_length=253)]
    reason: NodeReason
    """Completed if the bundle was delivered; any other reason means that it was not."""
    message: Annotated[str, Field(max_length=256)] = ""
    delivered: Delivered | None = None
    """Present if and only if the reason is Completed."""
    events: Count = 0
    lost: Count | None = None
    """Requested events without a row. null: a missing hook leaves them uncounted."""
    complete: bool = False
    gaps: Annotated[tuple[Gap, ...], Field(max_length=len(Gap))] = ()
    """Why the bundle is not complete."""
    hooks_missing: Annotated[tuple[HookName, ...], Field(max_length=MAX_HOOKS)] = ()
    """Requested hooks that no program serves on this kernel."""
    ended_by: Annotated[str, Field(max_length=16)] = ""
    """`duration` or `signal`; empty if nothing was recorded."""
    started: datetime | None = None
    """Start of the recording."""
    ended: datetime | None = None
    """End of the agent."""
    verdict: Cause = Cause.UNKNOWN
    findings: Annotated[tuple[ReportedFinding, ...], Field(max_length=MAX_FINDINGS)] = ()
    """Findings, worst first."""
    findings_left_out: Count = 0

    @model_validator(mode="after")
    def _success_has_a_bundle(self) -> Self:
        if (self.reason is NodeReason.COMPLETED) != (self.delivered is not None):
            raise ValueError("delivered must be set if and only if the reason is Completed")
        return self

    def to_message(self) -> bytes:
        """Return the termination message; findings are removed from the end until it fits."""
        kept = self
        while len(message := kept.model_dump_json(exclude_none=True).encode()) > MAX_MESSAGE_BYTES:
            kept = kept.model_copy(
                update={
                    "findings": kept.findings[:-1],
                    "findings_left_out": kept.findings_left_out + 1,
                }
            )
        return message


def read(message: str | bytes) -> AgentResult:
    """Parse a termination message.

    Raises BadResult for bytes that are not UTF-8, invalid JSON, unknown fields, wrong types and
    values out of bounds.
    """
    size = len(message.encode() if isinstance(message, str) else message)
    if size > MAX_MESSAGE_BYTES:
        raise BadResult(f"the message has {size} bytes; the maximum is {MAX_MESSAGE_BYTES}")
    try:
        return AgentResult.model_validate_json(message, strict=True)
    except ValidationError as error:
        raise BadResult(first_error(error).line("message")[:200]) from error
