# SPDX-License-Identifier: Apache-2.0
"""A scene: a network with processes in which something is wrong, or nothing.

build() makes it before the capture, run() lets it happen, prove() checks afterwards with
counters and results of the processes themselves that it did happen as it is described. What
ktrace must say of it stands in `expected`, and never depends on what ktrace says.
"""

import fcntl
import re
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tests.bpf.captures import READY, Capture
from tests.bpf.namespaces import Namespace
from tests.bpf.workers import Crew, Job, Worker
from tests.lab import jobs
from tests.lab.topology import Link, matched

DETACHED = "ktrace: decoding"
KERNEL = Path("/sys/kernel/btf/vmlinux")


@dataclass(frozen=True)
class Expected:
    """What ktrace must report about a scene."""

    findings: frozenset[str]
    """Ids, all of them, at warning or above, with the scene's subject."""
    verdicts: frozenset[str]
    """More than one only if the metadata of this node cannot distinguish them."""
    also: frozenset[str] = frozenset()
    """Other ids that are true: neither required nor false."""


def expect(findings: str, verdicts: str, also: str = "") -> Expected:
    """The same from words."""
    return Expected(*(frozenset(words.split()) for words in (findings, verdicts, also)))


HEALTHY = expect("", "healthy unknown")


@dataclass
class Subject:
    """The subject that the expected findings must name; every field that is set must match."""

    tgid: int | None = None
    peer: str = ""
    """`address:port`; the address alone is accepted."""
    netns: int | None = None
    perhaps: int | None = None
    """The process, if one is named; ktrace cannot determine it with certainty."""
    blameless: tuple[str, ...] = ()
    """Addresses that no finding may name."""


class Scene(ABC):
    """One scene; a new instance for each time it is played."""

    about: ClassVar[str]
    expected: ClassVar[Expected] = HEALTHY
    seconds: ClassVar[float] = 2.5
    """Minimum duration of the capture."""
    alone: ClassVar[bool] = True
    """Not together with other scenes in one capture (the background is not a scene)."""

    def __init__(self, crew: Crew) -> None:
        self.crew = crew
        self.subject = Subject()

    @classmethod
    def name(cls) -> str:
        return re.sub(r"(?<!^)(?=[A-Z0-9](?![A-Z0-9]))", "-", cls.__name__).lower()

    @classmethod
    def incident(cls) -> bool:
        return cls.expected is not HEALTHY

    @abstractmethod
    def build(self) -> None: ...

    @abstractmethod
    def run(self) -> None: ...

    def settle(self) -> None:
        """Read what ends with the namespaces, after the capture; a later one must not see them."""
        self.counted = {one.inode: matched(one) for one in self._namespaces()}

    @abstractmethod
    def prove(self, capture: Capture) -> None: ...

    def matched(self, namespace: Namespace) -> int:
        """Packets that the nftables counters of a namespace counted until the end."""
        return self.counted[namespace.inode]

    def enter(self) -> Sequence[str]:
        """A command that starts the agent where this scene wants it."""
        return ()

    def places(self) -> frozenset[int]:
        """Inodes of the network namespaces that this scene made."""
        return frozenset(one.inode for one in self._namespaces())

    def _namespaces(self) -> list[Namespace]:
        networks = [value for value in vars(self).values() if hasattr(value, "namespaces")]
        return [one for network in networks for one in network.namespaces]

    def ready(self, worker: Worker) -> Worker:
        """A server that reported that it is ready."""
        assert worker.hear() == "ready"
        return worker


class Healthy(Scene):
    """Traffic that begins before the capture and goes on until after it."""

    alone = False
    seconds = 3.0

    def __init__(self, crew: Crew) -> None:
        super().__init__(crew)
        self.clients: list[Worker] = []

    def client(self, end: Any, job: Job, comm: str = "client") -> None:
        self.clients.append(end.start(job, comm=comm))

    def run(self) -> None:
        """It runs already."""

    def settle(self) -> None:
        """Ends the clients, too."""
        super().settle()
        for worker in self.clients:
            worker.say("stop")
        self.tallies: list[jobs.Tally] = [worker.result() for worker in self.clients]

    def prove(self, capture: Capture) -> None:
        for tally in self.tallies:
            assert set(tally) == {"ok"}, tally
            assert tally["ok"] >= 5, tally


