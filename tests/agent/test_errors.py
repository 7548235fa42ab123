# SPDX-License-Identifier: Apache-2.0
from ktrace_agent import errors
from ktrace_agent.errors import KtraceError
from ktrace_api.names import NodeReason


def leaves(kind: type[KtraceError]) -> list[type[KtraceError]]:
    below = kind.__subclasses__()
    return [leaf for child in below for leaf in leaves(child)] or [kind]


def test_every_error_has_a_reason_and_a_status():
    found = [kind for kind in leaves(KtraceError) if kind.__module__ == errors.__name__]
    assert {kind.__name__: (kind.exit_status, kind.reason) for kind in found} | {
        "SinkFailed": (errors.SinkFailed.exit_status, errors.SinkFailed.reason)
    } == {
        "UsageError": (2, NodeReason.PROTOCOL_ERROR),
        "PermissionDenied": (3, NodeReason.PERMISSION_DENIED),
        "UnsupportedKernel": (4, NodeReason.UNSUPPORTED_KERNEL),
        "SinkFailed": (5, NodeReason.UPLOAD_FAILED),
        "BadBundle": (6, NodeReason.PROTOCOL_ERROR),
        "NodeBusy": (7, NodeReason.NODE_BUSY),
        "AgentError": (1, NodeReason.AGENT_ERROR),
    }
