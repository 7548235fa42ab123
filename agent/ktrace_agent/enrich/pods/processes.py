# SPDX-License-Identifier: Apache-2.0
"""Reads pod and container of running processes from /proc.

/proc/PID/cgroup has the complete path, of which the BPF programs record four levels. The kubelet
mounts `pods/UID/containers/NAME/HASH` of its directory into each container as
/dev/termination-log, so the mountinfo of a process shows its pod and container.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ktrace_agent.enrich.pods import cgroup_path
from ktrace_agent.enrich.pods.cgroup_path import CgroupName
from ktrace_agent.host.cgroups import LEVELS
from ktrace_agent.host.small_file import bytes_or_empty, text_or_empty
from ktrace_api.names import UNKNOWN

MAX_PROCESSES = 65_536
CGROUP_FOLDERS = ("pids", "memory", "unified", "")
"""Mount points of the hierarchies below /sys/fs/cgroup."""

_UID = rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}"
_MOUNT = re.compile(
    rb"^\d+ \d+ \S+ (?:/\S*)?/pods/(?P<uid>" + _UID + rb")/containers/"
    rb"(?P<name>[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)/[0-9a-f]{8} /dev/termination-log ",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class LiveContainers:
    """What was found about the requested containers."""

    names: dict[int, CgroupName] = field(default_factory=dict)
    """cgroup id -> name from its complete path, if the recorded levels were not enough."""
    mounts: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Container id -> pod UID and container name."""
    cut: bool = False
    """The deadline or MAX_PROCESSES ended the search."""


def read(
    paths: Mapping[int, str],
    names: Mapping[int, CgroupName],
    host_root: Path,
    proc: Path,
    deadline: float,
) -> LiveContainers:
    """Reads every process. `paths` are those that were recorded, `names` the parsed paths.

    `host_root` contains the host's sys/fs/cgroup, and `proc` the host's processes. `deadline` is
    on time.monotonic().
    """
    cut_off: dict[str, set[int]] = {}
    for number, path in paths.items():
        if not names[number].has_container and path.count("/") >= LEVELS:
            cut_off.setdefault(path, set()).add(number)
    wanted = {name.container_id for name in names.values()} - {UNKNOWN}
    live = LiveContainers()
    for count, pid in enumerate(_processes(proc)):
        if count >= MAX_PROCESSES or time.monotonic() > deadline:
            return replace(live, cut=True)
        path = cgroup_path.of_process(text_or_empty(proc / f"{pid}/cgroup"))
        name = cgroup_path.parse(path)
        if not name.known:
            continue
        if mine := cut_off.get("/" + "/".join(path.split("/")[-LEVELS:])):
            live.names.update(dict.fromkeys(mine & _inodes(host_root, path), name))
            wanted.add(name.container_id)
        if name.container_id in wanted and (text := bytes_or_empty(proc / f"{pid}/mountinfo")):
            wanted.discard(name.container_id)
            mounts = set(_MOUNT.findall(text))
            if len(mounts) == 1:
                uid, container = mounts.pop()
                live.mounts[name.container_id] = uid.decode(), container.decode()
    return live


def _inodes(host_root: Path, path: str) -> set[int]:
    """Returns the cgroup ids of a path now; the id of a cgroup is the inode of its directory.

    A cgroup that was created again has the same path and another id.
    """
    found = set()
    if ".." not in path.split("/"):
        for folder in CGROUP_FOLDERS:
            try:
                found.add((host_root / "sys/fs/cgroup" / folder / path.lstrip("/")).stat().st_ino)
            except OSError:
                continue
    return found


def _processes(proc: Path) -> Iterator[str]:
    try:
        with os.scandir(proc) as entries:
            yield from (entry.name for entry in entries if entry.name.isdecimal())
    except OSError:
        return
