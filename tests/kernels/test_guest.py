# SPDX-License-Identifier: Apache-2.0
"""Guests themselves: bytes in and out, and how each kind of failure is reported."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kernels import machine
from tests.kernels.guest import GuestFailed, guest
from tests.kernels.packages import Kernel
from tests.kernels.series import on

MACHINE = machine.MACHINES["amd64"]


@on("6.1")
def test_output_errors_and_status_come_back_as_they_are(kernel: Kernel):
    with guest(kernel, {"bin/tool": MACHINE.busybox()}) as one:
        done = one.run("head -c 100000 /bin/tool; echo no >&2; exit 7")
        assert (done.status, done.errors) == (7, "no\n")
        assert done.out == MACHINE.busybox().read_bytes()[:100000]
        assert one.run("uname -r").text.startswith("6.1.")


@on("6.1")
def test_a_guest_that_hangs_is_ended_with_its_console(kernel: Kernel):
    with (
        pytest.raises(GuestFailed, match=r"(?s)did not end this in 1 s: sleep.*--- its console"),
        guest(kernel, {}) as one,
    ):
        one.run("sleep 1000", seconds=1)
    assert one.ended


@on("6.1")
def test_a_panic_is_reported_with_its_console(kernel: Kernel):
    with (
        pytest.raises(GuestFailed, match=r"(?s)the guest died: .*sysrq_handle_crash"),
        guest(kernel, {}) as one,
    ):
        one.run("echo c >/proc/sysrq-trigger")


@on("6.1")
def test_a_fault_that_the_guest_survives_fails_it(kernel: Kernel):
    with (
        pytest.raises(GuestFailed, match=r"the kernel reported a fault: .*BUG: made by a test"),
        guest(kernel, {}) as one,
    ):
        assert one.run("echo '<3>BUG: made by a test' >/dev/kmsg").status == 0


@pytest.fixture
def starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A QEMU that fails the first N starts; the file has a line for each start."""
    file, qemu = tmp_path / "starts", tmp_path / "qemu"
    qemu.write_text(
        f"#!/bin/sh\necho >>{file}\n[ $(wc -l <{file}) -le {request.param} ] && exit 1\n"
        f'exec {MACHINE.qemu} "$@"\n'
    )
    qemu.chmod(0o755)
    monkeypatch.setitem(machine.MACHINES, "amd64", replace(MACHINE, qemu=str(qemu)))
    return file


@on("6.1")
@pytest.mark.parametrize("starts", [1], indirect=True)
def test_a_guest_that_dies_before_init_is_started_once_more(kernel: Kernel, starts: Path):
    with guest(kernel, {}) as one:
        assert one.run("true").status == 0
    assert len(starts.read_text()) == 2


@on("6.1")
@pytest.mark.parametrize("starts", [2], indirect=True)
def test_a_guest_that_dies_twice_is_reported(kernel: Kernel, starts: Path):
    with pytest.raises(GuestFailed, match="QEMU did not start"), guest(kernel, {}):
        pass
    assert len(starts.read_text()) == 2


STARTS_A_GUEST = """
import signal, sys
from tests.kernels.guest import guest
from tests.kernels.packages import kernel

with guest(kernel("6.1"), {}) as one:
    print(one.pid, one.folder, flush=True)
    signal.pause()
"""


@on("6.1")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_leaves_no_guest(kernel: Kernel, number: signal.Signals):
    with subprocess.Popen(
        [sys.executable, "-c", STARTS_A_GUEST], stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout
        pid, folder = run.stdout.readline().split()
        assert Path(f"/proc/{pid}/exe").readlink().name == MACHINE.qemu
        assert Path(folder, "initramfs").exists()
        run.send_signal(number)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() or Path(folder).exists():
        assert time.monotonic() < deadline, (pid, folder)
        time.sleep(0.05)
