# SPDX-License-Identifier: Apache-2.0
"""A process that outlives the program that started it: its record, its log, its signals."""

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.bpf.workers import wait_until
from tests.cluster import cgroups

LOG_TAIL = 3000
END_S = 20.0
IN_CGROUP = 'echo $$ >"$1" && shift && exec "$@"'


class Daemon:
    """One process of a cluster.

    `folder` gets NAME.log, appended to by each start, and NAME.pid, which holds the process id
    and its start time: another program that finds the record can tell whether the process is
    still the same one.
    """

    def __init__(self, name: str, folder: Path, cgroup: str, command: Sequence[str | Path]) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._record = folder / f"{name}.pid"
        self._procs = cgroups.tracking() / cgroup / "cgroup.procs"
        self._command = [str(word) for word in command]

    def start(self, pass_fds: Sequence[int] = ()) -> None:
        assert not self.alive, f"{self.name} runs already"
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        for descriptor in pass_fds:
            os.set_inheritable(descriptor, True)
        pid = os.posix_spawnp(
            "sh",
            ["sh", "-c", IN_CGROUP, "sh", str(self._procs), *self._command],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self.log), append, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
        self._record.write_text(f"{pid} {start_time(pid)}")

    @property
    def pid(self) -> int:
        """Its process id; AssertionError where it does not run."""
        pid = self._live()
        assert pid is not None, f"{self.name} does not run: {self.tail()}"
        return pid

    @property
    def alive(self) -> bool:
        return self._live() is not None

    def kill(self) -> None:
        """SIGKILL: what a crash or the OOM killer does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM: an orderly end."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP: it hangs, its sockets stay open."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-LOG_TAIL:] if self.log.exists() else "no log"

    def _end(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)
        wait_until(lambda: not self.alive, f"the end of {self.name}", END_S)

    def _live(self) -> int | None:
        try:
            pid, started = self._record.read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        with suppress(ChildProcessError):  # one of ours would stay as a zombie
            os.waitpid(int(pid), os.WNOHANG)
        return int(pid) if start_time(int(pid)) == started else None


def start_time(pid: int) -> str:
    """Clock ticks since boot at which a process began; empty for none, also for a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]
