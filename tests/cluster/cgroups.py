# SPDX-License-Identifier: Apache-2.0
"""The cluster's cgroups: where each of its processes is, so that none can be missed or mistaken.

Everything that a cluster starts runs below one cgroup of its own: its daemons and the shims
because they are put there, containers because the kubelets' cgroupRoot is there. Stopping the
cluster is killing what is in that folder; a process id that was reused is never hit.
"""

import os
import signal
from contextlib import suppress
from pathlib import Path

from tests.bpf.workers import wait_until

ROOT = Path("/sys/fs/cgroup")
V2 = (ROOT / "cgroup.controllers").exists()
KILL_S = 30.0


def hierarchies() -> list[Path]:
    """Where a cgroup must be made to exist for all controllers."""
    if V2:
        return [ROOT]
    return [path for path in sorted(ROOT.iterdir()) if path.is_dir() and path.name != "unified"]


def tracking() -> Path:
    """The one hierarchy that tells which processes are ours."""
    return ROOT if V2 else ROOT / "pids"


def make(path: str) -> None:
    """Make a cgroup such as `ktrace-dev/node-a` in every hierarchy, ready to take processes."""
    for hierarchy in hierarchies():
        folder = hierarchy
        for part in path.split("/"):
            parent, folder = folder, folder / part
            folder.mkdir(exist_ok=True)
            for knob in ("cpuset.cpus", "cpuset.mems"):  # a new cpuset of v1 is empty
                if not V2 and (folder / knob).exists() and not (folder / knob).read_text().strip():
                    (folder / knob).write_text((parent / knob).read_text())


def members(path: str) -> list[int]:
    """Ids of all processes in a cgroup and below."""
    found: list[int] = []
    for folder, _, _ in os.walk(tracking() / path):
        with suppress(OSError):
            found += map(int, (Path(folder) / "cgroup.procs").read_text().split())
    return found


def exists(path: str) -> bool:
    return any((hierarchy / path).exists() for hierarchy in _all())


def _all() -> list[Path]:
    """Also the empty v2 hierarchy beside v1, where runc makes folders too."""
    return [*hierarchies(), *([ROOT / "unified"] if (ROOT / "unified").exists() else [])]


def destroy(path: str) -> None:
    """Kill all that is in a cgroup and below, then remove it; AssertionError if it resists."""
    wait_until(lambda: _killed(path), f"the end of all processes of {path}", KILL_S)
    wait_until(lambda: _removed(path), f"the end of cgroup {path}", KILL_S)


def _killed(path: str) -> bool:
    alive = members(path)
    for pid in alive:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):  # else one of ours stays as a zombie
            os.waitpid(pid, os.WNOHANG)
    return not alive


def _removed(path: str) -> bool:
    for hierarchy in _all():
        for folder, _, _ in os.walk(hierarchy / path, topdown=False):
            with suppress(OSError):
                os.rmdir(folder)
    return not exists(path)
