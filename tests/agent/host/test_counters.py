# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ktrace_agent.host import boot, clock, counter_changes, counters, netns, sysctls
from ktrace_agent.host.counters import Missing
from ktrace_agent.host.procfs import PER_NETNS


class Proc:
    """A /proc of plain files: enough for what only reads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.process("self", 1)

    def process(self, pid: int | str, netns: int, files: dict[str, str] | None = None) -> None:
        folder = self.root / str(pid)
        (folder / "ns").mkdir(parents=True)
        (folder / "ns/net").symlink_to(f"net:[{netns}]")
        for name, text in ({"netstat": "TcpExt: A\nTcpExt: 1\n"} | (files or {})).items():
            (folder / "net" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "net" / name).write_text(text)


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def test_every_namespace_is_read_once(proc: Proc):
    proc.process(10, 1)
    proc.process(20, 2, {"snmp": "Tcp: A\nTcp: 7\n"})
    proc.process(21, 2)
    found = counters.snapshot(proc=proc.root)
    assert found.own == 1
    assert found.whole
    assert list(found.netns) == [1, 2]
    files = found.netns[2]
    assert not isinstance(files, Missing)
    assert set(files) == set(PER_NETNS)
    assert files["netstat"] == b"TcpExt: A\nTcpExt: 1\n"
    assert files["sockstat"] is Missing.ABSENT


def test_only_those_asked_for_and_the_own_one_are_read(proc: Proc):
    for inode in range(2, 9):
        proc.process(inode * 10, inode)
    assert list(counters.snapshot({5, 77}, proc=proc.root).netns) == [1, 5]


def test_more_namespaces_than_the_limit_have_a_reason(proc: Proc):
    for inode in range(2, 9):
        proc.process(inode * 10, inode)
    found = counters.snapshot(proc=proc.root, limit=3)
    reasons = [files for files in found.netns.values() if isinstance(files, Missing)]
    assert reasons == [Missing.TOO_MANY] * 5


def test_without_time_nothing_but_reasons(proc: Proc):
    proc.process(20, 2)
    found = counters.snapshot(proc=proc.root, seconds=-1.0)
    assert not found.whole
    assert set(found.netns.values()) <= {Missing.TOO_LATE}


def test_a_process_that_moved_is_not_believed(proc: Proc, monkeypatch: pytest.MonkeyPatch):
    proc.process(20, 2)
    found = netns.find_netns(proc.root, lambda: False)
    (proc.root / "20/ns/net").unlink()
    (proc.root / "20/ns/net").symlink_to("net:[3]")
    monkeypatch.setattr(counters, "find_netns", lambda *_: found)
    assert counters.snapshot(proc=proc.root).netns[2] is Missing.VANISHED


def test_the_next_process_of_a_namespace_is_tried(proc: Proc, monkeypatch: pytest.MonkeyPatch):
    proc.process(21, 2)
    monkeypatch.setattr(counters, "find_netns", lambda *_: {2: ["20", "21"]})
    assert not isinstance(counters.snapshot(proc=proc.root).netns[2], Missing)


def test_no_proc_at_all_is_no_exception(tmp_path: Path):
    found = counters.snapshot(proc=tmp_path / "nothing")
    assert found.netns == {}
    assert found.own == 0
    assert set(found.host.values()) == {Missing.ABSENT}
    assert sysctls.read(tmp_path) == {}
    assert boot.read(tmp_path).boot_id == "-"


@pytest.mark.parametrize("link", ["net:[]", "net:[x]", "mnt:[4]", "net:[99999999999999999999]"])
def test_a_strange_link_is_no_namespace(proc: Proc, link: str):
    (proc.root / "30/ns").mkdir(parents=True)
    (proc.root / "30/ns/net").symlink_to(link)
    assert list(netns.find_netns(proc.root, lambda: False)) == []


def test_a_large_file_is_cut(tmp_path: Path):
    (tmp_path / "big").write_bytes(b"x" * 1_000_000)
    raw = counters.read_file(tmp_path / "big")
    assert isinstance(raw, bytes)
    assert len(raw) == 256 * 1024


def test_reasons_for_files_that_cannot_be_read(tmp_path: Path):
    assert counters.read_file(tmp_path / "none") is Missing.ABSENT
    assert counters.read_file(tmp_path) is Missing.UNREADABLE
    (tmp_path / "closed").write_text("x")
    (tmp_path / "closed").chmod(0)
    if os.geteuid() != 0:
        assert counters.read_file(tmp_path / "closed") is Missing.DENIED


def test_this_host_is_read_quickly():
    begun = time.monotonic()
    found = counters.snapshot()
    assert time.monotonic() - begun < counters.READ_SECONDS + 1
    own = found.netns[found.own]
    assert not isinstance(own, Missing)
    assert isinstance(own["netstat"], bytes)


def test_sysctls_of_this_host_are_short():
    found = sysctls.read()
    assert "net.ipv4.ip_local_port_range" in found
    assert len(json.dumps(found)) < 4096


def test_this_boot():
    found = boot.read()
    assert len(found.boot_id) == 36
    assert found.uptime_s is not None
    assert found.uptime_s > 0


def test_the_clock_offset_is_realtime_minus_boottime():
    wanted = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert abs(clock.wall_offset_ns() - wanted) < 10**8


@pytest.mark.world("mount")
def test_what_happens_in_another_namespace_counts_there_and_only_there():
    script = """
import os, socket, sys
print(os.stat("/proc/self/ns/net").st_ino, flush=True)
sys.stdin.readline()
for _ in range(23):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect_ex(("127.0.0.1", 9))
print("done", flush=True)
sys.stdin.readline()
"""
    with subprocess.Popen(
        ["unshare", "--net", sys.executable, "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        netns = int(child.stdout.readline())
        before = counters.snapshot()
        child.stdin.write("go\n")
        child.stdin.flush()
        assert child.stdout.readline() == "done\n"
        after = counters.snapshot({netns})
        child.stdin.write("end\n")
        child.stdin.flush()
    found = {one.netns: one for one in counter_changes.compare(before, after, [netns]).netns}
    assert found[netns].missing is None
    assert found[netns].counters["snmp"]["Ip.OutNoRoutes"].delta == 23
    assert "Ip.OutNoRoutes" not in found[before.own].counters.get("snmp", {})
    gone = counter_changes.compare(before, counters.snapshot({netns}), [netns])
    assert gone.netns[1].missing is Missing.VANISHED
