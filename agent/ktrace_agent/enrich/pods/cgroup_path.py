# SPDX-License-Identifier: Apache-2.0
"""Parses the path of a cgroup: container, runtime, pod and quality of service.

Pure. Paths are recorded by the BPF programs (the innermost four levels) or read from
/proc/PID/cgroup. Supported forms (ID: 64 hexadecimal digits; UID: that of a pod, or the 32
hexadecimal digits of a static pod's hash):

    kubepods-burstable-podUID.slice/cri-containerd-ID.scope    systemd driver, UID with `_`
    kubepods/burstable/podUID/ID                               cgroupfs driver
    kubepods-podUID.slice:cri-containerd:ID                    both combined in one name
    docker/ID, system.slice/docker-ID.scope, libpod-ID.scope   outside Kubernetes

Levels above `kubepods` (kind, k3d, `/../..` of a private cgroup namespace) and below ID (groups
that a systemd in the container creates) are ignored.
"""

import re
from dataclasses import dataclass

from ktrace_agent.host.cgroups import NAME_LEN
from ktrace_api.names import UNKNOWN

MIN_PREFIX = 12
"""Minimum digits of a truncated id that identify a container on a node."""

RUNTIMES = {
    "cri-containerd": "containerd",
    "containerd": "containerd",
    "nerdctl": "containerd",
    "crio": "cri-o",
    "cri-o": "cri-o",
    "docker": "docker",
    "libpod": "podman",
    "libpod-payload": "podman",
}
"""Prefix of the id -> name of the runtime."""
_PARENTS = {"docker": "docker", "k8s.io": "containerd", "libpod_parent": "podman"}

_UID = r"(?P<uid>[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})"
_POD_SLICE = re.compile(
    rf"(?:[^/]*-)?kubepods(?:-(?P<qos>besteffort|burstable))?-pod{_UID}\.slice", re.ASCII
)
_POD_FOLDER = re.compile(rf"pod{_UID}")
_CONTAINER = re.compile(r"(?:(?P<prefix>[a-z][a-z0-9.-]*)[-_])?(?P<id>[0-9a-f]{64})(?:\.scope)?")
_TRUNCATED_ID = re.compile(rf"[0-9a-f]{{{MIN_PREFIX},63}}")
_QOS = ("besteffort", "burstable")


@dataclass(frozen=True, slots=True)
class CgroupName:
    """The parts of a path; `-` = not in the path."""

    container_id: str = UNKNOWN
    id_prefix: str = UNKNOWN
    """First digits of an id that the BPF programs recorded truncated."""
    runtime: str = UNKNOWN
    """containerd, cri-o, docker, podman."""
    pod_uid: str = UNKNOWN
    qos: str = UNKNOWN
    """guaranteed, burstable, besteffort."""

    @property
    def known(self) -> bool:
        """Whether the path is that of a container or a pod."""
        return self.has_container or self.pod_uid != UNKNOWN

    @property
    def has_container(self) -> bool:
        """Whether the path has the id of a container, complete or truncated."""
        return self.container_id != UNKNOWN or self.id_prefix != UNKNOWN


def parse(path: str) -> CgroupName:
    """Parses a path; never raises.

    Uses the innermost pod, because a kind node is a container itself, and the outermost
    container in that pod, because the levels below were created by the container. Without a pod
    it uses the innermost container.
    """
    found, parent = CgroupName(), ""
    for level in path.split("/"):
        name, *rest = level.split(":")
        if pod := _pod(name, parent):
            found = pod
        container = _colon(level, *rest) if len(rest) == 2 else _container(level, parent)
        if container and (found.pod_uid == UNKNOWN or not found.has_container):
            found = CgroupName(*container, found.pod_uid, found.qos)
        parent = level
    return found


def of_process(text: str) -> str:
    """Returns the path in a /proc/PID/cgroup that contains the container id, or "".

    On cgroup v1 it is that of `pids`, as in the BPF programs, then of `memory`, `name=systemd` and
    the v2 hierarchy.
    """
    paths = {}
    for line in text.splitlines():
        match line.split(":", 2):
            case [_, controllers, path]:
                paths.update(dict.fromkeys(controllers.split(","), path))
    for controller in ("pids", "memory", "name=systemd", ""):
        if paths.get(controller, "/") != "/":
            return paths[controller]
    return next((paths[name] for name in ("pids", "memory", "") if name in paths), "")


def _pod(name: str, parent: str) -> CgroupName | None:
    if match := _POD_SLICE.fullmatch(name):
        qos = match["qos"] or "guaranteed"
    elif match := _POD_FOLDER.fullmatch(name):
        guaranteed = "guaranteed" if parent.endswith("kubepods") else UNKNOWN
        qos = parent if parent in _QOS else guaranteed
    else:
        return None
    return CgroupName(pod_uid=match["uid"].replace("_", "-"), qos=qos)


def _container(name: str, parent: str) -> tuple[str, str, str] | None:
    """Returns container id, no prefix, runtime. conmon is a monitor process, not the container."""
    match = _CONTAINER.fullmatch(name)
    if match is None or (match["prefix"] or "").endswith("conmon"):
        return None
    runtime = RUNTIMES.get(match["prefix"] or "", UNKNOWN)
    return match["id"], UNKNOWN, runtime if match["prefix"] else _PARENTS.get(parent, UNKNOWN)


def _colon(level: str, prefix: str, number: str) -> tuple[str, str, str] | None:
    """Parses `slice:runtime:id`: containerd without SystemdCgroup, kubelet with it."""
    runtime = RUNTIMES.get(prefix, UNKNOWN)
    if prefix.endswith("conmon"):
        return None
    if re.fullmatch("[0-9a-f]{64}", number):
        return number, UNKNOWN, runtime
    if len(level.encode(errors="replace")) >= NAME_LEN - 1 and _TRUNCATED_ID.fullmatch(number):
        return UNKNOWN, number, runtime
    return None
