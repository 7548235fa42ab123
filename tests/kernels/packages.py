# SPDX-License-Identifier: Apache-2.0
"""Kernels of Debian's archives as vmlinuz files, kept outside the checkout.

A series names a range of versions, and its newest package is used: archives drop old versions
within weeks. Packages, lists and files are under `${XDG_CACHE_HOME:-~/.cache}/ktrace/kernels/`.
With a filled cache no network is needed.

    python -m tests.kernels.packages [SERIES...]    downloads what is missing, prints the files
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.debian_packages import Apt

SECURITY = ("bullseye-security", "bookworm-security", "trixie-security")
MAIN = ("bookworm", "bookworm-backports", "trixie", "trixie-backports")
REFRESH_S = 7 * 24 * 3600
"""Age of apt's lists, and of the choice of a kernel, from which newer ones are requested."""

_NAME = re.compile(r"linux-(image|binary)-(\d+)\.(\d+)\.\d[^ ]*-(cloud|rt)-(amd64|arm64)")
_SEARCH = "^linux-(image|binary)-[0-9]"
_VMLINUZ = re.compile(r"\./(boot/vmlinuz-[^/]+|(usr/)?lib/modules/[^/]+/vmlinuz)")


class NoKernel(Exception):
    """No kernel of a series can be had here; the text gives the reason."""


@dataclass(frozen=True)
class Series:
    """Kernels from version `first` to `last`, each (major, minor), both included."""

    name: str
    first: tuple[int, int]
    last: tuple[int, int]
    flavour: str = "cloud"
    """Debian's flavour: cloud boots fastest, rt is built with PREEMPT_RT."""
    arch: str = "amd64"

    def holds(self, package: str) -> bool:
        found = _NAME.fullmatch(package)
        return (
            found is not None
            and found.group(4, 5) == (self.flavour, self.arch)
            and self.first <= (int(found[2]), int(found[3])) <= self.last
        )


SERIES = {
    one.name: one
    for one in (
        Series("5.10", (5, 10), (5, 10)),
        Series("6.1", (6, 1), (6, 1)),
        Series("6.12", (6, 12), (6, 12)),
        Series("6.12-rt", (6, 12), (6, 12), "rt"),
        Series("6.19", (6, 17), (6, 19)),
        Series("newest", (7, 0), (99, 99)),
        Series("6.1-arm64", (6, 1), (6, 1), arch="arm64"),
        Series("6.12-arm64", (6, 12), (6, 12), arch="arm64"),
    )
}
"""6.19 is the newest of 6.17 to 6.19: which of them is served changes."""


@dataclass(frozen=True)
class Kernel:
    """A kernel of a series, ready to boot."""

    series: str
    package: str
    version: str
    """Of the package, such as 6.1.192-1."""
    vmlinuz: Path

    @property
    def arch(self) -> str:
        """amd64 or arm64."""
        return SERIES[self.series].arch

    @property
    def numbers(self) -> tuple[int, int]:
        """Major and minor version."""
        major, minor = re.findall(r"\d+", self.version)[:2]
        return int(major), int(minor)


def kernel(series: str) -> Kernel:
    """The newest kernel of a series, downloaded if it is missing.

    Safe if two processes call it at once. Raises NoKernel.
    """
    wanted = SERIES[series]
    home().mkdir(parents=True, exist_ok=True)
    with _lock(home() / ".lock"):
        kept = _kept(wanted)
        if kept and time.time() - kept[-1].vmlinuz.stat().st_mtime < REFRESH_S:
            return kept[-1]
        try:
            return _newest(archives(wanted.arch), wanted)
        except LookupError as error:
            if not kept:
                raise NoKernel(f"no kernel of {series}: {error}") from error
            return kept[-1]


def cached(series: str) -> bool:
    """Whether a kernel of the series can be had without network."""
    return bool(_kept(SERIES[series]))


def home() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "ktrace" / "kernels"


def newest(versions: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """The newest of (package, version) pairs; of a split package the part with the kernel.

    From 6.19 on `linux-image-*` only depends on `linux-binary-*`, which holds the kernel.
    """
    return max(versions, key=lambda one: (*_order(one[1]), one[0].startswith("linux-binary-")))


def archives(arch: str) -> Apt:
    """apt for the packages of all series on an architecture."""
    return Apt(home() / f"apt-{arch}", arch, SECURITY, MAIN)


def _order(version: str) -> tuple[tuple[int, ...], bool]:
    upstream, tilde, _ = version.partition("~")
    return tuple(int(number) for number in re.findall(r"\d+", upstream)), not tilde


def _newest(apt: Apt, series: Series) -> Kernel:
    """The newest that the archives serve. Raises LookupError with apt's errors."""
    trouble = apt.update() if apt.age_s() > REFRESH_S else ""
    try:
        return _served(apt, series)
    except LookupError as error:  # the version that old lists name may be gone
        trouble = apt.update() or trouble or str(error)
    try:
        return _served(apt, series)
    except LookupError as error:
        raise LookupError(trouble or str(error)) from error


def _served(apt: Apt, series: Series) -> Kernel:
    found = apt.versions(name for name in apt.names(_SEARCH) if series.holds(name))
    if not found:
        raise LookupError(f"the archives serve no package of {series.name}")
    package, version = newest(found)
    file = _file(series, package, version)
    if not file.exists():
        _download(apt, package, version, file)
        for old in _kept(series):
            if old.vmlinuz != file:
                old.vmlinuz.unlink()
    file.touch()
    return Kernel(series.name, package, version, file)


def _file(series: Series, package: str, version: str) -> Path:
    return home() / series.name / f"{package}_{version}.vmlinuz"


def _kept(series: Series) -> list[Kernel]:
    """Kernels in the cache, oldest first."""
    kernels = []
    for file in (home() / series.name).glob("*.vmlinuz"):
        package, _, version = file.stem.partition("_")
        kernels.append(Kernel(series.name, package, version, file))
    return sorted(kernels, key=lambda one: _order(one.version))


def _download(apt: Apt, package: str, version: str, file: Path) -> None:
    """Write the package's vmlinuz to `file`; an interrupted download leaves no such file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home(), prefix=".download-") as name:
        work = Path(name)
        apt.download(work, f"{package}={version}")
        [archive] = work.glob("*.deb")
        part = work / "vmlinuz"
        _unpack(archive, part)
        part.rename(file)


def _unpack(archive: Path, target: Path) -> None:
    """Copy vmlinuz out of a package without unpacking the rest."""
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        with tarfile.open(fileobj=process.stdout, mode="r|") as content:
            for member in content:
                if member.isfile() and _VMLINUZ.fullmatch(member.name):
                    source = content.extractfile(member)
                    assert source
                    with target.open("wb") as file:
                        shutil.copyfileobj(source, file)
                    process.kill()
                    return
    raise LookupError(f"{archive.name} holds no vmlinuz")


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    for each in sys.argv[1:] or SERIES:
        print(kernel(each).vmlinuz)
