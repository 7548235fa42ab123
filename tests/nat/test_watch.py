# SPDX-License-Identifier: Apache-2.0
"""Watch on real namespaces: the entries that it keeps, its limits, and what it reports."""

import os
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ktrace_agent.enrich.conntrack import ctnetlink
from ktrace_agent.enrich.conntrack.connection import Endpoint, Entry, SocketAddress
from ktrace_agent.enrich.conntrack.netlink import Lack, NetlinkFailed
from ktrace_agent.enrich.conntrack.watch import Watch
from ktrace_agent.host.inet import MAPPED, TCP, UDP
from ktrace_agent.host.netns import run_in_netns
from tests.bpf.namespaces import Namespace
from tests.bpf.workers import Crew, Line, wait_until
from tests.nat.fill import many, message, put

pytestmark = pytest.mark.world("bpf")

TRACKING = """
table inet tracking {
  chain out { type filter hook output priority 0; ct state new counter; }
}
"""
CLIENT, VIP, BACKEND = (bytes(one) for one in ((10, 1, 0, 5), (10, 96, 0, 1), (10, 1, 0, 9)))


@pytest.fixture
def place(crew: Crew) -> Namespace:
    """A namespace that tracks connections."""
    one = Namespace(crew)
    one.nft(TRACKING)
    return one


def watch(*places: Namespace, **bounds: Any) -> Watch:
    how = {"max_seconds": 30.0, **bounds}  # the machine may be busy with other tests
    return Watch(lambda: {one.inode: one.pid for one in places}, **how)


def fill(place: Namespace, *messages: bytes) -> None:
    run_in_netns(place.pid, place.inode, lambda: put(iter(messages)))


def mapped(address: bytes, port: int) -> SocketAddress:
    return SocketAddress(MAPPED + address, port)


def test_entries_that_end_between_dumps_are_kept_with_their_time(place: Namespace):
    short = message(UDP, (CLIENT, 4000), (VIP, 53), (BACKEND, 53), timeout_s=1)
    long = message(TCP, (CLIENT, 4000), (VIP, 80), (BACKEND, 80))
    one = watch(place, period_s=0.1)
    one.start()
    begun = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    fill(place, short, long)
    table = Path(f"/proc/{place.pid}/net/nf_conntrack")
    wait_until(lambda: " udp " not in table.read_text(), "the end of the UDP entry")
    late = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    time.sleep(0.3)
    seen = one.stop()
    udp = seen.lookup(Endpoint(place.inode, "udp", mapped(CLIENT, 4000), mapped(VIP, 53)))
    tcp = seen.lookup(Endpoint(place.inode, "tcp", mapped(CLIENT, 4000), mapped(VIP, 80)))
    assert udp is not None
    assert tcp is not None
    assert udp.created_after_ns is not None
    assert udp.ended_before_ns is not None
    assert udp.created_after_ns <= late
    assert begun < udp.ended_before_ns
    assert tcp.ended_before_ns is None
    assert (udp.nat, udp.state, tcp.state) == ("dnat", "UNREPLIED", "ESTABLISHED")
    after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert seen.lookup(Endpoint(place.inode, "udp", *udp.original, after, after)) is None
    assert seen.problems == ()


def test_states_follow_real_connections(place: Namespace):
    one = watch(place, period_s=0.05)
    one.start()

    def talk(line: Line) -> tuple[tuple[str, int], tuple[str, int], tuple[str, int]]:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent,
        ):
            client = socket.create_connection(server.getsockname())
            accepted = server.accept()[0]
            silent.connect(("127.0.0.1", 9))
            silent.send(b"?")
            name = client.getsockname()
            line.say("open")
            line.hear()
            client.close()
            accepted.close()
            return name, server.getsockname(), silent.getsockname()

    worker = place.start(talk)
    assert worker.hear() == "open"
    time.sleep(0.2)
    worker.say("close")
    client, server, silent = (mapped(bytes((127, 0, 0, 1)), port) for _, port in worker.result())
    seen = one.stop()
    forth = seen.lookup(Endpoint(place.inode, "tcp", client, server))
    back = seen.lookup(Endpoint(place.inode, "tcp", server, client))
    assert forth is not None
    assert forth == back
    assert (forth.state, forth.nat) == ("TIME_WAIT", "none")
    lost = seen.lookup(Endpoint(place.inode, "udp", silent, mapped(bytes((127, 0, 0, 1)), 9)))
    assert lost is not None
    assert (lost.state, lost.replied) == ("UNREPLIED", False)


def test_the_files_tell_the_same_as_netlink(place: Namespace, monkeypatch: pytest.MonkeyPatch):
    zoned = message(UDP, (CLIENT, 4000), (VIP, 53), (BACKEND, 53), zone=9)
    fill(place, zoned, *many(600))
    by_netlink = watch(place, period_s=60)
    by_netlink.start()
    netlink = by_netlink.stop()

    def refuse(deadline: float) -> dict[str, int]:
        raise NetlinkFailed(Lack.DENIED, "not allowed")

    monkeypatch.setattr(ctnetlink, "figures", refuse)
    by_text = watch(place, period_s=60)
    by_text.start()
    text = by_text.stop()
    assert netlink.sources == {place.inode: "ctnetlink"}
    assert [problem.lack for problem in text.problems] == [Lack.DENIED]
    assert len(netlink) == 601
    assert len(text) == 601
    states = [
        {(one.original, one.zone): (one.state, one.status & 0x6, one.nat) for one in seen.entries()}
        for seen in (netlink, text)
    ]
    assert states[0] == states[1]


