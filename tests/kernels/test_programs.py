# SPDX-License-Identifier: Apache-2.0
"""Every candidate on every kernel: the raw records beside traffic of known truth.

The loader records without the agent, in seconds. Every guest runs with panic_on_warn=1: a load,
attach or detach that makes the kernel warn ends it.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest

from ktrace_agent.kernel.collector import CgroupNames
from ktrace_agent.kernel.recording import HookCounters
from ktrace_agent.tables.records import comm_text
from ktrace_api.names import RowType
from tests.kernels import results
from tests.kernels.golden import truth
from tests.kernels.guest import guest
from tests.kernels.loader import Chosen, GuestFeatures, files, record
from tests.kernels.packages import SERIES, Kernel
from tests.kernels.recording import Recording, address
from tests.kernels.series import on

ROWS = {"tcp_state": 266, "connect": 40, "udp_send": 110, "udp_recv": 110}
TCP, UDP = 6, 17
DNS_PORT, UDP6_PORT = 53, 7803

CHOSEN = {
    # sock_send_length and sock_recv_length are of v6.3 (6e6eda44b939).
    "5.10": "fexit",
    "6.1": "fexit",
    # Trampolines on arm64 are of v6.4.
    "6.1-arm64": "kprobe",
}
"""The candidate of socket_send and socket_recv where it is not the tracepoint."""

FORCED = {
    "fexit": {"socket_send": "fexit", "socket_recv": "fexit"},
    "kprobe": {"tcp_state": "kprobe", "socket_send": "kprobe", "socket_recv": "kprobe"},
}
QUICK = ("6.1", "6.12", "newest")


CHILDREN = 23
"""Connections that a listener accepts."""

Tools = Callable[[str], dict[str, Path]]


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    """Returns what a guest needs to record, by architecture; built once."""
    return cache(lambda arch: files(arch, tmp_path_factory.mktemp(arch)))


def recorded(
    kernel: Kernel, tools: Tools, run: str, forced: Mapping[str, str] | None = None, *append: str
) -> Chosen:
    """What the loader records in a new guest; its figures are written under the name `run`."""
    with guest(kernel, tools(kernel.arch), "panic_on_warn=1", *append) as one:
        chosen = record(one, GuestFeatures(one), "traffic", forced)
    results.write(kernel, run, chosen)
    return chosen


@on(quick=QUICK)
def test_the_golden_workload(kernel: Kernel, tools: Tools):
    chosen = recorded(kernel, tools, "chosen")
    assert_exact(chosen)
    found = {chosen.candidates[hook] for hook in ("socket_send", "socket_recv")}
    assert found == {CHOSEN.get(kernel.series, "tracepoint")}


@on(*(name for name in SERIES if name not in CHOSEN))
def test_the_same_rows_by_fexit(kernel: Kernel, tools: Tools):
    assert_exact(recorded(kernel, tools, "fexit", FORCED["fexit"]))


@on()
def test_the_same_rows_by_kprobes(kernel: Kernel, tools: Tools):
    """Before v6.15 the first row of a child has the port of its peer, but not yet its address."""
    chosen = recorded(kernel, tools, "kprobe", FORCED["kprobe"])
    assert_exact(chosen, CHILDREN if kernel.numbers < (6, 15) else 0)


@on("newest")
def test_the_golden_workload_with_full_preemption(kernel: Kernel, tools: Tools):
    assert_exact(recorded(kernel, tools, "preempt", None, "preempt=full"))


ROUNDS = 3000


@on("newest")
@pytest.mark.parametrize("preempt", ["lazy", "full"])
def test_every_datagram_is_recorded_or_counted(kernel: Kernel, tools: Tools, preempt: str):
    """Since v7.0 a task can be preempted in a program of a tracepoint (SRCU-fast)."""
    with guest(kernel, tools(kernel.arch), "panic_on_warn=1", f"preempt={preempt}") as one:
        recording = record(one, GuestFeatures(one), f"traffic rounds {ROUNDS}").recording
    rows = Counter(row[0] for row in recording.rows().elements())
    for kind in (RowType.UDP_SEND, RowType.UDP_RECV):
        counters = recording.counters()[kind]
        assert counters.seen == 2 * ROUNDS, counters
        assert counters.written == rows[kind] == counters.seen - counters.skipped, counters
    assert not recording.overflow().any()


CGROUP_V1 = """
umount /sys/fs/cgroup && mount -t tmpfs none /sys/fs/cgroup && mkdir /sys/fs/cgroup/pids &&
mount -t cgroup -o pids none /sys/fs/cgroup/pids && mkdir -p /sys/fs/cgroup/pids/kubepods/pod7 &&
ls -di /sys/fs/cgroup/pids/kubepods/pod7
"""
IN_POD = "sh -c 'echo $$ >/sys/fs/cgroup/pids/kubepods/pod7/cgroup.procs && exec traffic'"


@on("6.1", "newest")
def test_cgroups_of_the_v1_hierarchy(kernel: Kernel, tools: Tools):
    with guest(kernel, tools(kernel.arch), "panic_on_warn=1") as one:
        done = one.run(CGROUP_V1)
        assert done.status == 0, done
        chosen = record(one, GuestFeatures(one), IN_POD, config="config-v1")
    assert_exact(chosen)
    pod = int(done.text.split()[0])
    assert set(chosen.recording.events["cgroup_id"].tolist()) == {pod}
    keys, values = chosen.recording.map("cgroups").items()
    assert int.from_bytes(keys, "little") == pod
    names = CgroupNames.from_buffer_copy(values).name
    assert [bytes(name).rstrip(b"\0") for name in names] == [b"pod7", b"kubepods", b"", b""]


def assert_exact(chosen: Chosen, half_known: int = 0) -> None:
    """Counts, owners, peers, errnos and bytes are those of the workload, and nothing was lost.

    `half_known` rows have a peer's port without its address.
    """
    recording, wanted = chosen.recording, truth(chosen.truth)
    rows = recording.rows()
    assert not wanted - rows, "absent"
    assert not rows - wanted, "never happened"
    assert Counter(row[0] for row in rows.elements()) == ROWS
    assert {comm_text(comm.tobytes()) for comm in recording.events["comm"]} == {"traffic"}
    assert assert_peers(recording) == half_known
    assert_flows(recording, chosen.truth)
    for row, counters in recording.counters().items():
        written = ROWS.get(row, 0)
        assert counters == HookCounters(seen=written, written=written, bytes=counters.bytes), row
    assert not recording.overflow().any()
    results.assert_within_limit(recording.instructions)


def assert_peers(recording: Recording) -> int:
    """Every known address of a peer is right. Returns the rows with a port and no address."""
    half_known = 0
    for event in recording.events:
        ports, found = (event["local_port"], event["remote_port"]), address(event["remote_addr"])
        if not ports[1]:
            continue  # a listener, a new child, or a receive without a name
        wanted = "127.0.0.2" if ports[1] == DNS_PORT else "127.0.0.1"
        half_known += found == "0.0.0.0"
        assert found in ("::1" if UDP6_PORT in ports else wanted, "0.0.0.0"), event
    return half_known


def assert_flows(recording: Recording, text: str) -> None:
    """The bytes of every TCP connection, and the UDP bytes of every process."""
    lines = [line.split() for line in text.splitlines()]
    tcp = {
        tuple(map(int, ends)): (int(sent), int(received))
        for kind, *ends, sent, received in lines
        if kind == "tcp"
    }
    udp = Counter[tuple[str, int]]()
    for kind, tgid, *_, size in lines:
        if kind in (RowType.UDP_SEND, RowType.UDP_RECV):
            udp[kind, int(tgid)] += int(size)
    found_tcp, found_udp = {}, Counter[tuple[str, int]]()
    for key, flow in recording.flows():
        ends = tuple(int(key[name]) for name in ("tgid", "local_port", "remote_port"))
        sizes = int(flow["tx_bytes"]), int(flow["rx_bytes"])
        if key["proto"] == TCP and sum(sizes):
            found_tcp[ends] = sizes
        elif key["proto"] == UDP:
            found_udp[RowType.UDP_SEND, ends[0]] += sizes[0]
            found_udp[RowType.UDP_RECV, ends[0]] += sizes[1]
    assert found_tcp == tcp
    assert found_udp == udp
