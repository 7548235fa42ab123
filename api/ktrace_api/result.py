# SPDX-License-Identifier: Apache-2.0
"""What an agent says at its end: its pod's termination message, at most 4096 bytes.

Whoever reads it does not trust it: `read()` is strict, bounded, and the reader compares
`snapshot_uid` and `node` with what it knows of the pod.
"""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from ktrace_api.finding import Cause, FindingId, Severity
from ktrace_api.model import Model, first_error
from ktrace_api.names import NodeReason

MAX_MESSAGE_BYTES = 4096
"""What the kubelet keeps of a container's termination message."""
MAX_FINDINGS = 12
MAX_COUNT = 2**53
"""The largest number in a message. These numbers go into the status, where they are int64 and where
what was added up of several nodes must fit too; and JSON is read with doubles in many places."""

Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class BadResult(ValueError):
    """A message that is no AgentResult; the text says why in one line."""


class ReportedFinding(Model):
    """A finding of the bundle in short."""

    id: FindingId
    severity: Severity
    title: Annotated[str, Field(max_length=160)]
    count: Annotated[int, Field(ge=1, le=MAX_COUNT)] = 1
    subject: Annotated[str, Field(max_length=200)] = "-"
    """Whom it is about in one line: namespace/pod or process, and the peer."""


class Delivered(Model):
    """A bundle that was read back where it went and is what was sent."""

    path: Annotated[str, Field(min_length=1, max_length=640, pattern=r"^[A-Za-z0-9_.=/-]+$")]
    """Of the .bundle.tgz below the snapshot's folder: node=NAME/ktrace.NAME.TS.bundle.tgz."""
    bytes: Count
    sha256: Sha256


class AgentResult(Model):
    """How one agent's work ended."""

    version: Literal[1] = 1
    snapshot_uid: Annotated[str, Field(max_length=64)]
    node: Annotated[str, Field(max_length=253)]
    reason: NodeReason
    """Completed: the bundle is where it should be. Anything else: it is not."""
    message: Annotated[str, Field(max_length=256)] = ""
    delivered: Delivered | None = None
    """Present if and only if the reason is Completed."""
    events: Count = 0
    lost: Count = 0
    complete: bool = False
    ended_by: Annotated[str, Field(max_length=16)] = ""
    """`duration` or `signal`; empty where nothing was recorded."""
    started: datetime | None = None
    """When recording began."""
    ended: datetime | None = None
    """When the agent came to its end."""
    verdict: Cause = Cause.UNKNOWN
    findings: Annotated[tuple[ReportedFinding, ...], Field(max_length=MAX_FINDINGS)] = ()
    """Worst first."""
    findings_left_out: Count = 0

    @model_validator(mode="after")
    def _success_has_a_bundle(self) -> Self:
        if (self.reason is NodeReason.COMPLETED) != (self.delivered is not None):
            raise ValueError("delivered goes with the reason Completed, and only with it")
        return self

    def to_message(self) -> bytes:
        """As the termination message: findings are left out from the end until it fits."""
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
    """The result in a termination message; raises BadResult with one line that says what is wrong.

    Bytes that are not UTF-8, other JSON, unknown fields, wrong types and too much of anything
    are all refused.
    """
    size = len(message.encode() if isinstance(message, str) else message)
    if size > MAX_MESSAGE_BYTES:
        raise BadResult(f"the message has {size} bytes, more than {MAX_MESSAGE_BYTES}")
    try:
        return AgentResult.model_validate_json(message, strict=True)
    except ValidationError as error:
        raise BadResult(first_error(error).line("message")[:200]) from error
