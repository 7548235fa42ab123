# SPDX-License-Identifier: Apache-2.0
"""What the kernel's own tracer (ftrace) records, as a reference without BPF programs.

Some hosts exempt their first process from BPF: while one of its threads is current no program runs,
and softirq runs on any thread. ftrace has no such exemption, so tests can require that the events
of ktrace and those of exempt threads add up to the truth, to the event.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ktrace_agent.kernel import tracefs

_INSTANCE = "ktrace-tests"
_BUFFER_KB = "16384"
_LINE = re.compile(r"-(\d+)\s+\[\d+\]\s+\S+\s+[\d.]+: (\w+): (.*)")
_FIELD = re.compile(r"(\w+)=(\S+)")


def hidden_tasks() -> frozenset[int]:
    """Threads that no BPF program runs upon: those of a first process that is closed to root."""
    try:
        Path("/proc/1/ns/net").readlink()
    except PermissionError:
        return frozenset(int(task.name) for task in Path("/proc/1/task").iterdir())
    return frozenset()


@dataclass(frozen=True)
class Traced:
    """One event, and whether any BPF program could see it."""

    name: str
    fields: dict[str, str]
    hidden: bool

    @property
    def ports(self) -> set[int]:
        return {int(self.fields["sport"]), int(self.fields["dport"])}


class Trace:
    """Records tracepoints while it is entered: Trace("sock/inet_sock_set_state").

    The instance of the tracer is its own and removed at the end; one that a killed run left
    behind is removed first. tracefs is mounted nowhere.
    """

    def __init__(self, *events: str) -> None:
        self._wanted = events
        self.events: list[Traced] = []

    def __enter__(self) -> Self:
        self._mount = tracefs._detached_mount()
        self._folder = Path(f"/proc/self/fd/{self._mount}/instances/{_INSTANCE}")
        try:
            self._remove()
            self._folder.mkdir()
            (self._folder / "buffer_size_kb").write_text(_BUFFER_KB)
            for event in self._wanted:
                (self._folder / "events" / event / "enable").write_text("1")
        except BaseException:
            self._close()
            raise
        self._tasks = hidden_tasks()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            (self._folder / "events/enable").write_text("0")
            if kind is None:
                self._tasks |= hidden_tasks()
                self._check_whole()
                self.events = list(self._read())
        finally:
            self._close()

    def hidden(self, name: str, ports: set[int]) -> list[Traced]:
        """Events of these ports that no BPF program could see."""
        return [one for one in self.of(name, ports) if one.hidden]

    def of(self, name: str, ports: set[int]) -> list[Traced]:
        """Events of these ports."""
        return [one for one in self.events if one.name == name and one.ports & ports]

    def _check_whole(self) -> None:
        for stats in self._folder.glob("per_cpu/cpu*/stats"):
            counts = dict(line.split(": ") for line in stats.read_text().splitlines() if line)
            assert counts["overrun"] == counts["dropped events"] == "0", counts

    def _read(self) -> Iterator[Traced]:
        with (self._folder / "trace").open() as lines:
            for line in lines:
                if not line.startswith("#"):
                    found = _LINE.search(line)
                    assert found, line
                    task, name, fields = found.groups()
                    yield Traced(name, dict(_FIELD.findall(fields)), int(task) in self._tasks)

    def _remove(self) -> None:
        with suppress(FileNotFoundError):
            self._folder.rmdir()

    def _close(self) -> None:
        self._remove()
        os.close(self._mount)
