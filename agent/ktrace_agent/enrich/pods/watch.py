# SPDX-License-Identifier: Apache-2.0
"""What runtime and kubelet said of pods and containers, also of those that went away since."""

import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from ktrace_agent.enrich.pods import cri, kubelet
from ktrace_agent.enrich.pods.cri import Answer
from ktrace_agent.enrich.pods.cri_wire import MAX_ITEMS, Container, Sandbox
from ktrace_agent.enrich.pods.kubelet import Folders, LogLink
from ktrace_api.names import UNKNOWN

Mode = Literal["auto", "true", "false"]
T = TypeVar("T")

DEADLINE_S = 1.5
"""For all sources together: a socket that hangs costs a run less than 2 s."""
FOLDERS_S = 0.5
"""For the kubelet's folders at most."""
PERIOD_S = 0.5
"""Between two looks while a capture runs; the kubelet itself asks the runtime once a second."""
DUTY = 20
"""A look that worked for t is followed by a pause of 20 t: at most 5 % of a core."""
MAX_PAUSE_S = 10.0
MAX_KNOWN = 20_000
"""Containers, sandboxes, log links and pods each that are remembered."""
MAX_CLAIMS = 8
"""Different claims about one id that are remembered: two already contradict."""


class Seen:
    """All that the runtime and the kubelet said so far: what went away keeps its name.

    What they say differently another time is kept beside the first.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.sandboxes: dict[str, set[Sandbox]] = {}
        self.containers: dict[str, set[Container]] = {}
        self.links: dict[str, set[LogLink]] = {}
        self.pods: dict[str, set[tuple[str, str, str]]] = {}
        """Pod uid -> source, namespace, name."""
        self.answers: dict[str, Answer] = {}
        self.looks = 0
        self.limits: set[str] = set()

    def look(self, mode: Mode, sockets: Sequence[str], host_root: Path, deadline: float) -> float:
        """Ask all sources once more; seconds of CPU that it took.

        Ends at the deadline (of time.monotonic()).
        """
        begun = time.thread_time()
        folders = kubelet.read(host_root, min(deadline, time.monotonic() + FOLDERS_S))
        answers = [] if mode == "false" else cri.ask_all(sockets, host_root, deadline)
        self.add(folders, answers)
        return time.thread_time() - begun + sum(answer.worked_s for answer in answers)

    def add(self, folders: Folders, answers: Iterable[Answer]) -> None:
        with self._lock:
            self.looks += 1
            for link in folders.links:
                self._keep(self.links, link.container_id, link)
            for uid, (namespace, pod) in folders.pods.items():
                self._keep(self.pods, uid, ("kubelet", namespace, pod))
            if folders.cut:
                self.limits.add("the kubelet's folders hold more than was read")
            for answer in answers:
                self.answers[answer.socket] = answer
                for sandbox in answer.sandboxes:
                    self._keep(self.sandboxes, sandbox.id, sandbox)
                    names = ("CRI", sandbox.namespace, sandbox.pod)
                    self._keep(self.pods, sandbox.pod_uid, names)
                for container in answer.containers:
                    self._keep(self.containers, container.id, container)
                if answer.left_out:
                    self.limits.add(f"{answer.socket} lists more than {MAX_ITEMS}")

    def _keep(self, known: dict[str, set[T]], key: str, claim: T) -> None:
        if key == UNKNOWN:
            return
        if key not in known and len(known) >= MAX_KNOWN:
            self.limits.add(f"more than {MAX_KNOWN} containers or pods were named")
            return
        claims = known.setdefault(key, set())
        if len(claims) < MAX_CLAIMS:
            claims.add(claim)

    def copy(self) -> "Seen":
        """As it is now: a look that hangs may still add to this one."""
        other = Seen()
        with self._lock:
            other.sandboxes = {key: set(claims) for key, claims in self.sandboxes.items()}
            other.containers = {key: set(claims) for key, claims in self.containers.items()}
            other.links = {key: set(claims) for key, claims in self.links.items()}
            other.pods = {key: set(claims) for key, claims in self.pods.items()}
            other.answers, other.limits = dict(self.answers), set(self.limits)
            other.looks = self.looks
        return other


class Watch:
    """Looks at the sources while a capture runs, in a thread that nobody has to wait for."""

    def __init__(
        self, *, mode: Mode, sockets: Sequence[str], host_root: Path, period_s: float = PERIOD_S
    ) -> None:
        self.seen = Seen()
        self._sources = (mode, tuple(sockets), host_root)
        self._period_s = period_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="identity", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No look begins from now on; one that hangs is not waited for."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(0.05)

    def _run(self) -> None:
        while not self._stopped.is_set():
            worked_s = self.seen.look(*self._sources, time.monotonic() + DEADLINE_S)
            self._stopped.wait(min(max(self._period_s, DUTY * worked_s), MAX_PAUSE_S))
