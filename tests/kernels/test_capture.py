# SPDX-License-Identifier: Apache-2.0
"""The whole command line on other kernels, beside traffic of known truth.

EXPECTED is what each kernel serves today, as measured. Every guest runs with panic_on_warn=1: a
load, attach or detach that makes the kernel warn ends it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.kernels.golden import Bundle, truth
from tests.kernels.guest import Guest, guest
from tests.kernels.packages import Kernel
from tests.kernels.series import on

ROWS = {"tcp_state": 266, "connect": 40, "udp_send": 110, "udp_recv": 110}
TCP_ROWS = {"tcp_state": 266, "connect": 40}
REFUSED, SILENT = "TCP_CONNECT_REFUSED", "DNS_NO_REPLY"
UNSUPPORTED = 4


@dataclass(frozen=True)
class Expected:
    """What a capture of the golden workload holds on one series of kernels."""

    rows: dict[str, int]
    """Rows by type, where none is lost."""
    findings: frozenset[str]
    dns: tuple[int | None, int | None, int | None]
    """Queries, answers, and queries without an answer."""
    hooks_missing: list[str] = field(default_factory=list)
    may_lose: int = 0
    """Maximum of rows that may be lost, each of them counted."""


EVERYTHING = Expected(ROWS, frozenset({REFUSED, SILENT}), (18, 7, 11))

EXPECTED = {
    "5.10": EVERYTHING,
    # sock_send_length and sock_recv_length are of v6.3: functions serve.
    "6.1": EVERYTHING,
    "6.12": EVERYTHING,
    "6.12-rt": EVERYTHING,
    "6.19": EVERYTHING,
    "newest": EVERYTHING,
}

RECORD = """
ktrace --duration=10m --node=guest --out-dir=/out/bundle --threshold=dns_grace_max_s=1 \
    >/tmp/log 2>&1 &
pid=$!
until grep -q '^ktrace: recording' /tmp/log; do
    kill -0 $pid || { cat /tmp/log; wait $pid; exit; }
    sleep 0.1
done
"""
TRAFFIC = """
traffic >/tmp/truth || exit 99
sleep 1.5 # longer than dns_grace_max_s: a younger query may still be answered
kill -INT $pid
wait $pid
status=$?
cat /tmp/log
exit $status
"""
KILLED = """
traffic >/tmp/truth || exit 99
kill -KILL $pid
wait $pid
until [ -z "$(ps -o comm | grep ktrace)" ]; do sleep 0.1; done
"""
HARDENED = ("lockdown=integrity", "slub_debug=FZP", "init_on_alloc=1", "init_on_free=1")
HARDEN = """
cd /proc/sys && echo 2 >net/core/bpf_jit_harden && echo 2 >kernel/kptr_restrict &&
echo 1 >kernel/dmesg_restrict && echo 1 >kernel/unprivileged_bpf_disabled &&
echo 3 >kernel/perf_event_paranoid
"""
STATE = "cat /proc/mounts; ls /tmp /run /out | grep -v -e '^log$' -e '^truth$'"


@contextmanager
def booted(kernel: Kernel, ktrace: Path, traffic: Path, *append: str) -> Iterator[Guest]:
    files = {"bin/ktrace": ktrace, "bin/traffic": traffic}
    with guest(kernel, files, "panic_on_warn=1", *append) as one:
        yield one


def assert_captured(one: Guest, expected: Expected) -> None:
    done = one.run(RECORD + TRAFFIC)
    assert done.status == 0, done.text
    bundle = Bundle(one.run("cat /out/bundle/*.bundle.tgz").out)
    wanted = truth(one.run("cat /tmp/truth").text)
    wanted = type(wanted)({row: n for row, n in wanted.items() if row[0] in expected.rows})
    sums = {kind: sum(n for row, n in wanted.items() if row[0] == kind) for kind in expected.rows}
    assert sums == expected.rows
    absent = wanted - bundle.rows
    assert not bundle.rows - wanted, f"{bundle.rows - wanted} never happened; absent: {absent}"
    assert absent.total() == bundle.lost, absent
    assert bundle.lost <= expected.may_lose
    assert bundle.summary["hooks_missing"] == expected.hooks_missing
    assert bundle.summary["complete"] == (not bundle.lost and not expected.hooks_missing)
    found = bundle.summary["dns"]
    if not bundle.lost:
        assert bundle.findings == expected.findings
        assert (found["queries"], found["answers"], found["unanswered"]) == expected.dns
    assert expected.findings <= bundle.findings


@on("5.10", "6.1", "6.12-rt", "newest")
def test_the_golden_workload(kernel: Kernel, ktrace: Path, traffic: Path):
    """And nothing stays: debugfs is mounted, so that a lookup below it would mount tracefs."""
    with booted(kernel, ktrace, traffic) as one:
        one.run("mount -t debugfs none /sys/kernel/debug")
        before = one.run(STATE).text
        assert_captured(one, EXPECTED[kernel.series])
        one.run("rm -r /out/bundle")
        assert one.run(STATE).text == before


@on("newest")
def test_the_golden_workload_with_full_preemption(kernel: Kernel, ktrace: Path, traffic: Path):
    with booted(kernel, ktrace, traffic, "preempt=full") as one:
        assert_captured(one, EXPECTED[kernel.series])


@on("6.1", "newest")
def test_the_golden_workload_on_a_hardened_kernel(kernel: Kernel, ktrace: Path, traffic: Path):
    """Slabs with red zones and poison: a write out of bounds or after free is reported."""
    with booted(kernel, ktrace, traffic, *HARDENED) as one:
        assert one.run(HARDEN).status == 0
        assert_captured(one, EXPECTED[kernel.series])


@on("6.1", "newest")
def test_sigkill_leaves_nothing(kernel: Kernel, ktrace: Path, traffic: Path):
    with booted(kernel, ktrace, traffic) as one:
        before = one.run(STATE).text
        assert one.run(RECORD + KILLED).status == 0
        one.run("rmdir /out/bundle")
        assert one.run(STATE).text == before


HIDE_BTF = "touch /tmp/empty && mount -o bind /tmp/empty /sys/kernel/btf/vmlinux"


@on("6.1", "newest")
def test_a_kernel_without_btf_is_refused(kernel: Kernel, ktrace: Path, traffic: Path):
    with booted(kernel, ktrace, traffic) as one:
        assert one.run(HIDE_BTF).status == 0
        before = one.run(STATE).text
        done = one.run("ktrace --duration=1s --out-dir=/out/bundle")
        assert done.status == UNSUPPORTED, done
        assert "BTF" in done.errors
        assert one.run(STATE).text == before
