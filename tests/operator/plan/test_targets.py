# SPDX-License-Identifier: Apache-2.0
"""Which pods the author of a snapshot may select."""

from typing import Any

import pytest

from ktrace_operator.plan.targets import Refusal, pod_namespace
from tests.operator.plan.snapshots import snapshot


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
