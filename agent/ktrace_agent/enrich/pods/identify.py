# SPDX-License-Identifier: Apache-2.0
"""Finds the pod and container of each cgroup, without the API server.

The BPF programs record the id and path of the cgroup with the event. So processes that live for
5 ms, and processes in the host's network namespace, are found like all others. Names are from
the runtime (CRI), from the kubelet's directories and from /proc. If two sources disagree about a
field, it is `-` and a note reports both values.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from ktrace_agent.enrich.pods import cgroup_path, processes
from ktrace_agent.enrich.pods.cgroup_path import CgroupName
from ktrace_agent.enrich.pods.cri import CriState
from ktrace_agent.enrich.pods.processes import LiveContainers
from ktrace_agent.enrich.pods.watch import DEADLINE_S, Mode, PodMetadata
from ktrace_api.names import UNKNOWN
from ktrace_api.row import PodIdentity

MAX_NOTES = 20
_LABELS = {
    "pod_uid": "pod UID",
    "namespace": "namespace",
    "pod": "pod name",
    "container": "container name",
}


@dataclass(frozen=True, slots=True)
class SocketFacts:
    """Last answer of one runtime socket."""

    socket: str
    state: CriState
    detail: str
    api: str
    runtime: str
    version: str
    sandboxes: int
    containers: int
    bad: int
    left_out: int


@dataclass(frozen=True, slots=True)
class Sources:
    """Where names are from, for node.json."""

    sockets: tuple[SocketFacts, ...] = ()
    log_links: int = 0
    kubelet_pods: int = 0
    live_mounts: int = 0
    """Containers whose pod and name were found in the mountinfo of a process."""
    looks: int = 0
    """Polls of the sources, during the capture and after it."""
    containers: int = 0
    """Cgroups of containers or pods with events; `named`: those whose pod name is known."""
    named: int = 0
    contradictions: int = 0
    incomplete: tuple[str, ...] = ()
    """Limits that were reached, so that names may be missing."""


@dataclass(frozen=True, slots=True)
class Identities:
    """Pod and container of each cgroup, if it belongs to one."""

    by_cgroup: Mapping[int, PodIdentity]
    notes: tuple[str, ...]
    sources: Sources


@dataclass(frozen=True, slots=True)
class _Claim:
    """What one source reports about one cgroup."""

    source: str
    pod_uid: str = UNKNOWN
    namespace: str = UNKNOWN
    pod: str = UNKNOWN
    container: str = UNKNOWN


def identify(
    paths: Mapping[int, str],
    *,
    mode: Mode = "auto",
    sockets: Sequence[str] = (),
    host_root: Path = Path("/"),
    deadline_s: float = DEADLINE_S,
    metadata: PodMetadata | None = None,
    proc: Path = Path("/proc"),
) -> Identities:
    """Finds the pod and container of each cgroup of a recording.

    paths: id -> path, as in Recording.cgroups. mode: `false` queries no socket; `true` adds a
    note if no socket answers. sockets: those to query, default cri.SOCKETS. host_root: where the
    host's / is mounted. proc: a /proc with the host's processes. metadata: that of a Watch.

    Returns after `deadline_s` and the duration of one read. No content of a source makes it raise.
    """
    deadline = time.monotonic() + deadline_s
    metadata = metadata or PodMetadata()
    names = {number: cgroup_path.parse(path) for number, path in paths.items()}
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="identity") as pool:
        polling = pool.submit(metadata.poll, mode, sockets, host_root, deadline)
        found = processes.read(paths, names, host_root, proc, deadline)
        polling.result()
    metadata = metadata.copy()
    names.update(found.names)
    _complete(names, sorted({*metadata.containers, *metadata.sandboxes, *metadata.links}))

    by_cgroup, contradictions = {}, list[str]()
    for number, name in names.items():
        if name.known:
            by_cgroup[number] = _resolve(name, metadata, found, contradictions.append)
    sources = _sources(metadata, found, by_cgroup, len(contradictions))
    return Identities(by_cgroup, tuple(_notes(mode, sources, contradictions)), sources)


def _complete(names: dict[int, CgroupName], ids: Sequence[str]) -> None:
    """Completes each truncated id if exactly one of `ids` (sorted) begins with it."""
    for number, name in names.items():
        if name.id_prefix != UNKNOWN:
            first = bisect_left(ids, name.id_prefix)
            found = [one for one in ids[first : first + 2] if one.startswith(name.id_prefix)]
            if len(found) == 1:
                names[number] = replace(name, container_id=found[0])


def _claims(name: CgroupName, metadata: PodMetadata, found: LiveContainers) -> Iterator[_Claim]:
    """Yields what each source reports about the id of this cgroup."""
    number = name.container_id
    yield _Claim("the cgroup", pod_uid=name.pod_uid)
    for container in metadata.containers.get(number, ()):
        yield _Claim("CRI", container.pod_uid, container.namespace, container.pod, container.name)
    sandboxes = {one.sandbox_id for one in metadata.containers.get(number, ())} | {number}
    for key in sandboxes:
        for sandbox in metadata.sandboxes.get(key, ()):
            yield _Claim("CRI", sandbox.pod_uid, sandbox.namespace, sandbox.pod)
    for link in metadata.links.get(number, ()):
        yield _Claim("/var/log/containers", link.pod_uid, link.namespace, link.pod, link.name)
    if number in found.mounts:
        uid, container_name = found.mounts[number]
        yield _Claim("/proc", pod_uid=uid, container=container_name)


def _resolve(
    name: CgroupName,
    metadata: PodMetadata,
    found: LiveContainers,
    contradict: Callable[[str], None],
) -> PodIdentity:
    """Returns the names that all sources agree on.

    If the sources disagree about the pod, no names are given.
    """
    claims = list(_claims(name, metadata, found))
    what = f"container {name.container_id[:12]}"
    uid = _agreed("pod_uid", claims, what, contradict)
    if uid is None:
        return PodIdentity(container_id=name.container_id)
    claims += [
        _Claim(source, uid, namespace, pod) for source, namespace, pod in metadata.pods.get(uid, ())
    ]
    if name.container_id == UNKNOWN:
        what = f"pod {uid}"
    return PodIdentity(
        pod_uid=uid,
        namespace=_agreed("namespace", claims, what, contradict) or UNKNOWN,
        pod=_agreed("pod", claims, what, contradict) or UNKNOWN,
        container=_agreed("container", claims, what, contradict) or UNKNOWN,
        container_id=name.container_id,
    )


def _agreed(
    of: str, claims: Sequence[_Claim], what: str, contradict: Callable[[str], None]
) -> str | None:
    """Returns the claimed value, `-` if there is none, or None and a note if there are several."""
    reported: dict[str, str] = {}
    for claim in claims:
        if (value := getattr(claim, of)) != UNKNOWN:
            reported.setdefault(value, claim.source)
    if len(reported) < 2:
        return next(iter(reported), UNKNOWN)
    values = ", ".join(f"{source} reports {value}" for value, source in sorted(reported.items()))
    contradict(f"Sources disagree on the {_LABELS[of]} of {what}, so it is unknown: {values}.")
    return None


def _sources(
    metadata: PodMetadata,
    found: LiveContainers,
    by_cgroup: Mapping[int, PodIdentity],
    contradictions: int,
) -> Sources:
    limits = sorted(metadata.limits)
    if found.cut:
        limits.append("the deadline passed before all processes were read")
    return Sources(
        sockets=tuple(
            SocketFacts(
                socket=answer.socket,
                state=answer.state,
                detail=answer.detail,
                api=answer.api,
                runtime=answer.runtime,
                version=answer.version,
                sandboxes=len(answer.sandboxes),
                containers=len(answer.containers),
                bad=answer.bad,
                left_out=answer.left_out,
            )
            for answer in metadata.answers.values()
        ),
        log_links=len(metadata.links),
        kubelet_pods=sum(any(claim[0] != "CRI" for claim in pod) for pod in metadata.pods.values()),
        live_mounts=len(found.mounts),
        looks=metadata.polls,
        containers=len(by_cgroup),
        named=sum(one.pod != UNKNOWN for one in by_cgroup.values()),
        contradictions=contradictions,
        incomplete=tuple(limits),
    )


def _notes(mode: Mode, sources: Sources, contradictions: Sequence[str]) -> Iterator[str]:
    """Yields up to MAX_NOTES sentences."""
    sockets = sources.sockets
    if mode == "true" and not any(one.state is CriState.ANSWERED for one in sockets):
        yield (
            "No container runtime answered; names are from the kubelet's directories and /proc"
            " only."
        )
    for one in sockets:
        if one.state is not CriState.ANSWERED:
            detail = "" if one.detail == UNKNOWN else f" ({one.detail})"
            yield f"Runtime socket {one.socket} returned no names: {one.state}{detail}."
        elif one.bad:
            yield (
                f"Runtime socket {one.socket}: {one.bad} items were ignored because they are"
                " invalid or contradict themselves."
            )
    yield from (f"Names may be missing: {limit}." for limit in sources.incomplete)
    left = MAX_NOTES - len(sockets) - len(sources.incomplete) - 2
    yield from contradictions[:left]
    if len(contradictions) > left:
        yield f"{len(contradictions) - left} more disagreements are not listed."