@pytest.mark.parametrize("agree", [True, False])
def test_zones_of_a_real_table(place: Namespace, *, agree: bool):
    backends = (BACKEND, BACKEND if agree else bytes((10, 1, 0, 8)))
    for zone, backend in enumerate(backends, 1):
        fill(place, message(TCP, (CLIENT, 4000), (VIP, 80), (backend, 8080), zone=zone))
    one = watch(place)
    one.start()
    seen = one.stop()
    assert sorted(entry.zone for entry in seen.entries()) == [1, 2]
    found = seen.lookup(Endpoint(place.inode, "tcp", mapped(CLIENT, 4000), mapped(VIP, 80)))
    assert (found is not None) == agree


def test_a_table_of_thousands_is_read_whole_and_found(place: Namespace):
    fill(place, *many(20_000))
    one = watch(place)
    one.start()
    seen = one.stop()
    assert (len(seen), seen.left_out, seen.problems) == (20_000, 0, ())
    nats = Counter(entry.nat for entry in seen.entries())
    assert nats == {"dnat": 6_667, "none": 13_333}
    every: list[Entry] = list(seen.entries())[::97]
    for entry in every:
        for near, far in (entry.original, entry.reply):
            assert seen.lookup(Endpoint(place.inode, entry.proto, near, far)) == entry
    figures = seen.figures[place.inode]
    assert figures.after["count"] == figures.peak == 20_000
    assert figures.after["max"] == int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
    assert figures.after["insert_failed"] == 0


def test_more_entries_than_are_kept_are_counted(place: Namespace):
    fill(place, *many(3_000))
    one = watch(place, max_entries=1_000)
    one.start()
    seen = one.stop(first=[place.inode])
    assert (len(seen), seen.left_out) == (1_000, 2_500)
    assert [(one.netns, one.lack) for one in seen.problems] == [(place.inode, Lack.TOO_MANY)]
    assert all(one.created_after_ns is None for one in seen.entries())


def test_a_huge_table_leaves_room_for_others(place: Namespace, crew: Crew):
    other = Namespace(crew)
    fill(place, *many(3_000))
    fill(other, *many(400))
    one = watch(place, other, max_entries=1_000)
    one.start()
    seen = one.stop()
    kept = {netns: len(table.keys) for netns, table in seen.tables.items()}
    assert kept == {place.inode: 500, other.inode: 400}


def test_a_poll_ends_in_time(place: Namespace):
    fill(place, *many(20_000))
    one = watch(place, max_seconds=0.02)
    begun = time.monotonic()
    one.start()
    seen = one.stop()
    assert time.monotonic() - begun < 1
    assert len(seen) < 20_000
    assert {problem.lack for problem in seen.problems} == {Lack.TOO_LATE}


def test_a_namespace_that_goes_away_costs_nothing_else(place: Namespace, crew: Crew):
    fill(place, *many(100))
    gone = crew.start(lambda line: os.read(os.pipe()[0], 1), netns=place.pid)
    one = Watch(lambda: {place.inode: place.pid, 4242: gone.tgid}, period_s=0.05)
    one.start()
    gone.kill()
    time.sleep(0.2)
    seen = one.stop()
    assert len(seen) == 100
    assert {(one.netns, one.lack) for one in seen.problems} == {(4242, Lack.VANISHED)}


@pytest.mark.parametrize("inside", [True, False])
def test_without_rights_it_says_so(place: Namespace, crew: Crew, *, inside: bool):
    def look(line: Line) -> list[tuple[int, str]]:
        one = watch(place)
        one.start()
        return [(problem.netns, problem.lack) for problem in one.stop().problems]

    worker = crew.start(look, uid=65534, netns=place.pid if inside else None)
    assert worker.result() == [(place.inode, Lack.DENIED)]


def test_without_connection_tracking_nothing_is_asked(place: Namespace, tmp_path: Path):
    one = Watch(lambda: {place.inode: place.pid}, proc=tmp_path)
    one.start()
    seen = one.stop()
    assert (len(seen), dict(seen.sources)) == (0, {})
    assert [(one.netns, one.lack) for one in seen.problems] == [(0, Lack.ABSENT)]


def test_a_module_is_not_loaded_for_it(tmp_path: Path):
    sysctl = tmp_path / "sys/net/netfilter/nf_conntrack_max"
    sysctl.parent.mkdir(parents=True)
    sysctl.write_text("1\n")
    modules, table = tmp_path / "modules", tmp_path / "7/net/nf_conntrack"
    table.parent.mkdir(parents=True)
    table.write_text(
        "ipv4     2 udp      17 29 src=10.1.0.5 dst=10.96.0.1 sport=4000 dport=53 [UNREPLIED]"
        " src=10.1.0.9 dst=10.1.0.5 sport=53 dport=4000 mark=0 use=1\n"
    )
    modules.write_text("nf_conntrack 188416 3 xt_conntrack, Live 0x0000000000000000\n")
    one = Watch(lambda: {77: 7}, proc=tmp_path)
    one.start()
    seen = one.stop()
    assert seen.sources == {77: "nf_conntrack"}
    assert [entry.nat for entry in seen.entries()] == ["dnat"]


def test_nothing_is_left_behind(place: Namespace):
    def sockets() -> int:
        found = 0
        for fd in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):
                found += os.readlink(f"/proc/self/fd/{fd}").startswith(("socket:", "net:"))
        return found

    before, threads = sockets(), threading.active_count()
    one = watch(place, period_s=0.01)
    one.start()
    time.sleep(0.2)
    one.stop()
    assert (sockets(), threading.active_count()) == (before, threads)


def test_counters_tell_what_happened_meanwhile(place: Namespace):
    one = watch(place, period_s=60)
    one.start()
    fill(place, *many(500))
    seen = one.stop()
    figures = seen.figures[place.inode]
    assert (figures.before["count"], figures.after["count"]) == (0, 500)
    assert figures.after["insert"] - figures.before["insert"] == 500
