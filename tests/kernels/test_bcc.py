# SPDX-License-Identifier: Apache-2.0
"""A kernel without BTF: the programs are compiled in the guest by bcc, and record the same rows.

The guest's kernel has BTF, which is hidden: Debian builds no kernel without it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernels import bcc_root
from tests.kernels.golden import Bundle, truth
from tests.kernels.guest import Guest, guest
from tests.kernels.packages import Kernel
from tests.kernels.series import on

MEMORY_MIB = 3584
ENTER = """
mkdir /bcc && tar -xf /bcc.tar -C /bcc && rm /bcc.tar || exit 99
for folder in proc sys dev tmp out; do
    mkdir -p /bcc/$folder && mount --rbind /$folder /bcc/$folder || exit 98
done
"""
HIDE_BTF = "mount -t tmpfs none /bcc/sys/kernel/btf"
KTRACE = """
ktrace() {
    env PYTHONPATH=/agent:/api:/site OPENBLAS_NUM_THREADS=1 \
        busybox chroot /bcc /usr/bin/python3 -m ktrace_agent.cli.main "$@"
}
"""
CAPTURE = (
    KTRACE
    + """
ktrace --duration=10m --node=guest --out-dir=/out/bundle --threshold=dns_grace_max_s=1 \
    $BACKEND >/tmp/log 2>&1 &
until grep -q '^ktrace: recording' /tmp/log; do
    kill -0 $! || { cat /tmp/log; exit 97; }
    sleep 0.1
done
traffic >/tmp/truth || exit 96
sleep 1.5 # longer than dns_grace_max_s
kill -INT $(ps -o pid,args | awk '/ktrace_agent.cli.main/ && !/awk/ {print $1; exit}')
wait
cat /tmp/log
"""
)
UNSERVED = ["tcp_retransmit", "tcp_retransmit_synack", "inventory"]


@contextmanager
def booted(kernel: Kernel, traffic: Path, folder: Path) -> Iterator[Guest]:
    if why := bcc_root.missing():
        pytest.skip(why)
    archive = folder / "bcc.tar"
    bcc_root.archive(kernel, archive)
    files = {"bin/traffic": traffic, "bcc.tar": archive}
    with guest(kernel, files, "panic_on_warn=1", memory_mib=MEMORY_MIB) as one:
        done = one.run(ENTER)
        assert done.status == 0, done
        yield one


@on("6.1")
def test_the_golden_workload_without_btf(kernel: Kernel, traffic: Path, tmp_path: Path):
    with booted(kernel, traffic, tmp_path) as one:
        assert one.run(HIDE_BTF).status == 0
        done = one.run(CAPTURE)
        assert done.status == 0, done.text
        bundle = Bundle(one.run("cat /out/bundle/*.bundle.tgz").out)
        wanted = truth(one.run("cat /tmp/truth").text)
    assert wanted.total() == 526
    assert bundle.rows == wanted
    assert bundle.lost == 0
    assert bundle.node["kernel"]["backend"] == "bcc"
    assert bundle.node["kernel"]["btf"] is False
    assert sorted(bundle.summary["hooks_missing"]) == sorted(UNSERVED)
    dns = bundle.summary["dns"]
    assert (dns["queries"], dns["answers"], dns["unanswered"]) == (18, 7, 11)
