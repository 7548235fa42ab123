# SPDX-License-Identifier: Apache-2.0
"""Captures as a user runs them: the real command and its real bundle."""

import json
import os
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb

from ktrace_api.assignment import Assignment, SnapshotRef, VolumeTarget
from ktrace_api.capture import CaptureConfig
from ktrace_api.row import EVENT
from ktrace_api.snapshot import PvcOutput
from ktrace_api.summary import Summary
from tests.bpf.ftrace import hidden_tasks
from tests.bpf.workers import PATIENCE_S, wait_until

KTRACE = Path(sys.executable).with_name("ktrace")
READY = "ktrace: recording"
ROW_TYPES = ("tcp_state", "udp_send", "udp_recv", "connect", "tcp_retransmit")
TRAFFIC = ("tx_bytes", "rx_bytes", "tx_calls", "rx_calls", "opened", "failed")
PARTS = ("written", "filtered", "sampled", "capped", "lost_ring", "lost_map", "skipped")

Row = dict[str, Any]


def assigned(folder: Path, node: str, config: Mapping[str, Any]) -> tuple[Path, dict[str, str]]:
    """The folder of the agent's bundle, and the environment that requests a capture."""
    target = VolumeTarget(
        output=PvcOutput(claim_name="bundles"), mount=str(folder), folder=f"out/node={node}"
    )
    assignment = Assignment(
        snapshot=SnapshotRef(namespace="ops", name="test", uid="6f2c7a0e-1111"),
        capture=CaptureConfig.model_validate({"node": node, **config}),
        target=target,
    )
    return folder / target.folder, {
        "KTRACE_CAPTURE": assignment.model_dump_json(),
        "KTRACE_TERMINATION_LOG": str(folder / "termination-log"),
        "KTRACE_WORK_DIR": str(folder / "work"),
    }


