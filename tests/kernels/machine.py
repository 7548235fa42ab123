# SPDX-License-Identifier: Apache-2.0
"""The machines that QEMU emulates, one for each architecture."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scripts.sysroot import sysroot


@dataclass(frozen=True)
class Machine:
    """QEMU's options for one architecture, and what a guest on it needs."""

    qemu: str
    options: tuple[str, ...]
    append: tuple[str, ...]
    """Kernel command line: the console, and `commands=TTY` for init."""
    busybox: Callable[[], Path]
    """Returns a statically linked shell for the guest."""
    compiler: tuple[str, ...]
    libraries: Callable[[], tuple[str, ...]]
    """Returns the options of the compiler for a static libbpf."""


def _arm64_libraries() -> tuple[str, ...]:
    root = sysroot("arm64")
    return "-isystem", f"{root}/usr/include", f"-L{root}/usr/lib/aarch64-linux-gnu"


MACHINES = {
    "amd64": Machine(
        "qemu-system-x86_64",
        ("-cpu", "max", "-serial", "chardev:commands"),
        # A loaded host stops a CPU for seconds, which is not the clock's fault.
        ("console=ttyS0,115200", "commands=ttyS1", "tsc=reliable"),
        lambda: Path("/bin/busybox"),
        ("cc",),
        tuple,
    ),
    "arm64": Machine(
        "qemu-system-aarch64",
        # Signed pointers by QEMU's own algorithm: the architecture's costs half of the time.
        ("-M", "virt", "-cpu", "max,pauth-impdef=on", "-device", "pci-serial,chardev=commands"),
        ("console=ttyAMA0", "commands=ttyS0"),
        lambda: sysroot("arm64") / "bin/busybox",
        ("aarch64-linux-gnu-gcc",),
        _arm64_libraries,
    ),
}


def missing(arch: str) -> str | None:
    """Why no guest of this architecture can run here; None where one can."""
    machine = MACHINES[arch]
    for tool in (machine.qemu, *machine.compiler, "setpriv"):
        if shutil.which(tool) is None:
            return f"{tool} is missing: make setup-kernels"
    if arch == "amd64":
        busybox = machine.busybox()
        if not busybox.exists():
            return f"{busybox} is missing: make setup-kernels"
        if b"/ld-linux-x86-64.so" in busybox.read_bytes():
            return f"{busybox} is not linked statically: install busybox-static"
    return None
