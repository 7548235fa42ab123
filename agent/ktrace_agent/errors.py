# SPDX-License-Identifier: Apache-2.0
"""Every way in which a capture can fail to leave a bundle, or one can fail to be read.

    KtraceError
    ├── UsageError          2   an argument or the configuration is wrong
    ├── PermissionDenied    3   the kernel refuses what this user asks
    ├── UnsupportedKernel   4   the kernel lacks what a hook needs
    ├── SinkFailed          5   the bundle could not be written or delivered
    ├── BadBundle           6   a bundle that is to be read is damaged, or is none
    ├── NodeBusy            7   another agent records on this node
    └── AgentError          1   anything else: a bug or a broken environment

The number is the exit status of the process, 0 means that a bundle was sealed.
"""

from typing import ClassVar

from ktrace_api.names import NodeReason


class KtraceError(Exception):
    """Base of all: the message is one line, what is wrong and what to do next."""

    reason: ClassVar[NodeReason] = NodeReason.AGENT_ERROR
    exit_status: ClassVar[int] = 1


class UsageError(KtraceError):
    """An argument, variable or configuration value is wrong; the message names it."""

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
    """The bundle could not be written, or what arrived is not what was sent."""

    reason = NodeReason.UPLOAD_FAILED
    exit_status = 5


class BadBundle(KtraceError):
    """A bundle is truncated, was changed, or is something else."""

    reason = NodeReason.PROTOCOL_ERROR
    exit_status = 6


class NodeBusy(KtraceError):
    """Another agent of the operator works on this node."""

    reason = NodeReason.NODE_BUSY
    exit_status = 7


class AgentError(KtraceError):
    """Something that the agent did not expect."""
