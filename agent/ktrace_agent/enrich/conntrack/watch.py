# SPDX-License-Identifier: Apache-2.0
"""Dumps connection tracking in every network namespace while a capture runs.

Dumps, not events: for a listener the kernel builds a message for each created and destroyed
connection while it handles the packet, and a burst of messages reaches this process when the node
has the least CPU time for it. With the kernel's default timeouts an entry exists for at least
10 s (TCP CLOSE; UDP 30 s, TIME_WAIT 120 s), so a dump every 5 s contains it. Costs:
bench/bench_conntrack.py. Standard library only. Nothing here raises.
"""

import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

from ktrace_agent.enrich.conntrack import ctnetlink, netlink
from ktrace_agent.enrich.conntrack.entries import Table
from ktrace_agent.enrich.conntrack.lookup import Conntrack, Figures, Problem
from ktrace_agent.enrich.conntrack.netlink import Lack, NetlinkFailed
from ktrace_agent.enrich.conntrack.proc_text import read_lines
from ktrace_agent.enrich.poller import Poller
from ktrace_agent.host.clock import boot_ns
from ktrace_agent.host.netns import PROC, inode_of, run_in_netns
from ktrace_agent.host.small_file import bytes_or_empty

PERIOD_S = 5.0
MAX_ENTRIES = 100_000
MAX_SECONDS = 2.0
"""Maximum time for one poll of all namespaces."""
MAX_NETNS = 256
FILES = ("nf_conntrack", "ip_conntrack")
"""Below /proc/PID/net; the first that can be read is used."""
_MAX_PROBLEMS = 64
_MAX_POLLS = 10_000

Namespaces = Callable[[], Mapping[int, int]]
"""Returns the inode of each network namespace and a process in it."""


def host_netns(proc: Path = PROC) -> int:
    """Returns the inode of the node's own namespace, else of this process's; 0 = unknown."""
    for pid in ("1", "self"):
        if (inode := inode_of(proc / pid / "ns/net")) is not None:
            return inode
    return 0


