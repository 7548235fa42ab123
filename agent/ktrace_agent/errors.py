# SPDX-License-Identifier: Apache-2.0
"""All errors that end a capture without a bundle, or reading of a bundle without a result.

    KtraceError
    ├── UsageError          2   a flag, variable or configuration value is wrong
    ├── PermissionDenied    3   the kernel denies an operation to this user
    ├── UnsupportedKernel   4   the kernel lacks a feature that a hook needs
    ├── SinkFailed          5   the bundle could not be written or delivered
    ├── BadBundle           6   a bundle is corrupt, or the file is not a bundle
    ├── NodeBusy            7   another agent is already recording on this node
    └── AgentError          1   anything else: a bug or a broken environment

The number is the exit status of the process. Status 0 means that a bundle was sealed.
"""

from typing import ClassVar, NamedTuple

from ktrace_api.names import NodeReason

INTERRUPTED = 130
"""Exit status after a second Ctrl-C, as a shell reports a death by SIGINT."""


class KtraceError(Exception):
    """Base class. The message is one line: what happened, and what to do."""

    reason: ClassVar[NodeReason] = NodeReason.AGENT_ERROR
    exit_status: ClassVar[int] = 1


class UsageError(KtraceError):
    """A flag, variable or configuration value is wrong; the message names it."""

    reason = NodeReason.PROTOCOL_ERROR
    exit_status = 2


class PermissionDenied(KtraceError):
    """Root or the capabilities for BPF are missing."""

    reason = NodeReason.PERMISSION_DENIED
    exit_status = 3


class UnsupportedKernel(KtraceError):
    """BTF or every candidate of a requested hook is missing."""

    reason = NodeReason.UNSUPPORTED_KERNEL
    exit_status = 4


class SinkFailed(KtraceError):
    """The bundle could not be written, or the delivered copy differs from it."""

    reason = NodeReason.UPLOAD_FAILED
    exit_status = 5


class BadBundle(KtraceError):
    """A bundle is truncated or was changed, or the file is not a bundle."""

    reason = NodeReason.PROTOCOL_ERROR
    exit_status = 6


class NodeBusy(KtraceError):
    """Another agent of the operator is already recording on this node."""

    reason = NodeReason.NODE_BUSY
    exit_status = 7


class AgentError(KtraceError):
    """An error that no other class describes."""


class Failure(NamedTuple):
    """How an error is reported."""

    reason: NodeReason
    message: str
    exit_status: int


def failure(error: BaseException, interrupted: str) -> Failure:
    """Reason, message and exit status of any error.

    `interrupted` is the message for a KeyboardInterrupt that carries none.
    """
    match error:
        case KtraceError():
            return Failure(error.reason, str(error), error.exit_status)
        case KeyboardInterrupt():
            return Failure(NodeReason.CANCELED, str(error) or interrupted, INTERRUPTED)
        case MemoryError():
            message = "out of memory: raise the memory limit or lower the maximum number of events"
        case _:
            message = f"{type(error).__name__}: {error}"
    return Failure(AgentError.reason, message, AgentError.exit_status)
