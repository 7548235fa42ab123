# SPDX-License-Identifier: Apache-2.0
"""Programs are detached while receivers sleep in the functions that they are attached to.

A return that a trampoline or a kretprobe has redirected must still find its way. Every guest runs
with panic_on_warn=1.
"""

import subprocess
from pathlib import Path

import pytest

from tests.kernels.packages import Kernel
from tests.kernels.series import on
from tests.kernels.test_capture import RECORD, booted

SLEEP = """
sleepers /tmp/wake >/tmp/slept &
sleepers=$!
until grep -q asleep /tmp/slept; do
    kill -0 $sleepers || exit 99
    sleep 0.1
done
"""
END = {
    "detach": "kill -INT $pid; wait $pid || { cat /tmp/log; exit 98; }",
    "die": 'kill -KILL $pid; until [ -z "$(ps -o comm | grep ktrace)" ]; do sleep 0.1; done',
}
ENDS = (("fexit", "detach"), ("fexit", "die"), ("kprobe", "detach"))
WAKE = """
touch /tmp/wake
wait $sleepers
status=$?
cat /tmp/slept
rm -r /tmp/wake /out/bundle
exit $status
"""


@pytest.fixture(scope="session")
def sleepers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("sleepers") / "sleepers"
    source = Path(__file__).with_name("sleepers.c")
    flags = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static")
    subprocess.run(["cc", *flags, source, "-o", program], check=True)
    return program


@on("5.10", "6.1", "newest")
def test_sleeping_receivers_wake(kernel: Kernel, ktrace: Path, sleepers: Path):
    with booted(kernel, ktrace, sleepers) as one:
        one.run("ln -s /bin/traffic /bin/sleepers")
        for candidate, end in ENDS:
            force = f"export KTRACE_HOOKS=socket_send={candidate},socket_recv={candidate}"
            done = one.run(force + RECORD + SLEEP + END[end] + WAKE)
            assert done.status == 0, (candidate, end, done.text)
            assert "woke 8 of 8" in done.text
