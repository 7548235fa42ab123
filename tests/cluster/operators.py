# SPDX-License-Identifier: Apache-2.0
"""The operator of this checkout as a process of the host: started, killed and started again."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.bpf.workers import wait_until
from tests.cluster.cluster import Cluster
from tests.cluster.crashing_operator import CRASH_STATUS
from tests.cluster.images import ROOT
from tests.containers.runtime import make_image

STANDIN = "localhost/ktrace-test/standin:1"
CRASHED = CRASH_STATUS
PAUSE_S = 0.05
LOG_TAIL = 3000
END_S = 30.0


def load_standin(cluster: Cluster, folder: Path) -> None:
    """Give all nodes the image that ends as a snapshot's name says (standin.c)."""
    archive = folder / "standin.tar"
    archive.write_bytes(make_image("standin", STANDIN, folder, Path(__file__).parent))
    cluster.load_image(archive)


class Operator:
    """One replica. It serves these namespaces and no others; settings by name, camelCase.

    Without a Lease: a second one with the same settings acts at the same time.
    """

    def __init__(
        self, cluster: Cluster, folder: Path, namespaces: Sequence[str], **settings: Any
    ) -> None:
        self._cluster = cluster
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._metrics, self._probe = _free_ports(2)
        self.log = folder / "operator.log"
        folder.mkdir(parents=True, exist_ok=True)
        given: dict[str, Any] = {
            "namespaces": list(namespaces),
            "agent": {"image": STANDIN, "terminationGraceSeconds": 5},
            "limits": {"startSeconds": 60, "uploadSeconds": 20},
            "output": {"default": {"s3": {"bucket": "traces"}}},
            "lease": {"enabled": False},
            "logFormat": "text",
            "metricsPort": self._metrics,
            "probePort": self._probe,
        }
        for name, value in settings.items():
            given[name] = {**given.get(name, {}), **value} if isinstance(value, dict) else value
        (folder / "settings.yaml").write_text(yaml.safe_dump(given))

    def start(self, crash_after: int = 0) -> None:
        """Start it; with crash_after=N it exits right after its Nth write."""
        python = Path(sys.executable)
        program: list[str | Path] = [python.parent / "ktrace-operator"]
        if crash_after:
            program = [python, "-m", "tests.cluster.crashing_operator", str(crash_after)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*program, "run", f"--settings={self._folder}/settings.yaml"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "KUBECONFIG": str(self._cluster.kubeconfig)},
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it runs."""
        return None if self._process is None else self._process.poll()

    def wait_end(self, seconds: float = END_S) -> int:
        """The exit status, once it has ended."""
        assert self._process is not None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"the operator did not end: {self.tail()}") from error

    def kill(self) -> None:
        """SIGKILL."""
        self.send(signal.SIGKILL)
        self.wait_end()

    def stop(self) -> None:
        """SIGTERM, if it runs; then SIGKILL where that was not enough."""
        if self._process is None or self._process.poll() is not None:
            return
        self.send(signal.SIGTERM)
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait_ready(self, seconds: float = END_S) -> None:
        """Until its probe answers."""
        wait_until(lambda: self.probe() is not None, "the operator's probe", seconds, PAUSE_S)

    def probe(self) -> int | None:
        """What the readiness probe says; None while nobody answers."""
        assert self.exit_status is None, f"the operator ended: {self.tail()}"
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self._probe}/readyz", timeout=5
            ) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None

    def metric(self, line: str) -> float:
        """The value of a metric, named with its labels as it is exposed; 0 where it is absent."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics}/", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        values = [float(one.rpartition(" ")[2]) for one in lines if one.rpartition(" ")[0] == line]
        return sum(values)

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-LOG_TAIL:] if self.log.exists() else "no log"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports
