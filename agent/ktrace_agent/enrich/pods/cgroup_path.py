# SPDX-License-Identifier: Apache-2.0
"""What a cgroup's path says: container, runtime, pod and quality of service.

Pure text. Paths come from the kernel, at most four levels deep and so often without their
beginning, or from /proc/PID/cgroup. Forms that are known (KUBEPODS is the kubelet's root,
ID 64 hexadecimal digits, UID a pod's, or the 32 digits of a static pod's hash):

    kubepods-burstable-podUID.slice/cri-containerd-ID.scope    systemd driver, UID with `_`
    kubepods/burstable/podUID/ID                               cgroupfs driver
    kubepods-podUID.slice:cri-containerd:ID                    both mixed up, one single name
    docker/ID, system.slice/docker-ID.scope, libpod-ID.scope   outside Kubernetes

Whatever stands before KUBEPODS (kind, k3d, a private cgroup namespace's `/../..`) and behind
ID (the groups that a systemd in the container makes) does not matter.
"""

import re
from dataclasses import dataclass

from ktrace_agent.host.cgroups import NAME_LEN
from ktrace_api.names import UNKNOWN

MIN_PREFIX = 12
"""Digits that a cut id must have to be told from all others of a node."""

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
"""What stands before the id -> name of the runtime."""
_PARENTS = {"docker": "docker", "k8s.io": "containerd", "libpod_parent": "podman"}

_UID = r"(?P<uid>[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})"
_POD_SLICE = re.compile(
    rf"(?:[^/]*-)?kubepods(?:-(?P<qos>besteffort|burstable))?-pod{_UID}\.slice", re.ASCII
)
_POD_FOLDER = re.compile(rf"pod{_UID}")
_CONTAINER = re.compile(r"(?:(?P<prefix>[a-z][a-z0-9.-]*)[-_])?(?P<id>[0-9a-f]{64})(?:\.scope)?")
_CUT_ID = re.compile(rf"[0-9a-f]{{{MIN_PREFIX},63}}")
_QOS = ("besteffort", "burstable")


@dataclass(frozen=True, slots=True)
class CgroupName:
    """What a path says; what it does not say is `-`."""

    container_id: str = UNKNOWN
    id_prefix: str = UNKNOWN
    """The first digits of an id that did not fit the kernel's record whole."""
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
        """Whether the path has the id of a container, at least its beginning."""
        return self.container_id != UNKNOWN or self.id_prefix != UNKNOWN


def parse(path: str) -> CgroupName:
    """Read a path; total: any text has an answer.

    The innermost pod counts (a kind node is a container itself) and the first container in it:
    what is below was made by that container. Without a pod the innermost container counts.
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
    """The path in a /proc/PID/cgroup that names the container: that of `pids` on cgroup v1.

    The same choice as the kernel side's, then `memory`, `name=systemd` and v2. "" without any.
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
    """Container id, no prefix, runtime; conmon is the monitor beside a container."""
    match = _CONTAINER.fullmatch(name)
    if match is None or (match["prefix"] or "").endswith("conmon"):
        return None
    runtime = RUNTIMES.get(match["prefix"] or "", UNKNOWN)
    return match["id"], UNKNOWN, runtime if match["prefix"] else _PARENTS.get(parent, UNKNOWN)


def _colon(level: str, prefix: str, number: str) -> tuple[str, str, str] | None:
    """`slice:runtime:id`: containerd without SystemdCgroup below a kubelet with it."""
    runtime = RUNTIMES.get(prefix, UNKNOWN)
    if prefix.endswith("conmon"):
        return None
    if re.fullmatch("[0-9a-f]{64}", number):
        return number, UNKNOWN, runtime
    if len(level.encode(errors="replace")) >= NAME_LEN - 1 and _CUT_ID.fullmatch(number):
        return UNKNOWN, number, runtime
    return None
