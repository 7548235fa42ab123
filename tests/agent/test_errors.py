# SPDX-License-Identifier: Apache-2.0
from ktrace_agent import errors
from ktrace_agent.errors import KtraceError
from ktrace_api.names import NodeReason


def test_every_error_has_a_reason_and_a_status():
    found = [one for one in KtraceError.__subclasses__() if one.__module__ == errors.__name__]
    assert {kind.__name__: (kind.exit_status, kind.reason) for kind in found} == {
        "UsageError": (2, NodeReason.PROTOCOL_ERROR),
        "PermissionDenied": (3, NodeReason.PERMISSION_DENIED),
        "UnsupportedKernel": (4, NodeReason.UNSUPPORTED_KERNEL),
        "SinkFailed": (5, NodeReason.UPLOAD_FAILED),
        "BadBundle": (6, NodeReason.PROTOCOL_ERROR),
        "NodeBusy": (7, NodeReason.NODE_BUSY),
        "AgentError": (1, NodeReason.AGENT_ERROR),
    }
