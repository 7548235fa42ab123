# SPDX-License-Identifier: Apache-2.0
"""Creates cgroups of pods, named as by the kubelet and the runtimes."""

import os
from contextlib import suppress
from pathlib import Path

from tests.bpf.workers import Job, Line, wait_until

CONTAINER = "3f" * 32
FORMS = {
    "cgroupfs": "kubepods/burstable/pod{uid}/{id}",
    "guaranteed": "kubepods/pod{uid}/{id}",
    "systemd": "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid_}.slice"
    "/cri-containerd-{id}.scope",
    "kind": "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{uid_}.slice"
    "/cri-containerd-{id}.scope",
    "cri-o": "kubepods.slice/kubepods-pod{uid_}.slice/crio-{id}.scope/container",
    "mixed": "system.slice/kubepods-besteffort-pod{uid_}.slice:cri-containerd:{id}",
    "systemd-inside": "kubepods/besteffort/pod{uid}/{id}/system.slice/a.slice/b.slice/c.service",
}
"""Path of a container's cgroup, by who made it."""


def v1() -> Path | None:
    """The hierarchy of `pids`, where it is one of its own."""
    path = Path("/sys/fs/cgroup/pids")
    return path if (path / "cgroup.procs").exists() else None


def v2() -> Path | None:
    """The mount of cgroup2."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, path, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(path)
    return None


class Groups:
    """Cgroups below one of the test's own; remove() leaves none of them."""

    def __init__(self, hierarchy: Path) -> None:
        self._root = hierarchy / f"ktrace-test-{os.getpid()}"

    def make(self, form: str, uid: str, container: str = CONTAINER) -> Path:
        path = FORMS[form].format(uid=uid, uid_=uid.replace("-", "_"), id=container)
        folder = self._root / path
        folder.mkdir(parents=True)
        return folder

    def remove(self) -> None:
        if self._root.exists():
            wait_until(self._removed, f"{self._root} being empty")

    def _removed(self) -> bool:
        for folder, _, _ in os.walk(self._root, topdown=False):
            with suppress(OSError):  # its last process is still on its way out
                Path(folder).rmdir()
        return not self._root.exists()


def inside(folder: Path, job: Job) -> Job:
    """The job of a process that lives in this cgroup."""

    def run(line: Line) -> object:
        (folder / "cgroup.procs").write_text(str(os.getpid()))
        return job(line)

    return run
