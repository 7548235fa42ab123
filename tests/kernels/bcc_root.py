# SPDX-License-Identifier: Apache-2.0
"""The root of a guest that compiles: Python, bcc, the kernel's headers and this agent.

bcc and the headers are Debian's packages, unpacked once for each kernel and kept in the cache of
packages.py. The agent is added anew for each test.
"""

import importlib.metadata
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.kernels.packages import Kernel, archives, home

ROOT = Path(__file__).parents[2]
SUITE, PYTHON = "bookworm", (3, 11)
"""The release of Debian in the root, and the version of Python there."""
_LEFT_OUT = re.compile(
    r"usr/share/(doc|man|locale|perl)|var/(cache|lib/apt)|usr/bin/perl|proc|sys|dev"
)
_FOREIGN = re.compile(r"linux-headers-[^/]*/arch/(?!x86)")
_AGENT = ("agent/ktrace_agent", "agent/bpf", "api")


def missing() -> str | None:
    """Why no such root can be made here; None where it can."""
    if sys.version_info[:2] != PYTHON:
        return f"the packages of this Python do not fit that of {SUITE}"
    done = subprocess.run(["which", "mmdebstrap"], check=False, capture_output=True)
    return "mmdebstrap is missing" if done.returncode else None


def archive(kernel: Kernel, target: Path) -> None:
    """Write the root as a tar file."""
    base = _base(kernel)
    with tarfile.open(target, "w") as tar:
        for path in sorted(base.rglob("*")):
            name = str(path.relative_to(base))
            if not _LEFT_OUT.match(name) and not _FOREIGN.search(name):
                tar.add(path, name, recursive=False)
        for folder in _AGENT:
            tar.add(ROOT / folder, folder)
        for name, path in _packages():
            tar.add(path, f"site/{name}", recursive=False)
        for folder in ("proc", "sys", "dev", "out"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)


def _base(kernel: Kernel) -> Path:
    """The unpacked packages; a folder that was not finished has another name."""
    folder = home() / "bcc" / f"{kernel.package}_{kernel.version}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpack-") as work:
        root = Path(work, "root")
        command = ["mmdebstrap", "--quiet", "--variant=extract", "--include=python3-bpfcc,libbpf1"]
        subprocess.run([*command, SUITE, root], check=True, capture_output=True)
        _merge_usr(root)
        _headers(kernel, root)
        root.rename(folder)
    return folder


def _merge_usr(root: Path) -> None:
    """Make /bin, /lib, ... links into /usr, which a later step of the installer would do."""
    for name in ("bin", "sbin", "lib", "lib64"):
        if not (root / name).is_symlink():
            subprocess.run(["cp", "-a", f"{root / name}/.", root / "usr" / name], check=True)
            subprocess.run(["rm", "-r", root / name], check=True)
            (root / name).symlink_to(f"usr/{name}")


def _headers(kernel: Kernel, root: Path) -> None:
    """Unpack the headers, without the compiler that their packages depend on."""
    flavoured = kernel.package.replace("-image-", "-headers-")
    common = re.sub(r"-(cloud|rt)-amd64", "-common", flavoured)
    apt = archives(kernel.arch)
    with tempfile.TemporaryDirectory() as work:
        for package in (flavoured, common):
            apt.download(Path(work), f"{package}={kernel.version}")
        for file in Path(work).glob("*.deb"):
            unpacked = Path(work, file.stem)
            subprocess.run(["dpkg-deb", "-x", file, unpacked], check=True)
            for part, place in (("usr", "usr"), ("lib", "usr/lib")):
                if (unpacked / part).exists():
                    subprocess.run(["cp", "-a", f"{unpacked / part}/.", root / place], check=True)


def _packages() -> Iterator[tuple[str, Path]]:
    """The installed files of the packages that the agent needs."""
    lock = (ROOT / "requirements/agent.lock").read_text()
    for name in re.findall(r"^([a-z0-9_.-]+)==", lock, re.MULTILINE | re.IGNORECASE):
        for file in importlib.metadata.distribution(name).files or ():
            if ".." not in file.parts and file.suffix != ".pyc":
                yield str(file), Path(str(file.locate()))