class Capture:
    """`ktrace` from its start to the sealed bundle.

    It is configured by flags, or as by the operator with `config`, the fields of a CaptureConfig.
    As a context manager: inside, all programs are attached. At the end SIGINT seals the bundle,
    and the checks that hold for every bundle run.
    """

    def __init__(
        self,
        folder: Path,
        *flags: str,
        prefix: Sequence[str] = (),
        env: dict[str, str] | None = None,
        lossy: bool = False,
        duration: str = "120s",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.out = folder / "out"
        self.command = [
            *prefix,
            str(KTRACE),
            "--json",
            f"--out-dir={self.out}",
            "--node=test-node",
            f"--duration={duration}",
            *flags,
        ]
        self._env = {**os.environ, **(env or {})}
        if config is not None:
            self.command = [*prefix, str(KTRACE)]
            self.out, asked = assigned(folder, "test-node", {"duration": duration, **config})
            self._env |= asked
        self._lossy = lossy
        self.rows: list[Row] = []

    def start(self) -> Self:
        """Start without waiting for anything."""
        stdout, stderr = self.folder / "stdout", self.folder / "stderr"
        with stdout.open("wb") as out, stderr.open("wb") as err:
            self.process = subprocess.Popen(self.command, stdout=out, stderr=err, env=self._env)
        return self

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text()

    def wait_for(self, words: str) -> None:
        """Waits until `words` are on standard error."""

        def said() -> bool:
            ended = self.process.poll() is not None
            if words in self.stderr:
                return True
            assert not ended, f"ktrace ended: {self.process.returncode} {self.stderr}{self.stdout}"
            return False

        try:
            wait_until(said, f"ktrace to print {words!r}")
        except AssertionError as error:
            raise AssertionError(
                f"{error}; standard error: {self.stderr}; {self._waits()}"
            ) from error

    def _waits(self) -> str:
        """Where in the kernel each of its threads waits."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/wchan")
        return ", ".join(f"{one.parent.name} in {one.read_text() or '-'}" for one in tasks)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the process, so that the ring is not drained."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def wait(self) -> int:
        """The exit status."""
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_for(READY)
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.process.send_signal(signal.SIGINT)
                status = self.wait()
                assert status == 0, f"{status}: {self.stderr}{self.stdout}"
                self.read()
        finally:
            self.kill()

    def file(self, kind: str) -> Path:
        """The bundle's file of this kind, e.g. `events.jsonl`."""
        found = list(self.out.glob(f"ktrace.test-node.*.{kind}"))
        assert len(found) == 1, f"{kind}: {sorted(path.name for path in self.out.iterdir())}"
        return found[0]

    def read(self) -> None:
        """Read the bundle and check what every bundle must fulfil."""
        lines = self.file("events.jsonl").read_bytes().splitlines()
        self.rows = [json.loads(line) for line in lines]
        self.summary = json.loads(self.file("summary.json").read_bytes())
        self.node = json.loads(self.file("node.json").read_bytes())
        assert self.file("bundle.tgz").stat().st_size > 0
        Summary.model_validate_json(self.file("summary.json").read_bytes())
        for row in self.rows:
            EVENT.validate_python(row, strict=False)
        times = [row["ts"] for row in self.rows]
        assert times == sorted(times)
        self._check_accounting()

    def _check_accounting(self) -> None:
        assert list(self.summary["accounting"]) == list(ROW_TYPES)
        accounting = {row: one for row, one in self.summary["accounting"].items() if one}
        written = Counter(row["type"] for row in self.rows)
        assert written.keys() <= accounting.keys()
        for hook, parts in accounting.items():
            assert parts["seen"] == sum(parts[name] for name in PARTS), (hook, parts)
            assert parts["written"] == written[hook], (hook, parts)
        lost = sum(
            parts["lost_ring"] + parts["lost_map"] + parts["skipped"]
            for parts in accounting.values()
        )
        lost += sum(parts["capped"] for parts in accounting.values())
        lost += sum(self.summary["overflow"].values())
        unseen = sum(parts["unseen"] for parts in accounting.values())
        missing = self.summary["hooks_missing"]
        assert self.summary["complete"] == (lost + unseen == 0 and not missing)
        assert self.summary["complete"] == (not self.summary["gaps"])
        assert unseen == 0 or hidden_tasks(), accounting
        if not self._lossy:
            assert lost == 0, (accounting, self.summary["overflow"])

    def of(
        self, kind: str | None = None, *, net: int | None = None, tgid: int | None = None
    ) -> list[Row]:
        """Rows of a type, a network namespace or a process, in the order of time."""
        return [
            row
            for row in self.rows
            if (kind is None or row["type"] == kind)
            and (net is None or row["ns"]["net"] == net)
            and (tgid is None or row["tgid"] == tgid)
        ]

    def of_socket(self, cookie: int) -> list[Row]:
        """Rows of one socket, in the order of time."""
        return [row for row in self.rows if row["sock"] == f"{cookie:#x}"]

    def talkers(self) -> dict[int, Row]:
        """Traffic of each process, over all its flows.

        The summary lists the greatest of the whole host, which on a busy one may be others.
        """
        sums = ", ".join(f"sum({name})::BIGINT AS {name}" for name in TRAFFIC)
        lines = self._ask(
            "flows",
            f"""SELECT tgid, {sums}, count(*) AS flows, any_value(net) AS netns
                FROM flows WHERE tgid IS NOT NULL GROUP BY tgid""",
        )
        return {line["tgid"]: line for line in lines}

    def flows(self, tgid: int) -> list[Row]:
        """Flows of a process."""
        return self._ask("flows", f"SELECT * FROM flows WHERE tgid = {tgid}")

    def stock(self, moment: str) -> dict[int, dict[str, int]]:
        """TCP sockets of each process at the `start` or the `end`, by state."""
        lines = self._ask(
            "sockets",
            f"""SELECT tgid, histogram(state) AS states
                FROM sockets WHERE moment = '{moment}' AND tgid IS NOT NULL GROUP BY tgid""",
        )
        return {line["tgid"]: line["states"] for line in lines}

    def _ask(self, table: str, query: str) -> list[Row]:
        """The lines of a query on a table that is in the archive only."""
        with tarfile.open(self.file("bundle.tgz")) as bundle:
            name = next(name for name in bundle.getnames() if name.endswith(f".{table}.parquet"))
            member = bundle.extractfile(name)
            assert member is not None
            (self.folder / name).write_bytes(member.read())
        with closing(duckdb.connect()) as database:
            database.read_parquet(str(self.folder / name)).create_view(table)
            found = database.execute(query)
            names = [column[0] for column in found.description or ()]
            return [dict(zip(names, values, strict=True)) for values in found.fetchall()]

    def kept(self, hook: str) -> int:
        """Events of a hook that passed the filter."""
        parts = self.summary["accounting"][hook]
        return int(parts["seen"] - parts["filtered"])
