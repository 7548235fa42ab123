# SPDX-License-Identifier: Apache-2.0
"""Fake /proc and cgroup directories: the pod of a process, a path that was recorded in part."""

import time
from pathlib import Path

import pytest

from ktrace_agent.enrich.pods import cgroup_path, processes
from ktrace_agent.enrich.pods.processes import LiveContainers

ID, OTHER = "7d" * 32, "c0" * 32
UID = "0f61a1d3-3c5e-4b0a-9d2e-2f4b6a7c8d9e"
PATH = f"/kubepods/burstable/pod{UID}/{ID}"
MOUNT = (
    "751 740 8:1 /lib/kubelet/pods/{uid}/containers/{name}/1f2e3d4c /dev/termination-log"
    " rw,relatime - ext4 /dev/sda1 rw\n"
)


def make(root: Path, pid: int, path: str, mounts: str = "") -> None:
    folder = root / "proc" / str(pid)
    folder.mkdir(parents=True)
    (folder / "cgroup").write_text(f"12:pids:{path}\n0::/\n")
    (folder / "mountinfo").write_text(mounts)


def read(root: Path, paths: dict[int, str], seconds: float = 5.0) -> LiveContainers:
    names = {number: cgroup_path.parse(path) for number, path in paths.items()}
    return processes.read(paths, names, root, root / "proc", time.monotonic() + seconds)


def test_the_mounts_of_a_process_name_its_container(tmp_path: Path) -> None:
    make(tmp_path, 1, "/init.scope")
    make(tmp_path, 70, PATH, "garbage\n" + MOUNT.format(uid=UID, name="app"))
    make(tmp_path, 71, PATH)
    make(tmp_path, 72, f"/docker/{OTHER}", MOUNT.format(uid=UID, name="other"))
    assert read(tmp_path, {7: PATH}) == LiveContainers(mounts={ID: (UID, "app")})


def test_two_mounts_of_different_pods_name_none(tmp_path: Path) -> None:
    both = MOUNT.format(uid=UID, name="app") + MOUNT.format(uid=UID, name="other")
    make(tmp_path, 70, PATH, both)
    assert read(tmp_path, {7: PATH}) == LiveContainers()


@pytest.mark.parametrize("folder", processes.CGROUP_FOLDERS)
def test_a_path_longer_than_the_kernels_is_found_by_its_inode(tmp_path: Path, folder: str) -> None:
    deep = f"{PATH}/system.slice/a.slice/b.slice/c.service"
    place = tmp_path / "sys/fs/cgroup" / folder / deep[1:]
    place.mkdir(parents=True)
    make(tmp_path, 70, deep)
    inode = place.stat().st_ino
    tail = "/system.slice/a.slice/b.slice/c.service"
    found = read(tmp_path, {inode: tail, inode + 1: tail})
    assert found.names == {inode: cgroup_path.parse(PATH)}


def test_a_path_through_a_private_namespace_is_not_trusted(tmp_path: Path) -> None:
    make(tmp_path, 70, f"/../..{PATH}/system.slice/a.slice/b.slice/c.service")
    assert read(tmp_path, {7: "/system.slice/a.slice/b.slice/c.service"}) == LiveContainers()


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for pid in range(3):
        make(tmp_path, pid, "/")
    assert read(tmp_path, {}, -1.0) == LiveContainers(cut=True)
    monkeypatch.setattr(processes, "MAX_PROCESSES", 2)
    assert read(tmp_path, {}) == LiveContainers(cut=True)
    assert read(tmp_path / "none", {7: PATH}) == LiveContainers()
