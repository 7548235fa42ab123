# SPDX-License-Identifier: Apache-2.0
"""Names of pods and containers from the runtime: CRI v1 or v1alpha2 over its unix socket.

Three calls without arguments: Version, ListPodSandbox, ListContainers. All of them together
end at the caller's deadline, whatever the socket does.
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
"""Where runtimes listen: containerd, CRI-O, k3s, k0s, microk8s, cri-dockerd."""
VERSIONS = ("v1", "v1alpha2")
MAX_ANSWER = 16 << 20
"""Bytes of one answer: what containerd itself sends at most."""

_NO_TEXT = re.compile(r"[^ -~]+")


class CriState(StrEnum):
    """How a socket answered."""

    ANSWERED = "answered"
    MISSING = "missing"
    """Nothing is there, or no socket."""
    DENIED = "denied"
    UNREACHABLE = "unreachable"
    """Nobody listens, or the listener went away."""
    TIMEOUT = "timeout"
    UNIMPLEMENTED = "unimplemented"
    """Someone listens who speaks neither v1 nor v1alpha2: a containerd without CRI."""
    FAILED = "failed"
    """It answered with an error, such as while it starts."""
    GARBAGE = "garbage"
    """What it answered is none of CRI's messages."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one socket had to say."""

    socket: str
    state: CriState
    detail: str = UNKNOWN
    """The runtime's or the kernel's words where there was no answer."""
    api: str = UNKNOWN
    runtime: str = UNKNOWN
    version: str = UNKNOWN
    sandboxes: tuple[Sandbox, ...] = ()
    containers: tuple[Container, ...] = ()
    bad: int = 0
    """Items that could not be read."""
    left_out: int = 0
    """Items beyond MAX_ITEMS."""
    worked_s: float = field(default=0.0, compare=False)
    """Seconds of CPU in this process."""


def find(sockets: Sequence[str], host_root: Path) -> list[tuple[str, Path, CriState | None]]:
    """Sockets in the order to try: as named, where it is, and why it cannot be asked.

    Names may carry `unix://`. None named: those of SOCKETS that exist, each once.
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


def ask_all(sockets: Sequence[str], host_root: Path, deadline: float) -> list[Answer]:
    """Ask every socket that is there, at the same time: a hanging one hides no other.

    `deadline` is of time.monotonic().
    """
    places = find(sockets, host_root)
    if not any(state is None for _, _, state in places):
        return [Answer(name, state or CriState.MISSING) for name, _, state in places]
    with ThreadPoolExecutor(max_workers=len(places), thread_name_prefix="cri") as pool:
        return list(
            pool.map(
                lambda place: (
                    Answer(place[0], place[2]) if place[2] else ask(place[0], place[1], deadline)
                ),
                places,
            )
        )


def ask(name: str, path: Path, deadline: float) -> Answer:
    """Version, sandboxes and containers of one socket. Never raises, ends at the deadline."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its core logs to the user's terminal
    import grpc

    begun = time.thread_time()
    options = [
        ("grpc.max_receive_message_length", MAX_ANSWER),
        ("grpc.use_local_subchannel_pool", 1),  # no back-off from an earlier try
        ("grpc.enable_http_proxy", 0),
        ("grpc.default_authority", "localhost"),
    ]
    target = f"unix://{quote(str(path.absolute()))}"
    with grpc.insecure_channel(target, options=options) as channel:

        def call(api: str, method: str) -> bytes:
            full_name = f"/runtime.{api}.RuntimeService/{method}"
            ask_for: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(full_name)
            return ask_for(b"", timeout=max(deadline - time.monotonic(), 0.001))

        try:
            answer = _converse(name, call, grpc)
        except grpc.RpcError as error:
            answer = Answer(name, *_failure(error, grpc))
        except ValueError as error:
            answer = Answer(name, CriState.GARBAGE, _plain(str(error)))
    return replace(answer, worked_s=time.thread_time() - begun)


def _converse(name: str, call: Callable[[str, str], bytes], grpc: Any) -> Answer:
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
        runtime=_plain(version[0]),
        version=_plain(version[1]),
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
    detail = _plain(f"{error.code().name}: {error.details()}")
    if "Permission denied" in detail:
        return CriState.DENIED, detail
    return states.get(error.code(), CriState.FAILED), detail


def _plain(text: str) -> str:
    """Foreign words for people: printable ASCII, at most 200 characters."""
    return _NO_TEXT.sub(" ", text)[:200].strip() or UNKNOWN
