# SPDX-License-Identifier: Apache-2.0
"""Only events of processes in the named pods are kept. The kernel decides, exactly."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktrace_agent.kernel.collector import Collector
from ktrace_agent.kernel.spool import Spool
from ktrace_api.capture import CaptureConfig
from ktrace_api.names import RowType
from tests.bpf.conftest import Begin
from tests.bpf.namespaces import Namespace, Pair
from tests.bpf.podgroups import FORMS, Groups, inside, v1, v2
from tests.bpf.tcp_jobs import LISTENER_STATES, SERVER_STATES, V4, serve, visit
from tests.bpf.workers import Crew, Job, Line

pytestmark = pytest.mark.world("bpf")

WANTED = "6f2c7a0e-1111-4222-8333-444455556666"
OTHER = "6f2c7a0e-1111-4222-8333-444455556667"
STATIC = "0123456789abcdef0123456789abcdef"
INSIDE, OUTSIDE, VISITS = 13, 17, 7


def hierarchy() -> Path:
    """The one that ktrace names processes by on this host."""
    return v1() or v2() or pytest.fail("no cgroup hierarchy is mounted")


@pytest.fixture
def groups() -> Iterator[Groups]:
    one = Groups(hierarchy())
    yield one
    one.remove()


def send(datagrams: int) -> Job:
    """Datagrams to a closed port on loopback, and one refused connection."""

    def job(line: Line) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(datagrams):
                sock.sendto(b"x" * 11, ("127.0.0.1", 9))
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            assert sock.connect_ex(("127.0.0.1", 9))

    return job


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("uid", [WANTED, STATIC])
def test_what_a_pod_does_is_kept_and_nothing_else(
    capture: Begin, groups: Groups, alone: Namespace, form: str, uid: str
):
    ours, others = groups.make(form, uid), groups.make(form, OTHER, "4e" * 32)
    with capture(f"--pods={uid}") as one:
        worker = alone.start(inside(ours, send(INSIDE)))
        worker.result()
        alone.start(inside(others, send(OUTSIDE))).result()
        alone.start(send(OUTSIDE)).result()
    assert {row["tgid"] for row in one.rows} == {worker.tgid}
    assert len(one.of("udp_send")) == INSIDE
    assert len(one.of("connect")) == 1
    assert one.kept("udp_send") == INSIDE
    assert one.summary["accounting"]["udp_send"]["filtered"] >= 2 * OUTSIDE
    assert sum(talker["tx_calls"] for talker in one.summary["talkers"]["by_bytes"]) == INSIDE
    assert set(one.node["cgroups"]) == {str(row["cgroup_id"]) for row in one.rows}
    known = "-" if form == "systemd-inside" else uid  # of the path four levels are kept
    assert {row["k8s"]["pod_uid"] for row in one.rows} == {known}
    assert one.node["config"]["pods"] == [uid]


def test_several_pods_and_containers_that_start_meanwhile(
    capture: Begin, groups: Groups, alone: Namespace
):
    """A container that restarts has a new cgroup below the pod's, without any announcement."""
    first = groups.make("systemd", WANTED)
    with capture(f"--pods={WANTED},{OTHER}") as one:
        before = alone.start(inside(first, send(INSIDE)))
        before.result()
        again = groups.make("systemd", WANTED, "5d" * 32)
        after = alone.start(inside(again, send(INSIDE + 6)))
        after.result()
        other = alone.start(inside(groups.make("cgroupfs", OTHER), send(3)))
        other.result()
        alone.start(send(OUTSIDE)).result()
    counts = {
        worker.tgid: len(one.of("udp_send", tgid=worker.tgid)) for worker in (before, after, other)
    }
    assert list(counts.values()) == [INSIDE, INSIDE + 6, 3]
    assert len(one.of("udp_send")) == sum(counts.values())


def test_what_softirq_does_to_a_pods_socket_is_the_pods(capture: Begin, groups: Groups, pair: Pair):
    """A server in a pod, its clients elsewhere: the server's half is kept, whole."""
    ours = groups.make("cgroupfs", WANTED)
    with capture(f"--pods={WANTED}") as one:
        server = pair.server.start(inside(ours, serve(V4, 7411, VISITS, 10, 20)))
        server.hear()
        pair.client.call(visit(V4, 7411, VISITS, 10, 20))
        server.result()
        pair.wait_quiet()
    assert {row["tgid"] for row in one.rows} == {server.tgid}
    assert one.of("connect") == []
    states = [(row["old_state"], row["new_state"]) for row in one.of("tcp_state")]
    for change in SERVER_STATES:
        assert states.count(change) == VISITS, change
    for change in LISTENER_STATES:
        assert states.count(change) == 1, change
    talkers = one.summary["talkers"]["by_bytes"]
    assert [(t["opened"], t["rx_bytes"], t["tx_bytes"]) for t in talkers] == [
        (VISITS, 10 * VISITS, 20 * VISITS)
    ]


def test_a_pod_in_the_hosts_network_is_told_from_the_host(
    capture: Begin, groups: Groups, crew: Crew
):
    ours = groups.make("guaranteed", WANTED)
    with capture(f"--pods={WANTED}") as one:
        worker = crew.start(inside(ours, send(INSIDE)))
        worker.result()
        crew.start(send(OUTSIDE)).result()
    assert {row["tgid"] for row in one.rows} == {worker.tgid}
    assert len(one.of("udp_send")) == INSIDE


def test_sockets_that_were_open_before_are_known(capture: Begin, groups: Groups, pair: Pair):
    """Also their inventory, and no inventory of others."""
    ours = groups.make("systemd", WANTED)
    server = pair.server.start(inside(ours, serve(V4, 7412, VISITS, 10, 20)))
    server.hear()
    with capture(f"--pods={WANTED}") as one:
        pair.client.call(visit(V4, 7412, VISITS, 10, 20))
        server.result()
        pair.wait_quiet()
    assert {row["tgid"] for row in one.rows} == {server.tgid}
    assert len(one.of("tcp_state")) == len(SERVER_STATES) * VISITS + 1
    stock = one.summary["stock_start"]
    assert stock["states"] == {"LISTEN": 1}
    assert [owner["tgid"] for owner in stock["owners"]] == [server.tgid]


@pytest.mark.parametrize("form", ["cgroupfs", "systemd"])
def test_on_cgroup_v2(crew: Crew, alone: Namespace, tmp_path: Path, form: str):
    """By the counters of the kernel side, whatever hierarchy this host would choose."""
    mounted = v2()
    if mounted is None:
        pytest.skip("no cgroup2 is mounted")
    groups = Groups(mounted)
    collector = Collector(CaptureConfig(node="n", pods=(WANTED,)), cgroup_v1=False)
    spool = Spool(collector.ring_fd, tmp_path)
    try:
        ours, others = groups.make(form, WANTED), groups.make(form, OTHER)
        spool.start()
        collector.attach()
        alone.start(inside(ours, send(INSIDE))).result()
        alone.start(inside(others, send(OUTSIDE))).result()
        collector.detach()
        spool.finish()
        counts = collector.counters()[RowType.UDP_SEND]
        assert (counts.written, counts.lost_ring, counts.lost_map) == (INSIDE, 0, 0)
        assert counts.filtered >= OUTSIDE
        assert len(collector.cgroups()) == 1
    finally:
        spool.close()
        collector.close()
        groups.remove()
