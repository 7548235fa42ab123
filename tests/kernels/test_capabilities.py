# SPDX-License-Identifier: Apache-2.0
"""The capabilities of an agent that is not privileged, on other kernels.

Guests run as root of the initial user namespace. drop.c makes of this what a container has: the
same user with a smaller bounding set.
"""

import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ktrace_operator.plan.privileges import CAPABILITIES
from tests.kernels.golden import Bundle, truth
from tests.kernels.guest import Done, Guest, guest
from tests.kernels.packages import Kernel
from tests.kernels.series import on
from tests.kernels.test_capture import RECORD, ROWS, TRAFFIC

PERMISSION_DENIED = 3


@pytest.fixture(scope="session")
def drop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """drop.c, linked statically: a guest has no libraries."""
    program = tmp_path_factory.mktemp("drop") / "drop"
    flags = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static")
    subprocess.run(["cc", *flags, Path(__file__).with_name("drop.c"), "-o", program], check=True)
    return program


@contextmanager
def booted(kernel: Kernel, **files: Path) -> Iterator[Guest]:
    with guest(
        kernel, {f"bin/{name}": path for name, path in files.items()}, "panic_on_warn=1"
    ) as one:
        yield one


def record(one: Guest, capabilities: Iterable[str]) -> Done:
    """A capture of the golden workload with these capabilities."""
    command = RECORD.replace("\nktrace ", f"\ndrop {','.join(capabilities)} ktrace ", 1)
    assert "\ndrop " in command
    return one.run(f"rm -rf /out/bundle{command}{TRAFFIC}")


@on("5.10", "6.1")
def test_the_smaller_set_suffices(kernel: Kernel, ktrace: Path, traffic: Path, drop: Path):
    with booted(kernel, ktrace=ktrace, traffic=traffic, drop=drop) as one:
        shown = one.run(f"drop {','.join(CAPABILITIES)} grep CapEff /proc/self/status")
        assert int(shown.text.split()[1], 16).bit_count() == len(CAPABILITIES), shown
        done = record(one, CAPABILITIES)
        assert done.status == 0, done.text
        bundle = Bundle(one.run("cat /out/bundle/*.bundle.tgz").out)
        assert bundle.rows == truth(one.run("cat /tmp/truth").text)
        assert bundle.rows.total() == sum(ROWS.values())
        assert bundle.summary["hooks_missing"] == []
        assert bundle.summary["complete"]


@on("5.10")
def test_memory_of_bpf_needs_sys_resource(kernel: Kernel, ktrace: Path, traffic: Path, drop: Path):
    """Kernels before 5.11 charge it to RLIMIT_MEMLOCK, which only this capability can raise."""
    with booted(kernel, ktrace=ktrace, traffic=traffic, drop=drop) as one:
        done = record(one, set(CAPABILITIES) - {"SYS_RESOURCE"})
        assert done.status == PERMISSION_DENIED, done
        assert "CAP_SYS_RESOURCE" in done.text
