# SPDX-License-Identifier: Apache-2.0
"""The choice of a package, and the faults that a console shows; nothing is booted."""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import debian_packages
from tests.kernels import initramfs, packages
from tests.kernels.guest import trouble
from tests.kernels.packages import REFRESH_S, SERIES, NoKernel, kernel, newest


@pytest.mark.parametrize(
    ("package", "wanted"),
    [
        ("linux-image-5.10.0-46-cloud-amd64", "5.10"),
        ("linux-image-6.1.0-57-cloud-amd64", "6.1"),
        ("linux-image-6.1.0-0.deb11.52-cloud-amd64", "6.1"),
        ("linux-image-6.12.117+deb12-cloud-amd64", "6.12"),
        ("linux-image-6.17.13+deb13-cloud-amd64", "6.19"),
        ("linux-binary-6.19.14+deb13-cloud-amd64", "6.19"),
        ("linux-binary-7.3.4+deb13-cloud-amd64", "newest"),
        ("linux-image-6.1.0-57-cloud-arm64", "6.1-arm64"),
        ("linux-image-6.12.118+deb13-cloud-arm64", "6.12-arm64"),
        ("linux-image-6.12.118+deb13-rt-arm64", None),
        ("linux-image-6.16.12+deb13-cloud-amd64", None),
        ("linux-image-6.12-cloud-amd64", None),  # depends on the newest
        ("linux-image-cloud-amd64", None),
        ("linux-image-6.12.117+deb12-rt-amd64", "6.12-rt"),
        ("linux-image-6.12.117+deb12-amd64", None),
        ("linux-image-6.12.117+deb12-rt-amd64-unsigned", None),
        ("linux-headers-6.12.117+deb12-cloud-amd64", None),
    ],
)
def test_series_by_name(package: str, wanted: str | None):
    assert [name for name, one in SERIES.items() if one.holds(package)] == [wanted][: bool(wanted)]


def test_the_newest_is_chosen_by_numbers_and_the_part_with_the_kernel():
    versions = [
        ("linux-image-6.19.9+deb13-cloud-amd64", "6.19.9-1~bpo13+1"),
        ("linux-image-6.19.14+deb13-cloud-amd64", "6.19.14-1~bpo13+1"),
        ("linux-binary-6.19.14+deb13-cloud-amd64", "6.19.14-1~bpo13+1"),
    ]
    assert newest(versions)[0] == "linux-binary-6.19.14+deb13-cloud-amd64"
    assert newest([("a", "6.1.192-3~deb11u1"), ("b", "6.1.192-3")])[0] == "b"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with an old kernel of 6.1, and archives that cannot be reached."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = packages.home() / "6.1" / "linux-image-6.1.0-9-cloud-amd64_6.1.9-1.vmlinuz"
    file.parent.mkdir(parents=True)
    file.touch()
    os.utime(file, (0, 0))

    def unreachable(*_: object) -> str:
        raise LookupError("no network")

    monkeypatch.setattr(debian_packages, "sources", unreachable)
    monkeypatch.setattr(debian_packages.Apt, "names", lambda *_: [])
    return file


def test_without_network_the_kept_kernel_is_used(cache: Path):
    assert kernel("6.1").vmlinuz == cache
    assert kernel("6.1").numbers == (6, 1)


def test_without_network_and_cache_the_reason_is_given(cache: Path):
    with pytest.raises(NoKernel, match="no kernel of newest: no network"):
        kernel("newest")


def test_a_kernel_chosen_lately_needs_no_apt(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(packages, "Apt")
    os.utime(cache)
    assert kernel("6.1").version == "6.1.9-1"
    assert REFRESH_S > 0


@pytest.mark.parametrize(
    "line",
    [
        "[   28.9] BUG: unable to handle page fault for address: 00000000000a41ed",
        "[   50.3] list_del corruption, ff1100007d664c50->prev is NULL",
        "[   50.3] kernel BUG at lib/list_debug.c:54!",
        "[   50.3] Kernel panic - not syncing: Fatal exception",
        "[    3.1] WARNING: CPU: 1 PID: 1 at kernel/bpf/verifier.c:1 check+0x1/0x2",
    ],
)
def test_a_fault_on_the_console_is_found(line: str):
    assert trouble(f"[    0.1] Linux version 6.12\n{line}\n[    9.9] more\n") == [line]
    assert trouble("[    0.1] mtrr: your CPUs had inconsistent fixed MTRR settings\n") == []


def test_an_initramfs_is_a_newc_archive(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"12345")
    target = tmp_path / "initramfs"
    initramfs.write(target, tmp_path / "file", {"/bin/x": tmp_path / "file"})
    content = target.read_bytes()
    assert content.startswith(b"070701")
    assert len(content) % 4 == 0
    names = list(_names(io.BytesIO(content)))
    assert {"init", "bin/serve", "bin/x", "bin/busybox", "dev/console"} <= set(names)
    assert names[-1] == "TRAILER!!!"


def _names(archive: io.BytesIO) -> Iterator[str]:
    while head := archive.read(110):
        size, length = int(head[54:62], 16), int(head[94:102], 16)
        yield archive.read(length)[:-1].decode()
        archive.seek(-archive.tell() % 4, 1)
        archive.seek(size, 1)
        archive.seek(-archive.tell() % 4, 1)
