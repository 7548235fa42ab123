# SPDX-License-Identifier: Apache-2.0
"""What /proc says of containers that still live.

/proc/PID/cgroup has the whole path where the kernel side kept four levels of it, and the
kubelet mounts `pods/UID/containers/NAME/HASH` of its folder into each container as
/dev/termination-log: a process's mountinfo tells its pod and container without any socket.
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
"""Where a hierarchy is mounted below /sys/fs/cgroup."""

_UID = rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}"
_MOUNT = re.compile(
    rb"^\d+ \d+ \S+ (?:/\S*)?/pods/(?P<uid>" + _UID + rb")/containers/"
    rb"(?P<name>[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)/[0-9a-f]{8} /dev/termination-log ",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Live:
    """What was found of the containers that were asked for."""

    names: dict[int, CgroupName] = field(default_factory=dict)
    """cgroup id -> what its whole path says, where the kernel's four levels did not tell."""
    mounts: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Container id -> pod uid and container name."""
    cut: bool = False
    """Time or MAX_PROCESSES ended the search."""


def read(
    paths: Mapping[int, str],
    names: Mapping[int, CgroupName],
    host_root: Path,
    proc: Path,
    deadline: float,
) -> Live:
    """Look at every process; `paths` are the kernel's, `names` what they say.

    `host_root` has the host's sys/fs/cgroup, `proc` its pids; `deadline` is of time.monotonic().
    """
    cut_off: dict[str, set[int]] = {}
    for number, path in paths.items():
        if not names[number].has_container and path.count("/") >= LEVELS:
            cut_off.setdefault(path, set()).add(number)
    wanted = {name.container_id for name in names.values()} - {UNKNOWN}
    live = Live()
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
    """A cgroup's id is the inode of its folder (64 bits): the same path may be another by now."""
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