class Watch:
    """Polls from start() to stop(), which returns the entries. `max_entries` bounds the memory."""

    def __init__(
        self,
        namespaces: Namespaces,
        period_s: float = PERIOD_S,
        max_entries: int = MAX_ENTRIES,
        max_seconds: float = MAX_SECONDS,
        *,
        proc: Path = PROC,
    ) -> None:
        self._namespaces = namespaces
        self._max_entries, self._max_seconds = max_entries, max_seconds
        self._proc, self._host = proc, host_netns(proc)
        self._first = {self._host}
        self._tables: dict[int, Table] = {}
        self._figures: dict[int, Figures] = {}
        self._addresses: dict[int, frozenset[bytes]] = {}
        self._problems: dict[tuple[int, Lack], str] = {}
        self._sources: dict[int, str] = {}
        self._last_polled: dict[int, float] = {}
        self._polls, self._seconds = 0, 0.0
        self._poller = Poller("conntrack", self._poll_in_thread, period_s=period_s)

    def start(self) -> None:
        """Polls once in this thread: a connection that is over by now belongs to no capture."""
        self._poller.start(self.poll())

    def stop(self, first: Collection[int] = ()) -> Conntrack:
        """Polls a last time and returns all entries; namespaces in `first` are dumped first."""
        self._poller.stop()
        self._first |= set(first)
        self.poll()
        return Conntrack(
            host=self._host,
            tables=self._tables,
            figures=self._figures,
            addresses=self._addresses,
            problems=tuple(Problem(*key, text) for key, text in self._problems.items()),
            sources=self._sources,
            seconds=self._seconds,
        )

    def _poll_in_thread(self) -> float:
        return self.poll() if self._polls < _MAX_POLLS else 0.0

    def poll(self) -> float:
        """Dumps all namespaces once; returns the duration in seconds."""
        begun = time.monotonic()
        deadline = begun + self._max_seconds
        if not _is_loaded(self._proc):
            self._report(0, Lack.ABSENT, "connection tracking (nf_conntrack) is not loaded")
            return 0.0
        by_netlink = not _would_load_module(self._proc)
        for inode, pid in self._order():
            if time.monotonic() > deadline:
                self._report(0, Lack.TOO_LATE, "some namespaces were not dumped: deadline passed")
                break
            self._last_polled[inode] = begun
            mine = deadline - self._reserved(inode, deadline - time.monotonic())
            if not (by_netlink and self._dump(inode, pid, mine)):
                self._read_text(inode, pid, mine)
        self._polls += 1
        took = time.monotonic() - begun
        self._seconds += took
        return took

    def _reserved(self, inode: int, remaining: float) -> float:
        """Returns how much of the remaining time or entries is reserved for other namespaces.

        One namespace may use at most half. The host's namespace is exempt: it usually has the
        connections of the others, too.
        """
        return 0.0 if inode in self._first else remaining / 2

    def _order(self) -> list[tuple[int, int]]:
        """Returns the namespaces to dump: the important ones first, then the longest not dumped."""
        try:
            found = self._namespaces()
        except OSError as problem:
            self._report(0, netlink.explain(problem), f"namespaces: {problem}")
            return []
        if len(found) > MAX_NETNS:
            self._report(0, Lack.TOO_MANY, f"{len(found)} namespaces; {MAX_NETNS} per poll")
        turn = sorted(found.items(), key=lambda one: self._last_polled.get(one[0], 0.0))
        return sorted(turn, key=lambda one: one[0] not in self._first)[:MAX_NETNS]

    def _dump(self, inode: int, pid: int, deadline: float) -> bool:
        """Dumps one namespace by netlink; returns False if the text file may still work."""
        try:
            if not self._enter(inode, pid, deadline):
                self._report(inode, Lack.VANISHED, "its process exited")
        except NetlinkFailed as problem:
            self._report(inode, problem.lack, str(problem))
            return problem.lack is Lack.TOO_LATE
        except OSError as problem:
            self._report(inode, netlink.explain(problem), str(problem))
            return False
        except RuntimeError as problem:  # no thread could be started
            self._report(inode, Lack.UNREADABLE, str(problem))
            return False
        return True

    def _enter(self, inode: int, pid: int, deadline: float) -> bool:
        """Dumps the namespace from inside; returns False if it was removed."""

        def dump() -> bool:
            self._add_figures(inode, ctnetlink.figures(deadline))
            self._addresses[inode] = frozenset(netlink.addresses(deadline))
            empty = self._figures[inode].after.get("count") == 0
            self._fill(
                inode,
                "ctnetlink",
                lambda on_entry: None if empty else ctnetlink.dump(on_entry, deadline),
            )
            return True

        if inode == inode_of("/proc/thread-self/ns/net"):
            return dump()
        return run_in_netns(pid, inode, dump) or False

    def _read_text(self, inode: int, pid: int, deadline: float) -> None:
        """Reads the entries of one namespace from the first of FILES."""
        for name in FILES:
            path = self._proc / str(pid) / "net" / name
            try:
                with path.open("rb") as lines:
                    self._fill(inode, name, partial(read_lines, lines, deadline=deadline))
            except FileNotFoundError:
                continue
            except OSError as problem:
                self._report(inode, netlink.explain(problem), f"{name}: {problem.strerror}")
            except NetlinkFailed as problem:
                self._report(inode, problem.lack, str(problem))
            return
        if not any(place == inode for place, _ in self._problems):
            absent = f"neither ctnetlink nor {' nor '.join(FILES)} is available"
            self._report(inode, Lack.ABSENT, absent)

    def _fill(self, inode: int, source: str, read: Callable[[ctnetlink.OnEntry], None]) -> None:
        """Adds one dump of one namespace; entries that were read before a failure are kept."""
        table = self._tables.setdefault(inode, Table())
        mine = self._max_entries - int(self._reserved(inode, self._max_entries))
        used = sum(len(one.keys) for one in self._tables.values())
        table.capacity = min(self._max_entries - used, mine - len(table.keys))
        begun, complete = boot_ns(), False
        try:
            read(table.add)
            complete = True
            self._sources[inode] = source
        finally:
            table.finish_dump(begun, boot_ns(), complete=complete)
            if table.left_out:
                left_out = f"{table.left_out} entries were not kept: limit reached"
                self._report(inode, Lack.TOO_MANY, left_out)

    def _add_figures(self, inode: int, now: Mapping[str, int]) -> None:
        """Keeps the counters; those of a namespace created during the capture began at zero."""
        was = self._figures.get(inode)
        before = was.before if was else dict.fromkeys(now, 0) if self._polls else now
        peak = max(now.get("count", 0), was.peak if was else 0)
        self._figures[inode] = Figures(before, now, peak)

    def _report(self, inode: int, lack: Lack, detail: str) -> None:
        if (inode, lack) in self._problems or len(self._problems) < _MAX_PROBLEMS:
            self._problems[inode, lack] = detail


def _is_loaded(proc: Path) -> bool:
    """Whether the kernel has connection tracking."""
    return (proc / "sys/net/netfilter/nf_conntrack_max").exists() or any(
        (proc / "self/net" / name).exists() for name in FILES
    )


def _would_load_module(proc: Path) -> bool:
    """Whether a request would make the kernel load ctnetlink: ktrace changes nothing on a node.

    If connection tracking is a module, ctnetlink is a module of its own.
    """
    modules = bytes_or_empty(proc / "modules").splitlines()
    names = {line.split(maxsplit=1)[0] for line in modules if line.strip()}
    return b"nf_conntrack" in names and b"nf_conntrack_netlink" not in names
