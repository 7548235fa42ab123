# SPDX-License-Identifier: Apache-2.0
"""Looks at connection tracking in every network namespace while a capture runs.

By dumps, not by events: a listener makes the kernel build a message for every new and every
destroyed connection, in the path of its packets, and a flood of them would reach this process
when the node can bear it least. With the kernel's timeouts nothing that ktrace asks for lives
shorter than 10 s in the table (TCP CLOSE; UDP 30 s, TIME_WAIT 120 s), so a look every 5 s finds
it. What it costs: bench/bench_conntrack.py. Standard library only, nothing here raises.
"""

import threading
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

from ktrace_agent.enrich.conntrack import ctnetlink, netlink
from ktrace_agent.enrich.conntrack.entries import Table
from ktrace_agent.enrich.conntrack.lookup import Conntrack, Figures, Problem
from ktrace_agent.enrich.conntrack.netlink import Lack, NetlinkFailed
from ktrace_agent.enrich.conntrack.proc_text import read_lines
from ktrace_agent.host.clock import boot_ns
from ktrace_agent.host.netns import PROC, inode_of, run_in_netns

PERIOD_S = 5.0
MAX_ENTRIES = 100_000
MAX_SECONDS = 2.0
"""Time that one look at all namespaces takes at most."""
MAX_NETNS = 256
SHARE = 20
"""The pause after a look is at least this many times its length: 5 % of a core at most."""
FILES = ("nf_conntrack", "ip_conntrack")
"""Under /proc/PID/net, the first that can be read is taken."""
_MAX_PROBLEMS = 64
_MAX_LOOKS = 10_000

Namespaces = Callable[[], Mapping[int, int]]
"""Inode of each network namespace -> a process that lives in it."""


def host_netns(proc: Path = PROC) -> int:
    """Inode of the namespace of the node itself, or else of this process; 0 where unknown."""
    for pid in ("1", "self"):
        if (inode := inode_of(proc / pid / "ns/net")) is not None:
            return inode
    return 0


