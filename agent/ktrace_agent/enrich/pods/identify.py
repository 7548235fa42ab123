# SPDX-License-Identifier: Apache-2.0
"""Which pod and container a cgroup is, without the API server.

The id and its path come from the kernel with the event, so that a process that lived 5 ms and
one in the host's network are told like any other. Names for it come from the runtime (CRI),
from the kubelet's folders and from /proc. All are compared: where two sources name a thing
differently the field stays `-` and a note says so; nothing is guessed.
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
from ktrace_agent.enrich.pods.watch import DEADLINE_S, Mode, Seen, Watch
from ktrace_api.names import UNKNOWN
from ktrace_api.row import PodIdentity

__all__ = ["Identities", "Mode", "Seen", "SocketFacts", "Sources", "Watch", "identify"]

MAX_NOTES = 20


@dataclass(frozen=True, slots=True)
class SocketFacts:
    """What one runtime socket gave, in the last look."""

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
    """Where names came from, for node.json."""

    sockets: tuple[SocketFacts, ...] = ()
    log_links: int = 0
    kubelet_pods: int = 0
    live_mounts: int = 0
    """Containers whose pod and name a live process showed."""
    looks: int = 0
    """Times that the sources were asked, during the capture and after it."""
    containers: int = 0
    """Cgroups of containers that had events; named of them: those whose pod is known."""
    named: int = 0
    contradictions: int = 0
    incomplete: tuple[str, ...] = ()
    """Limits that kept names away."""


@dataclass(frozen=True, slots=True)
class Identities:
    """Who each cgroup is; cgroups of neither a pod nor a container are not in it."""

    by_cgroup: Mapping[int, PodIdentity]
    notes: tuple[str, ...]
    sources: Sources


@dataclass(frozen=True, slots=True)
class _Claim:
    """What one source says about one cgroup."""

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
    seen: Seen | None = None,
    proc: Path = Path("/proc"),
) -> Identities:
    """Who each cgroup of a recording is (id -> path, as Recording.cgroups).

    mode: `false` asks no socket, `true` says in a note when none answered. `sockets`: those to
    ask, else cri.SOCKETS. `host_root`: where the host's / is seen; `proc`: one with the host's
    pids. `seen`: what a Watch gathered. Ends after `deadline_s` and what the last read took;
    never raises for what the sources say.
    """
    deadline = time.monotonic() + deadline_s
    seen = seen or Seen()
    names = {number: cgroup_path.parse(path) for number, path in paths.items()}
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="identity") as pool:
        looking = pool.submit(seen.look, mode, sockets, host_root, deadline)
        found = processes.read(paths, names, host_root, proc, deadline)
        looking.result()
    seen = seen.copy()
    names.update(found.names)
    _complete(names, sorted({*seen.containers, *seen.sandboxes, *seen.links}))

    by_cgroup, contradictions = {}, list[str]()
    for number, name in names.items():
        if name.known:
            by_cgroup[number] = _resolve(name, seen, found, contradictions.append)
    sources = _sources(seen, found, by_cgroup, len(contradictions))
    return Identities(by_cgroup, tuple(_notes(mode, sources, contradictions)), sources)


def _complete(names: dict[int, CgroupName], ids: Sequence[str]) -> None:
    """An id that the kernel's record cut is the one of `ids` (sorted) that begins so, if one."""
    for number, name in names.items():
        if name.id_prefix != UNKNOWN:
            first = bisect_left(ids, name.id_prefix)
            found = [one for one in ids[first : first + 2] if one.startswith(name.id_prefix)]
            if len(found) == 1:
                names[number] = replace(name, container_id=found[0])


def _claims(name: CgroupName, seen: Seen, found: processes.Live) -> Iterator[_Claim]:
    """What is said of this cgroup by its own id."""
    number = name.container_id
    yield _Claim("the cgroup", pod_uid=name.pod_uid)
    for container in seen.containers.get(number, ()):
        yield _Claim("CRI", container.pod_uid, container.namespace, container.pod, container.name)
    sandboxes = {container.sandbox_id for container in seen.containers.get(number, ())} | {number}
    for key in sandboxes:
        for sandbox in seen.sandboxes.get(key, ()):
            yield _Claim("CRI", sandbox.pod_uid, sandbox.namespace, sandbox.pod)
    for link in seen.links.get(number, ()):
        yield _Claim("/var/log/containers", link.pod_uid, link.namespace, link.pod, link.name)
    if number in found.mounts:
        uid, container_name = found.mounts[number]
        yield _Claim("/proc", pod_uid=uid, container=container_name)


def _resolve(
    name: CgroupName, seen: Seen, found: processes.Live, contradict: Callable[[str], None]
) -> PodIdentity:
    """The names that all sources agree on. A pod that they dispute has none at all."""
    claims = list(_claims(name, seen, found))
    what = f"container {name.container_id[:12]}"
    uid = _agreed("pod_uid", claims, what, contradict)
    if uid is None:
        return PodIdentity(container_id=name.container_id)
    claims += [
        _Claim(source, uid, namespace, pod) for source, namespace, pod in seen.pods.get(uid, ())
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
    """The one value that is claimed, `-` when none is, None (and a note) when several are."""
    said: dict[str, str] = {}
    for claim in claims:
        if (value := getattr(claim, of)) != UNKNOWN:
            said.setdefault(value, claim.source)
    if len(said) < 2:
        return next(iter(said), UNKNOWN)
    words = ", ".join(f"{source} says {value}" for value, source in said.items())
    contradict(f"{what}: its {of.replace('_', ' ')} is left unknown, {words}")
    return None


def _sources(
    seen: Seen, found: processes.Live, by_cgroup: Mapping[int, PodIdentity], contradictions: int
) -> Sources:
    limits = sorted(seen.limits)
    if found.cut:
        limits.append("there was no time to look at every process")
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
            for answer in seen.answers.values()
        ),
        log_links=len(seen.links),
        kubelet_pods=sum(any(said[0] != "CRI" for said in pod) for pod in seen.pods.values()),
        live_mounts=len(found.mounts),
        looks=seen.looks,
        containers=len(by_cgroup),
        named=sum(one.pod != UNKNOWN for one in by_cgroup.values()),
        contradictions=contradictions,
        incomplete=tuple(limits),
    )


def _notes(mode: Mode, sources: Sources, contradictions: Sequence[str]) -> Iterator[str]:
    """Plain sentences, at most MAX_NOTES."""
    asked = sources.sockets
    if mode == "true" and not any(one.state is CriState.ANSWERED for one in asked):
        yield "No container runtime answered: names come from the kubelet's folders and /proc only."
    for one in asked:
        if one.state is not CriState.ANSWERED:
            yield f"{one.socket} gave no names: {one.state}, {one.detail}."
        elif one.bad:
            yield (
                f"{one.socket}: {one.bad} items could not be read or contradict themselves,"
                " they name nothing."
            )
    yield from (f"Names may be missing: {limit}." for limit in sources.incomplete)
    room = MAX_NOTES - len(asked) - len(sources.incomplete) - 2
    yield from (f"Contradiction, {words}." for words in contradictions[:room])
    if len(contradictions) > room:
        yield f"{len(contradictions) - room} more contradictions are not listed."
