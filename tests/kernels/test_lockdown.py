# SPDX-License-Identifier: Apache-2.0
"""Kernels under lockdown: `doctor` and a capture end with an answer, and the kernel lives.

Under `confidentiality` the end of the last mount of tracefs crashes 6.12 and newer kernels. The
guests mount no tracefs, so ktrace's private mount would be the last.
"""

from pathlib import Path

from tests.kernels.guest import Guest, guest
from tests.kernels.packages import Kernel
from tests.kernels.series import on

UNSUPPORTED = 4
SENTENCE = "kernel lockdown is `confidentiality`"
CAPTURE = "ktrace --duration=1s --out-dir=/out/bundle"


def assert_refused(guest: Guest, command: str) -> None:
    done = guest.run(command)
    assert done.status == UNSUPPORTED, done
    assert SENTENCE in " ".join((done.text + done.errors).split()), done


@on("6.1", "6.12", "6.19", "newest")
def test_confidentiality_is_refused_and_the_kernel_lives(kernel: Kernel, ktrace: Path):
    with guest(kernel, {"bin/ktrace": ktrace}, "lockdown=confidentiality") as one:
        before = one.run("cat /proc/mounts").text
        assert "tracefs" not in before
        assert "securityfs" not in before
        assert_refused(one, "ktrace doctor")
        assert_refused(one, CAPTURE)
        assert one.run("cat /proc/mounts; ls /out").text == before
        assert one.run("mount -t securityfs none /sys/kernel/security").status == 0
        assert "[confidentiality]" in one.run("cat /sys/kernel/security/lockdown").text
        assert_refused(one, "ktrace doctor")
        assert_refused(one, CAPTURE)


@on("6.12", "newest")
def test_integrity_is_served_by_a_private_mount(kernel: Kernel, ktrace: Path):
    """Also where debugfs is mounted: reading it would leave tracefs mounted below it."""
    with guest(kernel, {"bin/ktrace": ktrace}, "lockdown=integrity") as one:
        assert one.run("mount -t debugfs none /sys/kernel/debug").status == 0
        before = one.run("cat /proc/mounts").text
        done = one.run("ktrace doctor --json")
        assert done.status == 0, done
        assert '"tracefs": "private"' in done.text
        assert one.run("cat /proc/mounts").text == before
