# SPDX-License-Identifier: Apache-2.0
"""Wrong use and hostile environments with the real command: one line that names the cause, the
correct exit status, nothing half written and nothing left in the kernel.
"""

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest

from ktrace_agent.errors import PermissionDenied, SinkFailed, UnsupportedKernel, UsageError
from tests.bpf.captures import KTRACE, READY, Capture
from tests.bpf.conftest import Begin
from tests.bpf.namespaces import Namespace
from tests.bpf.workers import Line

pytestmark = pytest.mark.world("bpf")

UNPRIVILEGED = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def ktrace(*flags: str, prefix: Sequence[str] = (), **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, str(KTRACE), *flags],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env},
        timeout=60,
    )


def in_mounts(*script: str) -> tuple[str, ...]:
    """A prefix that runs the rest where these shell commands were run, in mounts of its own."""
    return ("unshare", "--mount", "sh", "-ec", "; ".join((*script, 'exec "$@"')), "sh")


def refused(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """One line on standard error that has these words; nothing on standard output."""
    assert done.returncode == status, done
    assert done.stdout == ""
    assert done.stderr.startswith("ktrace: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--duration=0", ("--duration", "1s", "10m")),
        ("--duration=-1s", ("--duration",)),
        ("--duration=11m", ("--duration", "10m")),
        ("--duration=soon", ("--duration",)),
        ("--ports=0", ("--ports", "65535")),
        ("--ports=80,65536", ("--ports", "65535")),
        ("--ports=http", ("--ports",)),
        ("--ports=" + ",".join(map(str, range(1, 66))), ("--ports", "64")),
        ("--sample=0", ("--sample",)),
        ("--sample=1.5", ("--sample",)),
        ("--max-events=0", ("--max-events",)),
        ("--max-bytes=1KiB", ("--max-bytes", "1MiB")),
        ("--max-bytes=lots", ("--max-bytes",)),
        ("--ring-bytes=1TiB", ("--ring-bytes",)),
        ("--max-sockets=0", ("--max-sockets",)),
        ("--max-flows=-5", ("--max-flows",)),
        ("--dns-only=maybe", ("--dns-only", "true or false")),
        ("--with-retransmits=2", ("--with-retransmits", "true or false")),
        ("--node=../../etc", ("--node",)),
        ("--node=", ("--node",)),
        ("--no-such-flag", ("--no-such-flag",)),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_flags(tmp_path: Path, flag: str, words: tuple[str, ...]) -> None:
    out = tmp_path / "out"
    refused(ktrace(flag, f"--out-dir={out}"), UsageError.exit_status, *words)
    assert not out.exists()


def test_environment(tmp_path: Path) -> None:
    done = ktrace(f"--out-dir={tmp_path / 'out'}", KTRACE_DURATION="0")
    refused(done, UsageError.exit_status, "--duration", "KTRACE_DURATION")


def test_error_as_json(tmp_path: Path) -> None:
    done = ktrace("--json", "--duration=0", f"--out-dir={tmp_path / 'out'}")
    assert done.returncode == UsageError.exit_status
    error = json.loads(done.stdout)["error"]
    assert error["exit_status"] == UsageError.exit_status
    assert "--duration" in error["message"]


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    """A folder that everyone may write to and reach."""
    for path in (tmp_path, *tmp_path.parents):
        if path.is_relative_to("/tmp/") and path != Path("/tmp"):
            path.chmod(0o777)
    return tmp_path


def test_no_root(open_folder: Path) -> None:
    out = open_folder / "out"
    done = ktrace(f"--out-dir={out}", "--duration=1s", prefix=UNPRIVILEGED)
    refused(done, PermissionDenied.exit_status, "CAP_BPF", "CAP_PERFMON", "sudo")
    assert not out.exists()


def test_root_without_capabilities(tmp_path: Path) -> None:
    prefix = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    done = ktrace(f"--out-dir={tmp_path / 'out'}", "--duration=1s", prefix=prefix)
    refused(done, PermissionDenied.exit_status, "CAP_BPF")


def test_no_btf(tmp_path: Path) -> None:
    prefix = in_mounts("mount -t tmpfs none /sys/kernel/btf")
    done = ktrace(f"--out-dir={tmp_path / 'out'}", "--duration=1s", prefix=prefix)
    refused(done, UnsupportedKernel.exit_status, "/sys/kernel/btf/vmlinux", "DEBUG_INFO_BTF")
    assert not (tmp_path / "out").exists()


def test_not_built(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = ktrace(f"--out-dir={out}", "--duration=1s", KTRACE_BPF_DIR=str(tmp_path))
    refused(done, 1, "ktrace.bpf.o", "KTRACE_BPF_DIR")
    assert not out.exists()


@pytest.mark.parametrize("place", ["a-file", "below-a-file", "read-only", "proc"])
def test_unwritable_folder(tmp_path: Path, place: str) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    prefix: tuple[str, ...] = ()
    match place:
        case "a-file":
            out = file
        case "below-a-file":
            out = file / "out"
        case "read-only":
            out = tmp_path / "ro"
            out.mkdir()
            prefix = in_mounts(f"mount -t tmpfs -o ro none {out}")
        case _:
            out = Path("/proc/1")
    done = ktrace(f"--out-dir={out}", "--duration=1s", prefix=prefix)
    refused(done, SinkFailed.exit_status, "--out-dir", str(out))
    assert file.read_text() == "mine"


def flood(line: Line) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(20_011):
            sock.sendto(b"x", ("127.0.0.1", 9))


def fill(alone: Namespace, one: Capture, size: str) -> int:
    """Capture a flood into a tmpfs of this size; what was there at the end is in `out`."""
    full = one.folder / "full"
    full.mkdir()
    one.command[:] = [
        part.replace(str(one.out), str(full)) if part.startswith("--out-dir") else part
        for part in one.command
    ]
    script = (
        f'mount -t tmpfs -o size={size} none {full}; "$@"; s=$?; cp -r {full} {one.out}; exit $s'
    )
    one.command[:0] = ["unshare", "--mount", "sh", "-c", script, "sh"]
    one.start()
    one.wait_for(READY)
    alone.call(flood)
    child = Path(f"/proc/{one.process.pid}/task/{one.process.pid}/children").read_text().split()
    os.kill(int(child[0]), signal.SIGINT)
    return one.wait()


def test_full_disk_keeps_what_fits(capture: Begin, alone: Namespace) -> None:
    """The spool alone would take 3 MB, the rows 12 MB."""
    one = capture(lossy=True)
    status = fill(alone, one, "1m")
    assert status == 0, one.stderr + one.stdout
    one.read()
    assert one.rows
    assert not one.summary["complete"]
    assert one.summary["accounting"]["udp_send"]["lost_ring"] > 0
    assert one.kept("udp_send") >= 20_011
    assert any("full" in note for note in one.summary["notes"])
    talkers = one.talkers().values()
    assert [each["tx_bytes"] for each in talkers if each["netns"] == alone.inode] == [20_011]


def test_no_room_at_all(capture: Begin, alone: Namespace) -> None:
    """Not even a bundle without rows fits: it fails, and leaves no part of one."""
    one = capture(lossy=True)
    status = fill(alone, one, "8k")
    assert status == SinkFailed.exit_status, one.stderr + one.stdout
    error = json.loads(one.stdout)["error"]
    assert error["exit_status"] == SinkFailed.exit_status
    assert "no space left" in error["message"] or "full" in error["message"]
    assert list(one.out.iterdir()) == []


def test_second_interrupt(capture: Begin, alone: Namespace) -> None:
    """Gives up at once: no bundle, exit status of an interrupt."""
    one = capture()
    one.start()
    one.wait_for(READY)
    alone.call(flood)
    one.process.send_signal(signal.SIGINT)
    one.wait_for("detaching")
    one.process.send_signal(signal.SIGINT)
    status = one.wait()
    assert status in (0, 130)
    if status == 130:
        assert "second interrupt" in one.stdout
        assert not one.out.exists() or list(one.out.iterdir()) == []


JUMP = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *ts)
{
	static int (*real)(clockid_t, struct timespec *);
	if (!real)
		real = dlsym(RTLD_NEXT, "clock_gettime");
	int ret = real(id, ts);
	if (!ret && id == CLOCK_REALTIME && !access(JUMPED, F_OK))
		ts->tv_sec += 3600;
	return ret;
}
"""


def test_clock_jumps(capture: Begin, alone: Namespace, tmp_path: Path) -> None:
    """The wall clock is set an hour ahead during the capture: rows keep their order and the time
    of the start, and node.json has the step. Only the result of libc's clock calls is changed."""
    if shutil.which("cc") is None:
        pytest.fail("a C compiler is needed: scripts/bootstrap.sh test")
    mark = tmp_path / "jumped"
    source, library = tmp_path / "jump.c", tmp_path / "jump.so"
    source.write_text(JUMP)
    subprocess.run(
        ["cc", "-shared", "-fPIC", f'-DJUMPED="{mark}"', source, "-o", library, "-ldl"], check=True
    )
    with capture(env={"LD_PRELOAD": str(library)}) as one:
        alone.call(flood)
        mark.touch()
        alone.call(flood)
    assert len(one.of("udp_send", net=alone.inode)) == 2 * 20_011
    assert abs(one.node["clock"]["step_ns"] - 3600 * 10**9) < 10**9
    times = [datetime.fromisoformat(row["ts"]) for row in one.rows]
    started = datetime.fromisoformat(one.summary["started"])
    assert all(abs((each - started).total_seconds()) < 120 for each in times)
    assert ctypes.sizeof(ctypes.c_void_p) == 8


def test_least_privilege(open_folder: Path, alone: Namespace) -> None:
    """CAP_BPF and CAP_PERFMON without root record the same rows, as --help states."""
    caps = "+bpf,+perfmon"
    prefix = (*UNPRIVILEGED, f"--inh-caps={caps}", f"--ambient-caps={caps}")
    folder = open_folder / "least"
    folder.mkdir()
    folder.chmod(0o777)
    with Capture(folder, prefix=prefix) as one:
        alone.call(flood)
    assert len(one.of("udp_send", net=alone.inode)) == 20_011
