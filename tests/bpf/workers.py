# SPDX-License-Identifier: Apache-2.0
"""Workloads: functions of the tests, each in a process of its own, in a network namespace.

The child dies with the test run, however that ends, and a namespace dies with its last
process: a killed run leaves nothing for the next one to clear.
"""

import os
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from tests.bpf import syscalls

PATIENCE_S = 60.0


def wait_until(
    condition: Callable[[], Any], what: str, seconds: float = PATIENCE_S, pause: float = 0.005
) -> Any:
    """The condition's first true value; AssertionError where it stays false too long."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(pause)
    return value


class Line:
    """The worker's side: `say` sends to the test, `hear` receives from it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def say(self, value: Any) -> None:
        self._connection.send(("said", value))

    def hear(self) -> Any:
        return self._connection.recv()

    def spoken_to(self) -> bool:
        """Whether the test has sent something that was not received yet."""
        return self._connection.poll()


Job = Callable[[Line], Any]


class Worker:
    """A forked process that runs `job(line)`; its result comes back by `result()`."""

    def __init__(
        self, job: Job, *, netns: int | None = None, uid: int | None = None, comm: str = ""
    ) -> None:
        self._here, there = Pipe()
        parent = os.getpid()
        self.tgid = os.fork()
        self._ended = False
        if self.tgid == 0:
            _run(job, there, parent, netns, uid, comm)
        there.close()

    def say(self, value: Any) -> None:
        self._here.send(value)

    def hear(self) -> Any:
        """The next message of the worker."""
        return self._next("said")

    def result(self) -> Any:
        """What the job returned; waits until the process is gone."""
        value = self._next("returned")
        self._reap()
        return value

    def kill(self) -> None:
        if not self._ended:
            os.kill(self.tgid, signal.SIGKILL)
            self._reap()

    def _reap(self) -> None:
        os.waitpid(self.tgid, 0)
        self._ended = True
        self._here.close()

    def _next(self, wanted: str) -> Any:
        assert self._here.poll(PATIENCE_S), f"process {self.tgid} sent nothing"
        try:
            kind, value = self._here.recv()
        except EOFError:
            raise AssertionError(f"process {self.tgid} is gone") from None
        assert kind == wanted, f"expected what was {wanted}: {kind}\n{value}"
        return value


def _run(
    job: Job, there: Connection, parent: int, netns: int | None, uid: int | None, comm: str
) -> None:
    """The child's whole life: never returns."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.closerange(3, there.fileno())
        os.closerange(there.fileno() + 1, 1 << 16)
        if netns is not None:
            syscalls.enter_netns(netns)
        if comm:
            syscalls.prctl(syscalls.PR_SET_NAME, comm.encode())
        if uid is not None:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            there.send(("returned", job(Line(there))))
    except BaseException:  # noqa: BLE001  # whatever it is, the test must see it
        with suppress(OSError):
            there.send(("failed", traceback.format_exc()))
    finally:
        os._exit(0)


def fork(job: Callable[[], Any]) -> int:
    """A child of a worker, which dies with it; its tgid."""
    if tgid := os.fork():
        return tgid
    with suppress(BaseException):
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        job()
    os._exit(0)


class Crew:
    """All workers of a test; ends them when it is over."""

    def __init__(self) -> None:
        self._workers: list[Worker] = []

    def start(self, job: Job, **where: Any) -> Worker:
        worker = Worker(job, **where)
        self._workers.append(worker)
        return worker

    def close(self) -> None:
        for worker in reversed(self._workers):
            worker.kill()
