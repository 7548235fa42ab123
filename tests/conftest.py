# SPDX-License-Identifier: Apache-2.0
"""Worlds (what a test needs of the machine beyond Python) and the profiles of Hypothesis.

A test is marked with `@pytest.mark.world("bpf")`. If that world is missing, the test is skipped
with the reason. Under `KTRACE_REQUIRE=bpf,...` a missing world is a failure instead.

A test that searches many inputs or starts many processes is marked with `@pytest.mark.slow`:
`make test-fast` leaves it out, `make test` runs it.
"""

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from scripts import debian_packages
from tests.bpf.workers import Crew
from tests.cluster import binaries
from tests.kernels import machine

# A busy machine must not fail a test: neither a slow example nor a slow strategy counts.
settings.register_profile("full", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fast", settings.get_profile("full"), max_examples=25)
settings.load_profile("full")


def _root() -> str | None:
    return None if os.geteuid() == 0 else "needs root: sudo make test"


def _bpf() -> str | None:
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return "the kernel has no BTF (/sys/kernel/btf/vmlinux)"
    for tool in ("bpftool", "ip", "nsenter", "nft"):
        if shutil.which(tool) is None:
            return f"{tool} is missing: scripts/bootstrap.sh test"
    return _root()


def _mount() -> str | None:
    if reason := _root():
        return reason
    script = "mount -t tmpfs -o size=64k none /mnt"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], check=False, capture_output=True
    )
    return None if done.returncode == 0 else f"cannot mount: {done.stderr.decode().strip()}"


def _containers() -> str | None:
    for tool in ("containerd", "ctr", "runc", "setpriv", "unshare", "cc"):
        if shutil.which(tool) is None:
            return f"{tool} is missing: scripts/bootstrap.sh test"
    if not Path("/usr/lib/cni/ptp").exists():
        return "/usr/lib/cni/ptp is missing: scripts/bootstrap.sh test"
    return _bpf() or _mount()


def _static() -> str | None:
    if shutil.which("make") is None:
        return "make is missing"
    return _bpf() or _mount()


def _s3() -> str | None:
    if shutil.which("openssl") is None:
        return "openssl is missing: scripts/bootstrap.sh test"
    weed = Path(sysconfig.get_path("scripts")) / "weed"
    return None if weed.exists() else f"{weed} is missing: scripts/bootstrap.sh test"


def _cluster() -> str | None:
    for tool in ("containerd", "ctr", "runc", "iptables", "nft", "conntrack", "buildah"):
        if shutil.which(tool) is None:
            return f"{tool} is missing: make setup-cluster"
    for plugin in ("ptp", "host-local", "portmap", "loopback"):
        if not Path("/usr/lib/cni", plugin).exists():
            return f"/usr/lib/cni/{plugin} is missing: make setup-cluster"
    if missing := binaries.missing():
        return f"{', '.join(missing)} not built: make setup-cluster"
    return _s3() or _bpf() or _mount()


def _images() -> str | None:
    for tool in ("buildah", "mmdebstrap"):
        if shutil.which(tool) is None:
            return f"{tool} is missing: make setup-cluster"
    return _bpf() or _mount()


def _chart() -> str | None:
    if absent := {"helm", "kube"} & set(binaries.missing()):
        return f"{' and '.join(sorted(absent))} not built: make setup-cluster"
    return None if shutil.which("openssl") else "openssl is missing: make setup-test"


def _kernels() -> str | None:
    if not {"kernels", "matrix"} & required():
        return "boots kernels in QEMU: make test-kernels"
    return machine.missing("amd64") or debian_packages.missing()


def _matrix() -> str | None:
    if "matrix" not in required():
        return "takes minutes for each kernel: make test-kernels"
    return _kernels() or machine.missing("arm64")


WORLDS: dict[str, Callable[[], str | None]] = {
    "bpf": cache(_bpf),
    "chart": cache(_chart),
    "cluster": cache(_cluster),
    "containers": cache(_containers),
    "images": cache(_images),
    "kernels": cache(_kernels),
    "matrix": cache(_matrix),
    "mount": cache(_mount),
    "s3": cache(_s3),
    "static": cache(_static),
}
"""Name -> reason why it is missing on this machine, or None."""


def required() -> frozenset[str]:
    """Return the worlds that KTRACE_REQUIRE names, separated by commas."""
    names = frozenset(filter(None, os.environ.get("KTRACE_REQUIRE", "").split(",")))
    if unknown := names - WORLDS.keys():
        raise pytest.UsageError(
            f"KTRACE_REQUIRE: unknown world {', '.join(sorted(unknown))}; "
            f"there are {', '.join(WORLDS)}"
        )
    return names


def pytest_configure() -> None:
    required()


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("world"):
        for name in mark.args:
            reason = WORLDS[name]()
            if reason is None:
                continue
            if name in required():
                pytest.fail(f"KTRACE_REQUIRE={name}, but {reason}", pytrace=False)
            pytest.skip(f"world {name}: {reason}")


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    """Worker processes for the workloads of a module."""
    one = Crew()
    yield one
    one.close()
