# SPDX-License-Identifier: Apache-2.0
"""Collects reports of runtime and kubelet during a capture, so that removed pods have names."""

import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from ktrace_agent.enrich.pods import cri, kubelet
from ktrace_agent.enrich.pods.cri import Answer
from ktrace_agent.enrich.pods.cri_wire import MAX_ITEMS, Container, Sandbox
from ktrace_agent.enrich.pods.kubelet import Folders, LogLink
from ktrace_agent.enrich.poller import Poller
from ktrace_api.names import UNKNOWN

Mode = Literal["auto", "true", "false"]
T = TypeVar("T")

DEADLINE_S = 1.5
"""For all sources together: a socket that does not respond costs a capture less than 2 s."""
FOLDERS_S = 0.5
"""Maximum time for the kubelet's directories."""
PERIOD_S = 0.5
"""Time between two polls; the kubelet itself polls the runtime once a second."""
MAX_PAUSE_S = 10.0
MAX_KNOWN = 20_000
"""Maximum number of containers, sandboxes, log links and pods each."""
MAX_CLAIMS = 8
"""Maximum number of different claims about one id; two already contradict each other."""


class PodMetadata:
    """Everything that runtime and kubelet have reported, including pods that were removed.

    Different reports about one id are kept side by side.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.sandboxes: dict[str, set[Sandbox]] = {}
        self.containers: dict[str, set[Container]] = {}
        self.links: dict[str, set[LogLink]] = {}
        self.pods: dict[str, set[tuple[str, str, str]]] = {}
        """Pod UID -> source, namespace, name."""
        self.answers: dict[str, Answer] = {}
        """Last answer of each socket."""
        self.polls = 0
        self.limits: set[str] = set()
        """Reasons why names may be missing, as parts of a sentence."""

    def poll(self, mode: Mode, sockets: Sequence[str], host_root: Path, deadline: float) -> float:
        """Queries all sources once; returns the seconds of CPU time.

        Returns by `deadline`, which is on time.monotonic().
        """
        begun = time.thread_time()
        folders = kubelet.read(host_root, min(deadline, time.monotonic() + FOLDERS_S))
        answers = [] if mode == "false" else cri.query_all(sockets, host_root, deadline)
        self.add(folders, answers)
        return time.thread_time() - begun + sum(answer.worked_s for answer in answers)

    def add(self, folders: Folders, answers: Iterable[Answer]) -> None:
        with self._lock:
            self.polls += 1
            for link in folders.links:
                self._keep(self.links, link.container_id, link)
            for uid, (namespace, pod) in folders.pods.items():
                self._keep(self.pods, uid, ("kubelet", namespace, pod))
            if folders.cut:
                self.limits.add("the kubelet's directories have more entries than were read")
            for answer in answers:
                self.answers[answer.socket] = answer
                for sandbox in answer.sandboxes:
                    self._keep(self.sandboxes, sandbox.id, sandbox)
                    names = ("CRI", sandbox.namespace, sandbox.pod)
                    self._keep(self.pods, sandbox.pod_uid, names)
                for container in answer.containers:
                    self._keep(self.containers, container.id, container)
                if answer.left_out:
                    self.limits.add(f"{answer.socket} lists more than {MAX_ITEMS} items")

    def _keep(self, known: dict[str, set[T]], key: str, claim: T) -> None:
        if key == UNKNOWN:
            return
        if key not in known and len(known) >= MAX_KNOWN:
            self.limits.add(f"more than {MAX_KNOWN} containers or pods were reported")
            return
        claims = known.setdefault(key, set())
        if len(claims) < MAX_CLAIMS:
            claims.add(claim)

    def copy(self) -> "PodMetadata":
        """Returns a snapshot: a poll that is still in progress may change the original."""
        other = PodMetadata()
        with self._lock:
            other.sandboxes = {key: set(claims) for key, claims in self.sandboxes.items()}
            other.containers = {key: set(claims) for key, claims in self.containers.items()}
            other.links = {key: set(claims) for key, claims in self.links.items()}
            other.pods = {key: set(claims) for key, claims in self.pods.items()}
            other.answers, other.limits = dict(self.answers), set(self.limits)
            other.polls = self.polls
        return other


class Watch:
    """Polls the sources in a thread while a capture runs."""

    def __init__(
        self, *, mode: Mode, sockets: Sequence[str], host_root: Path, period_s: float = PERIOD_S
    ) -> None:
        self.metadata = PodMetadata()
        self._sources = (mode, tuple(sockets), host_root)
        self._poller = Poller("identity", self._poll, period_s=period_s, max_pause_s=MAX_PAUSE_S)

    def start(self) -> None:
        """Starts the thread; it polls at once."""
        self._poller.start()

    def stop(self) -> None:
        """Starts no further poll, and does not wait for one that does not return."""
        self._poller.stop(timeout_s=0.05)

    def _poll(self) -> float:
        return self.metadata.poll(*self._sources, time.monotonic() + DEADLINE_S)
