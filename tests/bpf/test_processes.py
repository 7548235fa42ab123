# SPDX-License-Identifier: Apache-2.0
"""Facts about a process in rows equal those in /proc."""

import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.bpf import syscalls
from tests.bpf.conftest import Begin
from tests.bpf.namespaces import Pair
from tests.bpf.tcp_jobs import V4, tcp
from tests.bpf.workers import Line, fork

pytestmark = [pytest.mark.world("bpf"), pytest.mark.usefixtures("sink")]

PORT = 7321


def test_threads(capture: Begin, pair: Pair) -> None:
    """pid is the thread's, tgid the process's."""

    def job(line: Line) -> dict[int, int]:
        seen = {}

        def connect() -> None:
            with tcp() as sock:
                sock.connect((V4.server, PORT))
                seen[syscalls.cookie(sock)] = threading.get_native_id()

        for _ in range(5):
            thread = threading.Thread(target=connect)
            thread.start()
            thread.join()
        return seen

    with capture() as one:
        worker = pair.client.start(job, comm="kt threads")
        seen = worker.result()
        pair.wait_quiet()
    assert len(set(seen.values())) == 5
    for cookie, tid in seen.items():
        rows = one.of_socket(cookie)
        assert {(row["pid"], row["tgid"]) for row in rows} == {(tid, worker.tgid)}


def test_facts_of_the_process(capture: Begin, pair: Pair) -> None:
    """Namespaces, capabilities, seccomp, ids and name of a process in a container's place."""

    def job(line: Line) -> dict[str, Any]:
        syscalls.unshare(syscalls.CLONE_NEWPID | syscalls.CLONE_NEWNS)
        ours, theirs = socket.socketpair()

        def visit_and_wait() -> None:
            syscalls.prctl(syscalls.PR_SET_NAME, b"kt \xff odd name")
            syscalls.filter_nothing()
            os.setresgid(4321, 4321, 4321)
            os.setresuid(1234, 1234, 1234)
            with tcp() as sock:
                sock.connect((V4.server, PORT))
                theirs.send(b"c")
                theirs.recv(1)

        child = fork(visit_and_wait)
        ours.recv(1)
        status = Path(f"/proc/{child}/status").read_text(errors="replace")
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        spaces = {
            name: Path(f"/proc/{child}/ns/{name}").stat().st_ino
            for name in ("net", "mnt", "pid", "user")
        }
        ours.send(b"e")
        os.waitpid(child, 0)
        return {"child": child, "status": fields, "ns": spaces}

    with capture() as one:
        worker = pair.client.start(job)
        truth = worker.result()
        pair.wait_quiet()
    rows = one.of(tgid=truth["child"])
    assert {row["type"] for row in rows} == {"tcp_state", "connect"}
    caps = int(truth["status"]["CapEff"], 16)
    for row in rows:
        assert row["ns"] == truth["ns"]
        assert row["ns"]["pid"] != Path("/proc/self/ns/pid").stat().st_ino
        assert row["sec"] == {
            "seccomp_mode": int(truth["status"]["Seccomp"]),
            "caps_eff": f"0x{caps >> 32:08x}_{caps & 0xFFFFFFFF:08x}",
        }
        assert (row["uid"], row["gid"], row["ppid"]) == (1234, 4321, worker.tgid)
        assert row["comm"] == "kt � odd name"
    assert int(truth["status"]["Seccomp"]) == 2


def test_security_off(capture: Begin, pair: Pair) -> None:
    with capture("--with-security=false") as one:
        worker = pair.client.start(visit_once)
        worker.result()
        pair.wait_quiet()
    rows = one.of(tgid=worker.tgid)
    assert rows
    assert all(row["sec"] == {"seccomp_mode": "-", "caps_eff": "-"} for row in rows)


def visit_once(line: Line) -> None:
    with tcp() as sock:
        sock.connect((V4.server, PORT))


def test_short_lived(capture: Begin, pair: Pair) -> None:
    """Processes of some milliseconds: every one known, with its cgroup."""
    count = 101

    def come_and_go() -> None:
        with tcp() as sock:
            sock.connect((V4.server, PORT))

    def swarm(line: Line) -> list[int]:
        tgids = []
        for _ in range(count):
            tgids.append(fork(come_and_go))
            os.waitpid(tgids[-1], 0)
        return tgids

    with capture() as one:
        tgids = pair.client.call(swarm)
        pair.wait_quiet()
    for tgid in tgids:
        rows = one.of("connect", tgid=tgid)
        assert [row["result"] for row in rows] == ["established"]
        assert isinstance(rows[0]["cgroup_id"], int)
    paths = one.node["cgroups"]
    assert {str(row["cgroup_id"]) for row in one.of(net=pair.client.inode)} <= set(paths)