class Watch:
    """start(), then stop() gives what was seen. Memory is bounded by `max_entries`."""

    def __init__(
        self,
        namespaces: Namespaces,
        period_s: float = PERIOD_S,
        max_entries: int = MAX_ENTRIES,
        max_seconds: float = MAX_SECONDS,
        *,
        proc: Path = PROC,
    ) -> None:
        self._namespaces, self._period = namespaces, period_s
        self._max_entries, self._max_seconds = max_entries, max_seconds
        self._proc, self._host = proc, host_netns(proc)
        self._first = {self._host}
        self._tables: dict[int, Table] = {}
        self._figures: dict[int, Figures] = {}
        self._addresses: dict[int, frozenset[bytes]] = {}
        self._problems: dict[tuple[int, Lack], str] = {}
        self._sources: dict[int, str] = {}
        self._last_turn: dict[int, float] = {}
        self._looks, self._seconds, self._pause = 0, 0.0, period_s
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._run, name="conntrack", daemon=True)

    def start(self) -> None:
        """Look once, in this thread: what is over by now belongs to no capture."""
        self._pause = self._look()
        self._thread.start()

    def stop(self, first: Collection[int] = ()) -> Conntrack:
        """Look a last time; `first` are inodes of namespaces that matter most."""
        self._quit.set()
        self._thread.join()
        self._first |= set(first)
        self._look()
        return Conntrack(
            host=self._host,
            tables=self._tables,
            figures=self._figures,
            addresses=self._addresses,
            problems=tuple(Problem(*key, text) for key, text in self._problems.items()),
            sources=self._sources,
            seconds=self._seconds,
        )

    def _run(self) -> None:
        while not self._quit.wait(self._pause) and self._looks < _MAX_LOOKS:
            self._pause = self._look()

    def _look(self) -> float:
        """Look at all namespaces; how long to pause then."""
        begun = time.monotonic()
        deadline = begun + self._max_seconds
        if not _loaded(self._proc):
            self._note(0, Lack.ABSENT, "connection tracking is not loaded")
            return self._period
        by_netlink = not _asking_loads_a_module(self._proc)
        for inode, pid in self._turn():
            if time.monotonic() > deadline:
                self._note(0, Lack.TOO_LATE, "no time was left for some namespaces")
                break
            self._last_turn[inode] = begun
            mine = deadline - self._reserve(inode, deadline - time.monotonic())
            if not (by_netlink and self._ask(inode, pid, mine)):
                self._read_text(inode, pid, mine)
        self._looks += 1
        took = time.monotonic() - begun
        self._seconds += took
        return max(self._period, SHARE * took)

    def _reserve(self, inode: int, whole: float) -> float:
        """Half of time and room is kept from one huge table for the other namespaces.

        The host's may have all: what the others could tell is there too.
        """
        return 0.0 if inode in self._first else whole / 2

    def _turn(self) -> list[tuple[int, int]]:
        """Namespaces in the order of looking: those that matter, then who has waited longest."""
        try:
            found = self._namespaces()
        except OSError as problem:
            self._note(0, netlink.explain(problem), f"namespaces: {problem}")
            return []
        if len(found) > MAX_NETNS:
            self._note(0, Lack.TOO_MANY, f"{len(found)} namespaces, {MAX_NETNS} in a look")
        turn = sorted(found.items(), key=lambda one: self._last_turn.get(one[0], 0.0))
        return sorted(turn, key=lambda one: one[0] not in self._first)[:MAX_NETNS]

    def _ask(self, inode: int, pid: int, deadline: float) -> bool:
        """By netlink; False where the file may still tell."""
        try:
            if not self._enter(inode, pid, deadline):
                self._note(inode, Lack.VANISHED, "its process ended")
        except NetlinkFailed as problem:
            self._note(inode, problem.lack, str(problem))
            return problem.lack is Lack.TOO_LATE
        except OSError as problem:
            self._note(inode, netlink.explain(problem), str(problem))
            return False
        except RuntimeError as problem:  # no thread to be had
            self._note(inode, Lack.UNREADABLE, str(problem))
            return False
        return True

    def _enter(self, inode: int, pid: int, deadline: float) -> bool:
        """Ask the kernel in that namespace; False where it is gone."""

        def ask() -> bool:
            self._take(inode, ctnetlink.figures(deadline))
            self._addresses[inode] = frozenset(netlink.addresses(deadline))
            empty = self._figures[inode].after.get("count") == 0
            self._fill(
                inode, "ctnetlink", lambda see: None if empty else ctnetlink.dump(see, deadline)
            )
            return True

        if inode == inode_of("/proc/thread-self/ns/net"):
            return ask()
        return run_in_netns(pid, inode, ask) or False

    def _read_text(self, inode: int, pid: int, deadline: float) -> None:
        """The same from the first of FILES."""
        for name in FILES:
            path = self._proc / str(pid) / "net" / name
            try:
                with path.open("rb") as lines:
                    self._fill(inode, name, partial(read_lines, lines, deadline=deadline))
            except FileNotFoundError:
                continue
            except OSError as problem:
                self._note(inode, netlink.explain(problem), f"{name}: {problem.strerror}")
            except NetlinkFailed as problem:
                self._note(inode, problem.lack, str(problem))
            return
        if not any(place == inode for place, _ in self._problems):
            self._note(inode, Lack.ABSENT, f"neither ctnetlink nor {' nor '.join(FILES)}")

    def _fill(self, inode: int, source: str, read: Callable[[ctnetlink.See], None]) -> None:
        """One look at one namespace; what was read before a failure stays."""
        table = self._tables.setdefault(inode, Table())
        mine = self._max_entries - int(self._reserve(inode, self._max_entries))
        used = sum(len(one.keys) for one in self._tables.values())
        table.room = min(self._max_entries - used, mine - len(table.keys))
        begun, whole = boot_ns(), False
        try:
            read(table.see)
            whole = True
            self._sources[inode] = source
        finally:
            table.looked(begun, boot_ns(), whole=whole)
            if table.left_out:
                self._note(inode, Lack.TOO_MANY, f"{table.left_out} entries found no room")

    def _take(self, inode: int, now: Mapping[str, int]) -> None:
        """Keep the counters; a namespace that was not there at the start began with zeros."""
        was = self._figures.get(inode)
        before = was.before if was else dict.fromkeys(now, 0) if self._looks else now
        peak = max(now.get("count", 0), was.peak if was else 0)
        self._figures[inode] = Figures(before, now, peak)

    def _note(self, inode: int, lack: Lack, detail: str) -> None:
        if (inode, lack) in self._problems or len(self._problems) < _MAX_PROBLEMS:
            self._problems[inode, lack] = detail


def _loaded(proc: Path) -> bool:
    """Whether the kernel tracks connections at all."""
    return (proc / "sys/net/netfilter/nf_conntrack_max").exists() or any(
        (proc / "self/net" / name).exists() for name in FILES
    )


def _asking_loads_a_module(proc: Path) -> bool:
    """Whether netlink would make the kernel load ctnetlink: ktrace changes nothing on a node.

    Where connection tracking is a module, ctnetlink is one of its own.
    """
    try:
        modules = (proc / "modules").read_bytes().splitlines()
    except OSError:
        return False
    names = {line.split(maxsplit=1)[0] for line in modules if line.strip()}
    return b"nf_conntrack" in names and b"nf_conntrack_netlink" not in names
