# SPDX-License-Identifier: Apache-2.0
"""dist/ktrace-static in an otherwise empty root folder: no Python, libraries or shell."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "dist/ktrace-static"
UNPRIVILEGED = 65534
MARK = "TEST_OF_STATIC"

pytestmark = [pytest.mark.world("static"), pytest.mark.timeout(600)]


def sources() -> Iterator[Path]:
    for folder in ("api", "agent/ktrace_agent"):
        yield from (ROOT / folder).rglob("*.py")
    yield from (ROOT / "agent/bpf").rglob("*.[ch]")
    yield from (ROOT / "scripts").glob("*static*")
    yield ROOT / "requirements/agent.lock"


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """A folder that others can enter, with the file and mount points in it."""
    newest = max(path.stat().st_mtime for path in sources())
    if not BUILT.exists() or BUILT.stat().st_mtime < newest:
        subprocess.run(["make", "-C", ROOT, "build-static"], check=True)
    with tempfile.TemporaryDirectory(prefix="static-root-") as name:
        place = Path(name)
        place.chmod(0o755)
        shutil.copy2(BUILT, place / "ktrace")
        for folder in ("proc", "sys", "dev", "tmp", "out"):
            (place / folder).mkdir()
        (place / "tmp").chmod(0o1777)
        yield place


def chrooted(root: Path, *arguments: str, user: int = 0) -> list[str]:
    """A command that becomes ktrace in `root`; its mounts are in a namespace that ends with it."""
    script = (
        'for d in proc sys dev; do mount --rbind /$d "$0/$d"; done; '
        'user=$1; shift; exec chroot --userspec=$user:$user "$0" /ktrace "$@"'
    )
    unshare = ["unshare", "--mount", "--propagation", "private"]
    return [*unshare, "sh", "-ec", script, str(root), str(user), *arguments]


def run(root: Path, *arguments: str, user: int = 0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        chrooted(root, *arguments, user=user),
        check=False,
        capture_output=True,
        text=True,
        env=environment(root),
        timeout=120,
    )


def files(root: Path) -> set[str]:
    """All below `root`; os.walk does not mind what vanishes meanwhile."""
    return {
        os.path.relpath(os.path.join(folder, name), root)
        for folder, folders, names in os.walk(root)
        for name in (*folders, *names)
    }


def mounts() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def environment(root: Path) -> dict[str, str]:
    """Whatever a run leaves behind bears this."""
    return {"PATH": os.environ["PATH"], MARK: str(root)}


def processes(root: Path) -> set[int]:
    """Ours that still run: the collector, or the child that cleans up without root."""
    mark = f"{MARK}={root}".encode()
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0"):
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


def eventually(condition: object, seconds: float = 10) -> bool:
    assert callable(condition)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_version_in_an_empty_root(root: Path) -> None:
    before = files(root)
    done = run(root, "--version")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ktrace ")
    assert files(root) == before


@pytest.mark.parametrize("user", [0, UNPRIVILEGED])
def test_closed_streams_are_no_files_of_the_image(root: Path, user: int) -> None:
    """Nor the pipe by which the cleaning child detects that the collector is alive."""
    command = chrooted(root, "--nosuch", user=user)
    done = subprocess.run(
        ["sh", "-c", '"$@" 0<&- 1>&- 2>&-', "-", *command],
        check=False,
        env=environment(root),
        timeout=120,
    )
    assert done.returncode == 2


def test_doctor_finds_all_hooks(root: Path) -> None:
    done = run(root, "doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)


def test_capture_seals_a_bundle_with_our_connects(root: Path) -> None:
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def connect() -> None:
            while not over.wait(0.05):
                socket.create_connection(("127.0.0.1", port)).close()
                server.accept()[0].close()

        client = threading.Thread(target=connect)
        client.start()
        try:
            done = run(root, "--duration=1s", "--node=static", f"--ports={port}", "--out-dir=/out")
        finally:
            over.set()
            client.join()
    assert done.returncode == 0, done.stderr
    [bundle] = (root / "out").glob("ktrace.static.*.bundle.tgz")
    with tarfile.open(bundle) as archive:
        content = {
            member.name: file.read()
            for member in archive
            if (file := archive.extractfile(member)) is not None
        }
    manifest = json.loads(content["manifest.json"])
    for entry in manifest["files"]:
        assert hashlib.sha256(content[entry["name"]]).hexdigest() == entry["sha256"]
    [events] = [name for name in content if name.endswith(".events.jsonl")]
    rows = [json.loads(line) for line in content[events].splitlines()]
    ours = [row for row in rows if row["type"] == "connect" and row["tgid"] == os.getpid()]
    assert ours
    assert all(row["tuple"].endswith(f" -> 127.0.0.1:{port}") for row in ours)
    assert {row["result"] for row in ours} == {"established"}


@pytest.mark.parametrize("after_s", [0.05, 0.2, 0.5, 1.0, 2.0])
def test_sigkill_leaves_nothing(root: Path, after_s: float) -> None:
    shutil.rmtree(root / "out")
    (root / "out").mkdir()
    before, mounted = files(root), mounts()
    victim = subprocess.Popen(
        chrooted(root, "--duration=60s", "--out-dir=/out"),
        env=environment(root),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(after_s)
    victim.kill()
    assert victim.wait() == -signal.SIGKILL
    assert eventually(lambda: not processes(root))
    assert files(root) == before
    assert mounts() == mounted
    assert run(root, "--version").returncode == 0


def test_without_root_its_folder_goes_too(root: Path) -> None:
    before = files(root)
    done = run(root, "--version", user=UNPRIVILEGED)
    assert done.returncode == 0, done.stderr
    assert eventually(lambda: files(root) == before)
    victim = subprocess.Popen(
        chrooted(root, "--version", user=UNPRIVILEGED),
        stdout=subprocess.DEVNULL,
        env=environment(root),
    )
    assert eventually(lambda: len(files(root) - before) > 5), "it never unpacked"
    victim.kill()
    victim.wait()
    assert eventually(lambda: files(root) == before)
    assert eventually(lambda: not processes(root))


def test_a_damaged_copy_says_so(root: Path) -> None:
    whole = (root / "ktrace").read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2], whole[:-200_000] + whole[-100_000:]):
        copy = root / "copy"
        copy.write_bytes(content)
        copy.chmod(0o755)
        done = subprocess.run([copy, "--version"], check=False, capture_output=True, text=True)
        copy.unlink()
        assert done.returncode == 1
        assert done.stderr.startswith("ktrace: cannot unpack itself: the file is damaged")
        assert done.stderr.count("\n") == 1
