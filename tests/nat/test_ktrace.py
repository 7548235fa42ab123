# SPDX-License-Identifier: Apache-2.0
"""The same flows through the whole agent: rows compared with what both endpoints know."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.bpf.captures import Capture
from tests.nat.cluster import Address, Cluster, Flow, talk

pytestmark = pytest.mark.world("bpf")


@pytest.fixture(scope="module")
def flows_and_capture(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Flow], Capture]:
    folder: Path = tmp_path_factory.mktemp("nat")
    with Capture(folder, "--with-cri=false") as capture:
        flows = talk(cluster, lambda: None)
    return flows, capture


def shown(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def test_rows_of_both_ends_show_backend_reply_and_translation(
    flows_and_capture: tuple[list[Flow], Capture], cluster: Cluster
):
    flows, capture = flows_and_capture
    rows: dict[tuple[str, int, str], list[dict[str, Any]]] = defaultdict(list)
    for row in capture.rows:
        proto = "udp" if row["type"].startswith("udp") else "tcp"
        rows[proto, row["ns"]["net"], row["tuple"]].append(row)
    for flow in flows:
        reply = f"{shown(flow.answered.local)} -> {shown(flow.answered.remote)}"
        asked = f"{shown(flow.asked.local)} -> {shown(flow.asked.remote)}"
        for netns, own in ((flow.client_netns, asked), (flow.server_netns, reply)):
            found = rows[flow.asked.proto, netns, own]
            assert found, (flow, own)
            for row in found:
                assert row["conntrack"]["reply"] == reply, (flow, row)
                assert row["conntrack"]["nat"] == flow.truth, (flow, row)
                assert row["conntrack"]["state"] != "-"


def test_both_ends_of_each_flow_have_one_number_and_clients_their_backend(
    flows_and_capture: tuple[list[Flow], Capture],
):
    flows, capture = flows_and_capture
    rows: dict[tuple[str, int, str], set[tuple[str, str]]] = defaultdict(set)
    for row in capture.rows:
        proto = "udp" if row["type"].startswith("udp") else "tcp"
        end = proto, row["ns"]["net"], row["tuple"]
        rows[end].add((row["flow"], row["conntrack"]["backend"]))
    numbers = set()
    for flow in flows:
        backend = shown(flow.answered.local) if flow.truth in ("dnat", "both") else "-"
        asked = f"{shown(flow.asked.local)} -> {shown(flow.asked.remote)}"
        answered = f"{shown(flow.answered.local)} -> {shown(flow.answered.remote)}"
        ((number, seen),) = rows[flow.asked.proto, flow.client_netns, asked]
        assert seen == backend, flow
        assert rows[flow.asked.proto, flow.server_netns, answered] == {(number, "-")}, flow
        numbers.add(number)
    assert len(numbers) == len(flows)
    assert "-" not in numbers


def test_node_json_says_where_it_looked(
    flows_and_capture: tuple[list[Flow], Capture], cluster: Cluster
):
    _, capture = flows_and_capture
    facts = capture.node["conntrack"]
    places = {place["netns"]: place for place in facts["netns"]}
    router = places[cluster.router.inode]
    assert router["source"] == "ctnetlink"
    assert router["entries"] >= len(flows_and_capture[0])
    assert [one for one in facts["problems"] if one["netns"] == cluster.router.inode] == []
