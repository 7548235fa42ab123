# SPDX-License-Identifier: Apache-2.0
"""Libraries of another architecture, unpacked from Debian's packages and never installed.

    python -m scripts.sysroot arm64    downloads what is missing, prints the folder

It is kept under `${XDG_CACHE_HOME:-~/.cache}/ktrace/sysroots/`, and serves
`make -C agent/bpf ARCH=arm64 SYSROOT=FOLDER`. The packages are of the host's own release, since
they are linked with the C library of its cross compiler.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.debian_packages import Apt, release

PACKAGES = ("libbpf1", "libbpf-dev", "libelf-dev", "zlib1g-dev", "libzstd-dev", "busybox-static")
"""What links against libbpf, dynamically and statically, and the shell of a guest."""


def sysroot(arch: str) -> Path:
    """Return a folder with the files of PACKAGES for `arch`.

    Safe if two processes call it at once. Raises LookupError with apt's errors.
    """
    codename = release()
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = base / "ktrace" / "sysroots" / f"{arch}-{codename}"
    home.mkdir(parents=True, exist_ok=True)
    root, stamp = home / "root", home / "packages"
    with (home / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text().split() != list(PACKAGES):
            stamp.unlink(missing_ok=True)
            shutil.rmtree(root, ignore_errors=True)
            _unpack(Apt(home / "apt", arch, (f"{codename}-security",), (codename,)), root)
            stamp.write_text("\n".join(PACKAGES) + "\n")
    return root


def _unpack(apt: Apt, root: Path) -> None:
    if errors := apt.update():
        raise LookupError(errors)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=".download-") as name:
        folder = Path(name)
        apt.download(folder, *PACKAGES)
        for archive in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", archive, root], check=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m scripts.sysroot ARCH")
    print(sysroot(sys.argv[1]))
