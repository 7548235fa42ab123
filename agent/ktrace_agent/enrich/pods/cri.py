# SPDX-License-Identifier: Apache-2.0
"""Queries a container runtime for pods and containers: CRI v1 or v1alpha2 over its unix socket.

Makes three calls without arguments: Version, ListPodSandbox, ListContainers. Together they
return by the caller's deadline, even if the socket never responds.
"""

import os
import re
import stat
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ktrace_agent.enrich.pods.cri_wire import Container, Sandbox, container, items, sandbox, texts
from ktrace_api.names import UNKNOWN

SOCKETS = (
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/k0s/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
    "/run/cri-dockerd.sock",
    "/var/run/cri-dockerd.sock",
)
"""Default sockets of containerd, CRI-O, k3s, k0s, microk8s and cri-dockerd."""
VERSIONS = ("v1", "v1alpha2")
MAX_ANSWER = 16 << 20
"""Maximum size of an answer in bytes; containerd sends no larger one."""

_NOT_PRINTABLE = re.compile(r"[^ -~]+")


class CriState(StrEnum):
    """Result of querying a socket."""

    ANSWERED = "answered"
    MISSING = "missing"
    """The path does not exist or is not a socket."""
    DENIED = "denied"
    UNREACHABLE = "unreachable"
    """No process listens, or it closed the connection."""
    TIMEOUT = "timeout"
    UNIMPLEMENTED = "unimplemented"
    """The server implements neither v1 nor v1alpha2, such as a containerd without CRI."""
    FAILED = "failed"
    """The server returned an error, for example while it starts."""
    GARBAGE = "garbage"
    """The answer is not a valid CRI message."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one socket returned."""

    socket: str
    state: CriState
    detail: str = UNKNOWN
    """Error of the runtime or the kernel if there is no answer."""
    api: str = UNKNOWN
    runtime: str = UNKNOWN
    version: str = UNKNOWN
    sandboxes: tuple[Sandbox, ...] = ()
    containers: tuple[Container, ...] = ()
    bad: int = 0
    """Invalid items, which were ignored."""
    left_out: int = 0
    """Items beyond MAX_ITEMS, which were ignored."""
    worked_s: float = field(default=0.0, compare=False)
    """CPU time of this process in seconds."""


def find(sockets: Sequence[str], host_root: Path) -> list[tuple[str, Path, CriState | None]]:
    """Returns, for each socket, its name, its path, and why it cannot be queried (None: it can).

    Names may begin with `unix://`. Without names, returns the existing ones of SOCKETS, without
    duplicates.
    """
    found: list[tuple[str, Path, CriState | None]] = []
    seen = set()
    for name in sockets or SOCKETS:
        path = host_root / name.removeprefix("unix://").lstrip("/")
        try:
            facts = path.stat()
        except PermissionError:
            found.append((name, path, CriState.DENIED))
            continue
        except (OSError, ValueError):
            facts = None
        if facts is None or not stat.S_ISSOCK(facts.st_mode):
            if sockets:
                found.append((name, path, CriState.MISSING))
        elif (key := (facts.st_dev, facts.st_ino)) not in seen:
            seen.add(key)
            found.append((name, path, None))
    return found


def query_all(sockets: Sequence[str], host_root: Path, deadline: float) -> list[Answer]:
    """Queries all sockets in parallel, so that one that does not respond delays no other.

    `deadline` is on time.monotonic().
    """
    places = find(sockets, host_root)
    if not any(state is None for _, _, state in places):
        return [Answer(name, state or CriState.MISSING) for name, _, state in places]
    with ThreadPoolExecutor(max_workers=len(places), thread_name_prefix="cri") as pool:
        return list(
            pool.map(
                lambda place: (
                    Answer(place[0], place[2]) if place[2] else query(place[0], place[1], deadline)
                ),
                places,
            )
        )


def query(name: str, path: Path, deadline: float) -> Answer:
    """Returns version, sandboxes and containers of one socket. Returns by the deadline.

    Never raises: the state of the answer has the error.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's core would log to the terminal
    import grpc

    begun = time.thread_time()
    options = [
        ("grpc.max_receive_message_length", MAX_ANSWER),
        ("grpc.use_local_subchannel_pool", 1),  # no back-off from an earlier poll
        ("grpc.enable_http_proxy", 0),
        ("grpc.default_authority", "localhost"),
    ]
    target = f"unix://{quote(str(path.absolute()))}"
    with grpc.insecure_channel(target, options=options) as channel:

        def call(api: str, method: str) -> bytes:
            full_name = f"/runtime.{api}.RuntimeService/{method}"
            request: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(full_name)
            return request(b"", timeout=max(deadline - time.monotonic(), 0.001))

        try:
            answer = _query(name, call, grpc)
        except grpc.RpcError as error:
            answer = Answer(name, *_failure(error, grpc))
        except ValueError as error:
            answer = Answer(name, CriState.GARBAGE, _printable(str(error)))
    return replace(answer, worked_s=time.thread_time() - begun)


def _query(name: str, call: Callable[[str, str], bytes], grpc: Any) -> Answer:
    for api in VERSIONS:
        try:
            version = texts(call(api, "Version"), 2, 3)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED and api != VERSIONS[-1]:
                continue
            raise
        break
    sandboxes, bad_sandboxes, more_sandboxes = items(call(api, "ListPodSandbox"), sandbox)
    containers, bad_containers, more_containers = items(call(api, "ListContainers"), container)
    return Answer(
        name,
        CriState.ANSWERED,
        api=api,
        runtime=_printable(version[0]),
        version=_printable(version[1]),
        sandboxes=tuple(sandboxes),
        containers=tuple(containers),
        bad=bad_sandboxes + bad_containers,
        left_out=more_sandboxes + more_containers,
    )


def _failure(error: Any, grpc: Any) -> tuple[CriState, str]:
    code = grpc.StatusCode
    states = {
        code.DEADLINE_EXCEEDED: CriState.TIMEOUT,
        code.UNIMPLEMENTED: CriState.UNIMPLEMENTED,
        code.UNAVAILABLE: CriState.UNREACHABLE,
        code.PERMISSION_DENIED: CriState.DENIED,
        code.UNAUTHENTICATED: CriState.DENIED,
    }
    detail = _printable(f"{error.code().name}: {error.details()}")
    if "Permission denied" in detail:
        return CriState.DENIED, detail
    return states.get(error.code(), CriState.FAILED), detail


def _printable(text: str) -> str:
    """Reduces text of the runtime to printable ASCII and 200 characters."""
    return _NOT_PRINTABLE.sub(" ", text)[:200].strip() or UNKNOWN
