# SPDX-License-Identifier: Apache-2.0
"""A snapshot as a plan reads it."""

from datetime import UTC, datetime
from typing import Any

from ktrace_api.snapshot import TraceSnapshot

NOW = datetime(2026, 1, 24, 21, 57, 54, tzinfo=UTC)


def snapshot(**spec: Any) -> TraceSnapshot:
    """The snapshot `agents/snap` with this spec, created just now."""
    metadata = {
        "name": "snap",
        "namespace": "agents",
        "uid": "16d1be55-4d13-4e2e-b4bd-89861e542501",
        "creationTimestamp": NOW,
    }
    return TraceSnapshot.model_validate({"metadata": metadata, "spec": spec})
