# SPDX-License-Identifier: Apache-2.0
"""Real flows through real translations: Watch compared with what both endpoints know."""

import re
from typing import NamedTuple

import pytest

from ktrace_agent.enrich.conntrack.connection import Endpoint, SocketAddress
from ktrace_agent.enrich.conntrack.ctnetlink import SEEN_REPLY
from ktrace_agent.enrich.conntrack.lookup import Conntrack
from ktrace_agent.enrich.conntrack.watch import Watch
from ktrace_agent.host.inet import MAPPED
from tests.nat.cluster import (
    BACKENDS,
    Answered,
    Asked,
    Cluster,
    Flow,
    packed,
    talk,
)

pytestmark = pytest.mark.world("bpf")


class Run(NamedTuple):
    flows: list[Flow]
    seen: Conntrack
    listed: str
    """What conntrack(8) lists in the router while all flows are open."""


@pytest.fixture(scope="module")
def run(cluster: Cluster) -> Run:
    """Flows of every kind, held open, and what a Watch saw of them."""
    watch = Watch(cluster.namespaces, period_s=0.2)
    watch.start()
    listed: list[str] = []
    flows = talk(cluster, lambda: listed.append(list_all(cluster)))
    return Run(flows, watch.stop(), listed[0])


def endpoint(netns: int, one: Asked | Answered) -> Endpoint:
    return Endpoint(netns, one.proto, packed(one.local), packed(one.remote))


def list_all(cluster: Cluster) -> str:
    families = ("ipv4", "ipv6")
    return "".join(cluster.router.run("conntrack", "-L", "-f", one) for one in families)


def test_every_kind_of_translation_happened(run: Run):
    assert {flow.truth for flow in run.flows} == {"dnat", "snat", "both", "none"}
    for kind in ("dnat", "both"):
        for version in (4, 6):
            used = {
                flow.answered.local[0]
                for flow in run.flows
                if flow.kind == kind and (":" in flow.asked.remote[0]) == (version == 6)
            }
            assert used == set(BACKENDS[version]), (kind, used)


def test_each_clients_socket_finds_its_vip_backend_and_reply(run: Run, cluster: Cluster):
    for flow in run.flows:
        local, remote = packed(flow.asked.local), packed(flow.asked.remote)
        entry = run.seen.lookup(Endpoint(flow.client_netns, flow.asked.proto, local, remote))
        assert entry is not None, flow
        assert entry.original == (local, remote)
        assert entry.reply.src == packed(flow.answered.local)
        assert entry.reply.dst == packed(flow.answered.remote)
        assert entry.nat == flow.truth
        assert entry.netns == cluster.router.inode
        assert entry.status & SEEN_REPLY


def test_each_servers_socket_finds_the_same_entry(run: Run):
    for flow in run.flows:
        ours = run.seen.lookup(endpoint(flow.server_netns, flow.answered))
        theirs = run.seen.lookup(endpoint(flow.client_netns, flow.asked))
        assert ours == theirs is not None, flow


def test_a_socket_that_is_bound_to_a_wildcard_finds_its_entry_too(run: Run):
    for flow in run.flows:
        wildcard = MAPPED + b"\0" * 4 if ":" not in flow.asked.local[0] else b"\0" * 16
        for netns, mine, peer in (
            (flow.client_netns, flow.asked.local, flow.asked.remote),
            (flow.server_netns, flow.answered.local, flow.answered.remote),
        ):
            exact, unbound = (
                run.seen.lookup(Endpoint(netns, flow.asked.proto, local, packed(peer)))
                for local in (packed(mine), SocketAddress(wildcard, mine[1]))
            )
            assert unbound == exact is not None, flow


def test_hairpin_is_translated_at_both_ends(run: Run):
    hairpin = [flow for flow in run.flows if flow.client_netns == flow.server_netns]
    assert hairpin, "no flow came back to where it began"
    for flow in hairpin:
        assert flow.answered.remote[0] in ("10.78.2.1", "fd78:2::1")


def test_connections_end_in_the_states_of_conntrack(run: Run):
    for flow in run.flows:
        entry = run.seen.lookup(endpoint(flow.client_netns, flow.asked))
        assert entry is not None
        if flow.asked.proto == "tcp":
            assert entry.state in ("TIME_WAIT", "CLOSE"), entry
        else:
            assert entry.state in ("REPLIED", "ASSURED"), entry


LISTED = re.compile(
    r"(tcp|udp) .*?src=(\S+) dst=(\S+) sport=(\d+) dport=(\d+) .*?"
    r"src=(\S+) dst=(\S+) sport=(\d+) dport=(\d+)"
)


def test_conntrack_8_lists_the_same(run: Run, cluster: Cluster):
    theirs = set()
    for line in run.listed.splitlines():
        if found := LISTED.search(line):
            proto, a, b, ap, bp, c, d, cp, dp = found.groups()
            theirs.add(
                (proto, *(packed((host, int(port))) for host, port in
                          ((a, ap), (b, bp), (c, cp), (d, dp))))
            )  # fmt: skip
    ours = {
        (entry.proto, *entry.original, *entry.reply)
        for entry in run.seen.entries()
        if entry.netns == cluster.router.inode
    }
    assert len(theirs) >= len(run.flows)
    assert theirs <= ours
