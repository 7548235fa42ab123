# SPDX-License-Identifier: Apache-2.0
"""Which nodes a snapshot traces, and which pods its author may select."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrace_api.names import NodeReason, Outcome
from ktrace_api.snapshot import NodeTarget
from ktrace_operator.objects import Node
from ktrace_operator.plan.targets import Refusal, choose, pod_namespace
from ktrace_operator.settings import AgentSettings, Settings
from tests.operator.plan.snapshots import NOW, snapshot


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


systems = st.sampled_from(("linux", "windows", ""))
architectures = st.sampled_from(("amd64", "arm64", "s390x", ""))
nodes_by_name = st.dictionaries(
    st.sampled_from("abcdef"), st.tuples(systems, architectures), min_size=1
)
images = st.sets(st.sampled_from(("linux/amd64", "linux/arm64", "linux/s390x")))


@given(found=nodes_by_name, images=images)
def test_a_node_is_skipped_if_it_is_known_that_no_image_can_run_there(
    found: dict[str, tuple[str, str]], images: set[str]
):
    nodes = {name: Node(name, os=os, architecture=arch) for name, (os, arch) in found.items()}
    agent = AgentSettings(image="example/ktrace-agent:1", platforms=tuple(sorted(images)))
    settings = Settings(namespaces=("agents",), agent=agent)
    entries = choose(NodeTarget.model_validate({"selector": {}}), nodes, {}, settings, NOW)
    assert isinstance(entries, tuple)
    assert [one.node for one in entries] == sorted(nodes)
    for one in entries:
        os, architecture = found[one.node]
        possible = {
            f"{known_os}/{known_architecture}"
            for known_os in ([os] if os else ["linux", "windows"])
            for known_architecture in (
                [architecture] if architecture else ["amd64", "arm64", "s390x"]
            )
        }
        if not images or possible & images:
            assert one.outcome is Outcome.PENDING
            continue
        assert (one.outcome, one.reason) == (Outcome.SKIPPED, NodeReason.UNSUPPORTED_PLATFORM)
        assert one.message is not None
        assert nodes[one.node].platform in one.message
        assert all(image in one.message for image in images)
