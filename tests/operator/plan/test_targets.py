# SPDX-License-Identifier: Apache-2.0
"""Which pods the author of a snapshot may select."""

from datetime import UTC, datetime
from typing import Any

import pytest

from ktrace_api.snapshot import TraceSnapshot
from ktrace_operator.plan.targets import Refusal, pod_namespace

NOW = datetime(2026, 1, 24, 21, 57, 54, tzinfo=UTC)


def snapshot(**spec: Any) -> TraceSnapshot:
    metadata = {
        "name": "snap",
        "namespace": "agents",
        "uid": "16d1be55-4d13-4e2e-b4bd-89861e542501",
        "creationTimestamp": NOW,
    }
    return TraceSnapshot.model_validate({"metadata": metadata, "spec": spec})


@pytest.mark.parametrize(
    ("namespace", "allowed", "found"),
    [
        (None, (), "agents"),
        ("agents", (), "agents"),
        ("shop", ("shop",), "shop"),
        ("shop", ("*",), "shop"),
        ("shop", (), None),
        ("kube-system", ("shop",), None),
    ],
)
def test_pods_of_other_namespaces_are_named_only_where_that_is_allowed(
    namespace: str | None, allowed: tuple[str, ...], found: str | None
):
    pods: dict[str, Any] = {"selector": {}} | ({"namespace": namespace} if namespace else {})
    answer = pod_namespace(snapshot(nodes={"pods": pods}), allowed)
    if found is None:
        assert isinstance(answer, Refusal)
        assert f"namespace {namespace} is not in" in answer.message
    else:
        assert answer == found