class Linked(Scene):
    """A client and a server on one cable; arrange() decides what they run."""

    comm: ClassVar[str] = "web"
    """Name of the server's processes, unless a scene overrides it."""

    def build(self) -> None:
        self.link = Link(self.crew)
        self.host = self.link.there
        self.prepare()
        self.arrange()

    def prepare(self) -> None:
        """What scenes of a kind have in common, before one of them arranges its own."""

    @abstractmethod
    def arrange(self) -> None: ...

    def serve(self, job: Job, comm: str = "") -> Worker:
        """A server that is ready."""
        return self.ready(self.link.server.start(job, comm=comm or self.comm))


class Background(Healthy):
    """What goes on beside an incident: web, pooled and short, DNS, syslog."""

    about = "background traffic"

    def build(self) -> None:
        self.link = link = Link(self.crew)
        host = link.there
        for job in (
            jobs.server(host, 8000, jobs.echo()),
            jobs.resolver(host),
            jobs.take_datagrams(host, 514),
        ):
            self.ready(link.server.start(job, comm="backdrop"))
        self.client(link.client, jobs.pace(lambda _: jobs.request(host, 8000), rate=100))
        ask = jobs.pace(lambda n: jobs.lookup([host], n, timeout_s=2.0, connected=True), rate=100)
        self.client(link.client, ask)
        self.client(link.client, jobs.pace(jobs.datagrams(host, 514), rate=50))

    def prove(self, capture: Capture) -> None:
        for tally in self.tallies:
            assert sum(tally.values()) >= 50, tally
            assert "timeout" not in tally, tally


@dataclass
class Played:
    """A capture with the scenes that were in it."""

    scenes: list[Scene]
    backdrop: Background | None
    capture: Capture
    seconds: float
    """From the first namespace to the end of the checks."""


@contextmanager
def turn() -> Iterator[None]:
    """Inside, no other process plays a scene: a capture sees the whole node.

    The lock is on a file that all checkouts on a machine share and that leaves nothing behind.
    """
    with KERNEL.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def play(kinds: Sequence[type[Scene]], folder: Path, *, background: bool) -> Played:
    """Build the scenes, capture while they run, prove them.

    Raises Impossible where this host cannot make a scene, AssertionError where one did not
    happen as described. All its processes and namespaces end with its turn; only the sealing
    overlaps with what another process plays.
    """
    with turn():
        begin, crew = time.monotonic(), Crew()
        try:
            scenes = [kind(crew) for kind in kinds]
            backdrop = Background(crew) if background else None
            everything = [*scenes, *([backdrop] if backdrop else [])]
            for scene in everything:
                scene.build()
            capture = Capture(folder, prefix=scenes[0].enter())
            _record(capture, scenes)
            for scene in everything:
                scene.settle()
        finally:
            crew.close()
    assert capture.wait() == 0, f"{capture.stderr}{capture.stdout}"
    capture.read()
    for scene in everything:
        scene.prove(capture)
    return Played(scenes, backdrop, capture, time.monotonic() - begin)


def _record(capture: Capture, scenes: Sequence[Scene]) -> None:
    """Until the programs are detached; ktrace then goes on to seal."""
    capture.start()
    try:
        capture.wait_for(READY)
        end = time.monotonic() + max(scene.seconds for scene in scenes)
        for scene in scenes:
            scene.run()
        time.sleep(max(0.0, end - time.monotonic()))
        capture.process.send_signal(signal.SIGINT)
        capture.wait_for(DETACHED)
    except BaseException:
        capture.kill()
        raise
