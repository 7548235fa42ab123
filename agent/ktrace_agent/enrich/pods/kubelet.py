# SPDX-License-Identifier: Apache-2.0
"""Reads names of pods and containers from the kubelet's directories; needs no socket.

    /var/log/containers/POD_NAMESPACE_CONTAINER-ID.log -> .../pods/NAMESPACE_POD_UID/...
    /var/log/pods/NAMESPACE_POD_UID/CONTAINER/
    /var/lib/kubelet/pods/UID/containers/CONTAINER/

Only file names are read. The first maps a container id to its names. The others list the names
of a pod and its containers, but without container ids.
"""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ktrace_api.names import UNKNOWN

LINKS = "var/log/containers"
LOGS = "var/log/pods"
PODS = "var/lib/kubelet/pods"
MAX_ENTRIES = 20_000
"""Maximum number of names read from each directory, and from all its subdirectories."""

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_POD_NAME = r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?"
_UID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}"
_LINK = re.compile(
    rf"(?P<pod>{_POD_NAME})_(?P<namespace>{_LABEL})_(?P<name>{_LABEL})-(?P<id>[0-9a-f]{{64}})\.log"
)
_LOG = re.compile(rf"(?P<namespace>{_LABEL})_(?P<pod>{_POD_NAME})_(?P<uid>{_UID})")
_POD = re.compile(_UID)
_CONTAINER = re.compile(_LABEL)


@dataclass(frozen=True, slots=True)
class LogLink:
    """A link in /var/log/containers; pod_uid is `-` if the link's target does not contain it."""

    container_id: str
    namespace: str
    pod: str
    name: str
    pod_uid: str


@dataclass(frozen=True, slots=True)
class Folders:
    """The contents of the kubelet's directories."""

    links: tuple[LogLink, ...] = ()
    pods: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Pod UID -> namespace and name."""
    containers: dict[str, frozenset[str]] = field(default_factory=dict)
    """Pod UID -> names of its containers, from both directories."""
    cut: bool = False
    """MAX_ENTRIES or the deadline ended the reading."""


def read(host_root: Path, deadline: float) -> Folders:
    """Reads the directories that exist. `deadline` is on time.monotonic()."""
    reader = _Reader(deadline)
    links = [link for entry in reader.names(host_root / LINKS) if (link := _link(host_root, entry))]
    pods: dict[str, tuple[str, str]] = {}
    containers: dict[str, set[str]] = {}
    below = _Reader(deadline)
    for name in reader.names(host_root / LOGS):
        if match := _LOG.fullmatch(name):
            uid = match["uid"]
            pods[uid] = match["namespace"], match["pod"]
            containers.setdefault(uid, set()).update(
                below.matching(host_root / LOGS / name, _CONTAINER)
            )
    for uid in reader.matching(host_root / PODS, _POD):
        containers.setdefault(uid, set()).update(
            below.matching(host_root / PODS / uid / "containers", _CONTAINER)
        )
    return Folders(
        links=tuple(links),
        pods=pods,
        containers={uid: frozenset(names) for uid, names in containers.items()},
        cut=reader.cut or below.cut,
    )


class _Reader:
    """Lists directories up to a total number of entries."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._left = 3 * MAX_ENTRIES
        self.cut = False

    def names(self, folder: Path) -> Iterator[str]:
        try:
            with os.scandir(folder) as entries:
                for number, entry in enumerate(entries):
                    late = number % 256 == 0 and time.monotonic() > self._deadline
                    if late or self._left <= 0 or number >= MAX_ENTRIES:
                        self.cut = True
                        return
                    self._left -= 1
                    yield entry.name
        except OSError:
            return

    def matching(self, folder: Path, form: re.Pattern[str]) -> Iterator[str]:
        return (name for name in self.names(folder) if form.fullmatch(name))


def _link(host_root: Path, name: str) -> LogLink | None:
    match = _LINK.fullmatch(name)
    if match is None:
        return None
    try:
        target = (host_root / LINKS / name).readlink().parts
    except OSError:
        target = tuple[str, ...]()
    folder = _LOG.fullmatch(target[-3]) if len(target) > 2 else None
    if folder and (folder["namespace"], folder["pod"]) != (match["namespace"], match["pod"]):
        return None
    return LogLink(
        container_id=match["id"],
        namespace=match["namespace"],
        pod=match["pod"],
        name=match["name"],
        pod_uid=folder["uid"] if folder else UNKNOWN,
    )
