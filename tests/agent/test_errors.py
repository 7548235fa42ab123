# SPDX-License-Identifier: Apache-2.0
import pytest

from ktrace_agent import errors
from ktrace_agent.errors import KtraceError, SinkFailed, failure
from ktrace_api.names import NodeReason


def leaves(kind: type[KtraceError]) -> list[type[KtraceError]]:
    """The leaves of the tree in errors.py; a room may define a more precise one of its own."""
    below = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    return [leaf for child in below for leaf in leaves(child)] or [kind]


def test_every_error_has_a_reason_and_a_status():
    assert {kind.__name__: (kind.exit_status, kind.reason) for kind in leaves(KtraceError)} == {
        "UsageError": (2, NodeReason.PROTOCOL_ERROR),
        "PermissionDenied": (3, NodeReason.PERMISSION_DENIED),
        "UnsupportedKernel": (4, NodeReason.UNSUPPORTED_KERNEL),
        "SinkFailed": (5, NodeReason.UPLOAD_FAILED),
        "BadBundle": (6, NodeReason.PROTOCOL_ERROR),
        "NodeBusy": (7, NodeReason.NODE_BUSY),
        "AgentError": (1, NodeReason.AGENT_ERROR),
    }


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (SinkFailed("disk full"), (NodeReason.UPLOAD_FAILED, "disk full", 5)),
        (KeyboardInterrupt(), (NodeReason.CANCELED, "aborted", 130)),
        (KeyboardInterrupt("upload aborted"), (NodeReason.CANCELED, "upload aborted", 130)),
        (ValueError("a bug"), (NodeReason.AGENT_ERROR, "ValueError: a bug", 1)),
    ],
)
def test_any_error_has_a_reason_a_message_and_a_status(
    error: BaseException, expected: tuple[NodeReason, str, int]
):
    assert failure(error, "aborted") == expected


def test_without_memory_the_message_names_the_limits():
    found = failure(MemoryError(), "aborted")
    assert found.exit_status == 1
    assert "memory limit" in found.message
