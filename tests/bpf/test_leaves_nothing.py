# SPDX-License-Identifier: Apache-2.0
"""However it ends, ktrace leaves no program, map, link, mount, file or process behind."""

import json
import os
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.bpf.captures import READY, Capture
from tests.bpf.conftest import Begin
from tests.bpf.namespaces import Namespace
from tests.bpf.workers import Line, wait_until

pytestmark = pytest.mark.world("bpf")

MOMENTS = ("loading", "attached", "recording", "sealing", "at the end")


def sysctls() -> dict[str, str]:
    """Every setting below /proc/sys that can be read, but those that count or draw lots."""
    found = {}
    for folder in ("net", "kernel", "vm"):
        for path in Path("/proc/sys", folder).rglob("*"):
            if path.name in {"nf_conntrack_count", "file-nr", "inode-nr"} or "random" in str(path):
                continue
            if path.name in {"ns_last_pid", "pty", "nr", "dentry-state", "stat_refresh"}:
                continue
            if path.is_file() and os.access(path, os.R_OK) and path.stat().st_mode & 0o400:
                try:
                    found[str(path)] = path.read_text(errors="replace")
                except OSError:
                    continue
    return found


def bpf_objects(kind: str) -> set[int]:
    """Ids of programs, maps or links that exist. bpftool fails where one goes while it lists."""

    def listed() -> str:
        done = subprocess.run(
            ["bpftool", kind, "show", "-j"], capture_output=True, text=True, check=False
        )
        return done.stdout if done.returncode == 0 else ""

    objects: list[dict[str, Any]] = json.loads(wait_until(listed, "a list of bpftool", 10))
    return {each["id"] for each in objects}


def held(kind: str) -> set[int]:
    """Ids of programs, maps or links that a living process has a descriptor of."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/fdinfo/*"):
        try:
            text = path.read_text()
        except OSError:
            continue
        for line in text.splitlines():
            if line.startswith(f"{kind}_id:"):
                found.add(int(line.split()[1]))
    return found


@dataclass(frozen=True)
class World:
    """What a process could leave on the host."""

    programs: frozenset[int]
    maps: frozenset[int]
    links: frozenset[int]
    mounts: frozenset[str]
    files: frozenset[str]

    @classmethod
    def now(cls) -> "World":
        folders = ("/run", "/var/tmp", "/dev/shm", "/sys/fs/bpf", "/sys/kernel/tracing")
        files = {str(path) for folder in folders for path in Path(folder).glob("*")}
        return cls(
            programs=frozenset(bpf_objects("prog")),
            maps=frozenset(bpf_objects("map")),
            links=frozenset(bpf_objects("link")),
            mounts=frozenset(Path("/proc/self/mountinfo").read_text().splitlines()),
            files=frozenset(files | {str(path) for path in Path("/tmp").glob("*ktrace*")}),
        )

    def left(self, before: "World") -> dict[str, Any]:
        """What is here now, was not before, and belongs to no living process."""
        kinds = ("programs", "maps", "links", "mounts", "files")
        more = {kind: getattr(self, kind) - getattr(before, kind) for kind in kinds}
        for kind, name in (("programs", "prog"), ("maps", "map"), ("links", "link")):
            if more[kind]:
                more[kind] -= held(name)
        return {kind: found for kind, found in more.items() if found}


def check_clean(before: World, one: Capture, group: int) -> None:
    """The kernel frees objects after a grace period: wait for it, not longer than that takes."""
    wait_until(lambda: not World.now().left(before), "a clean host", 20)
    assert list((one.folder / "tmp").glob("*")) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)
    names = sorted(path.name for path in one.out.iterdir()) if one.out.exists() else []
    assert all(name.startswith("ktrace.test-node.") for name in names), names
    if any(name.endswith(".bundle.tgz") for name in names):
        assert len(names) == 5
        one.read()


def make_noise(line: Line) -> None:
    """Traffic, so that there is something to write."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(20_011):
            sock.sendto(b"x", ("127.0.0.1", 9))


def begin(one: Capture) -> int:
    """Start it in a process group of its own; the group."""
    (one.folder / "tmp").mkdir(exist_ok=True)
    one.command[:0] = ["env", f"TMPDIR={one.folder / 'tmp'}", "setsid"]
    one.start()
    return one.process.pid


def holds_bpf(pid: int) -> bool:
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if "bpf-prog" in os.readlink(fd):
                return True
        except OSError:
            continue
    return False


def reach(one: Capture, moment: str, alone: Namespace) -> None:
    """Let the capture come to a moment of its life."""
    if moment == "loading":
        wait_until(lambda: holds_bpf(one.process.pid), "the first program", 20)
        return
    one.wait_for(READY)
    if moment == "attached":
        return
    alone.call(make_noise)
    if moment == "recording":
        return
    one.process.send_signal(signal.SIGINT)
    one.wait_for("detaching" if moment == "sealing" else "compressing")


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_signals(capture: Begin, alone: Namespace, moment: str, number: signal.Signals) -> None:
    before = World.now()
    one = capture()
    group = begin(one)
    reach(one, moment, alone)
    one.process.send_signal(number)
    status = one.wait()
    if number == signal.SIGKILL:
        # It may have been faster than the signal at the very end.
        assert status == -signal.SIGKILL or (moment == "at the end" and status == 0)
    elif moment in ("sealing", "at the end") and number == signal.SIGINT:
        assert status in (0, 130)  # the second SIGINT gives up, unless it was done by then
    else:
        assert status == 0
        one.read()
    check_clean(before, one, group)


def test_next_run_works(capture: Begin, alone: Namespace) -> None:
    """After a kill in the middle, into the same folder."""
    first = capture()
    begin(first)
    reach(first, "recording", alone)
    first.process.kill()
    first.wait()
    with Capture(first.folder) as second:
        alone.call(make_noise)
    assert len(second.of("udp_send", net=alone.inode)) == 20_011


def test_sysctls_and_mounts(capture: Begin, alone: Namespace) -> None:
    """Not changed while it records, nor after."""
    before, world = sysctls(), World.now()
    assert len(before) > 500
    with capture() as one:
        alone.call(make_noise)
        during, mounts = sysctls(), World.now().mounts
    after = sysctls()
    assert {name for name in before if before[name] != during.get(name)} == set()
    assert {name for name in before if before[name] != after.get(name)} == set()
    assert mounts == world.mounts
    check_clean(world, one, one.process.pid)


def test_two_at_once(capture: Begin, alone: Namespace) -> None:
    """Two captures do not affect each other, and both record everything."""
    with capture() as first, capture() as second:
        alone.call(make_noise)
    for one in (first, second):
        assert len(one.of("udp_send", net=alone.inode)) == 20_011


def test_ends_by_itself(capture: Begin) -> None:
    before = World.now()
    one = capture(duration="1s")
    group = begin(one)
    assert one.wait() == 0
    one.read()
    assert one.summary["ended_by"] == "duration"
    assert 0.9 <= one.summary["window_s"] <= 3
    check_clean(before, one, group)
