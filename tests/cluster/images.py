# SPDX-License-Identifier: Apache-2.0
"""Images from Dockerfiles, without a registry and without a daemon.

The base is made of Debian's packages and stands in the build's own store as
`docker.io/library/debian:trixie-slim`, so that a Dockerfile's own FROM finds it. What was built
is kept by a hash of all that went into it. How this host reaches package archives (proxy, CA,
mirrors of pip) is lent to the build by mounts: a layer shows the empty mount points, nothing else.
"""

import fcntl
import hashlib
import os
import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.binaries import cache_folder

SUITE = "trixie"
BASE = f"docker.io/library/debian:{SUITE}-slim"
ROOT = Path(__file__).resolve().parents[2]
KEPT = 3
"""Archives of one name that stay."""
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
LENT_AUTHORITIES = "/run/host-ca.crt"
APT_SETTINGS = r"Acquire::(?:https?|Check-|Retries).*"
PIP_SETTINGS = ("index-url", "extra-index-url", "find-links", "trusted-host", "proxy", "timeout")

Say = Callable[[str], None]


def build(
    dockerfile: Path,
    tag: str,
    target: str = "",
    context: Path = ROOT,
    arguments: Mapping[str, str] | None = None,
    say: Say = print,
) -> Path:
    """The OCI archive of an image called `tag`; built only if an input changed."""
    values = sorted((arguments or {}).items())
    key = _key(dockerfile, context, tag, target, *(f"{name}={value}" for name, value in values))
    folder = cache_folder() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^\w.-]+", "_", tag)
    archive = folder / f"{stem}-{key}.tar"
    with _lock(folder / ".lock"):
        if not archive.exists():
            _base(folder, say)
            say(f"building {tag} from {dockerfile.name}")
            extra = ["--target", target] if target else []
            for name, value in values:
                extra += ["--build-arg", f"{name}={value}"]
            for name, limits in _own_limits().items():
                extra += ["--ulimit", f"{name}={limits[0]}:{limits[1]}"]
            with _lent() as mounts:
                _buildah(
                    "build", "--pull-never", "--layers", "--tag", tag, "--file", dockerfile,
                    *mounts, *extra, context,
                )  # fmt: skip
            part = archive.with_suffix(".part")
            part.unlink(missing_ok=True)
            _buildah("push", tag, f"oci-archive:{part}:{tag}")
            part.rename(archive)
        os.utime(archive)
        by_age = sorted(folder.glob(f"{stem}-*.tar"), key=lambda path: path.stat().st_mtime)
        for old in by_age[:-KEPT]:
            old.unlink()
    return archive


def _own_limits() -> dict[str, tuple[int, int]]:
    """Ours for the build: newer buildah wants to raise them, which not every root may.

    Older buildah lowers nproc to pid_max before, and that is not to be raised again.
    """
    most = int(Path("/proc/sys/kernel/pid_max").read_text())
    soft, hard = (
        most if limit == resource.RLIM_INFINITY else min(limit, most)
        for limit in resource.getrlimit(resource.RLIMIT_NPROC)
    )
    return {"nofile": resource.getrlimit(resource.RLIMIT_NOFILE), "nproc": (soft, hard)}


def copied(dockerfile: str) -> list[str]:
    """Sources that COPY and ADD take from the context; those of other stages are not inputs."""
    joined = re.sub(r"\\\n", " ", dockerfile)
    sources: list[str] = []
    for line in re.findall(r"^\s*(?:COPY|ADD)\s+(.*)$", joined, re.MULTILINE | re.IGNORECASE):
        words = line.split()
        flags = [word for word in words if word.startswith("--")]
        if not any(flag.startswith("--from") for flag in flags):
            sources += [word for word in words if word not in flags][:-1]
    return sources


def _key(dockerfile: Path, context: Path, *more: str) -> str:
    text = dockerfile.read_text()
    digest = hashlib.sha256("\0".join((SUITE, text, *more)).encode())
    for ignore in (".dockerignore", ".containerignore"):
        if (context / ignore).exists():
            digest.update((context / ignore).read_bytes())
    for path in sorted(_files(context, copied(text))):
        digest.update(f"\0{path}\0{(context / path).stat().st_mode:o}\0".encode())
        digest.update((context / path).read_bytes())
    return digest.hexdigest()[:12]


def _files(context: Path, sources: list[str]) -> set[str]:
    """Files below `sources` that Python and compilers did not leave there by the way."""
    found = set()
    for source in sources:
        for start in context.glob(source.strip("/") if source.strip("./") else "*"):
            for path in [start, *start.rglob("*")]:
                name = str(path.relative_to(context))
                if path.is_file() and "__pycache__" not in name:
                    found.add(name)
    return found


def _base(folder: Path, say: Say) -> None:
    """Make the base image of Debian's packages, once."""
    if _buildah("images", "--quiet", BASE, check=False):
        return
    say(f"making {BASE} of Debian's packages")
    with tempfile.TemporaryDirectory(dir=folder) as work:
        tar = Path(work) / "root.tar"
        subprocess.run(
            ["mmdebstrap", "--quiet", "--variant=minbase", *_lent_to_apt(Path(work)), SUITE, tar],
            check=True,
        )
        (Path(work) / "Dockerfile").write_text('FROM scratch\nADD root.tar /\nCMD ["bash"]\n')
        _buildah("build", "--tag", BASE, work)


def _buildah(*arguments: str | Path, check: bool = True) -> str:
    driver = _storage_driver()
    store = cache_folder() / f"containers-{driver}"
    command = ["buildah", "--root", store / "root", "--runroot", store / "run", *arguments]
    environment = {**os.environ, "STORAGE_DRIVER": driver, "BUILDAH_ISOLATION": "chroot"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    words = " ".join(map(str, arguments))
    assert done.returncode == 0 or not check, f"buildah {words}:\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def _storage_driver() -> str:
    """overlay; where the cache itself lies on an overlay, vfs, which copies every layer whole."""
    command = ["findmnt", "-n", "-o", "FSTYPE", "-T", str(cache_folder())]
    kind = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return "vfs" if kind == "overlay" else "overlay"


def _acquire() -> str:
    """How this host's apt fetches, as apt.conf."""
    if shutil.which("apt-config") is None:
        return ""
    dump = subprocess.run(
        ["apt-config", "dump", "Acquire"], check=True, capture_output=True, text=True
    )
    return "".join(f"{line}\n" for line in re.findall(APT_SETTINGS, dump.stdout))


def _lent_to_apt(work: Path) -> list[str]:
    """mmdebstrap's arguments for the host's way to fetch; what it writes of them goes again."""
    config = work / "apt.conf"
    config.write_text(_acquire())
    return [
        f"--aptopt={config}",
        '--customize-hook=cd "$1/etc" && rm -f apt/apt.conf.d/99mmdebstrap hostname resolv.conf',
    ]


@contextmanager
def _lent() -> Iterator[list[str]]:
    """buildah's arguments that mount the host's settings for the time of the build."""
    with tempfile.TemporaryDirectory() as folder:
        apt, pip = Path(folder) / "apt.conf", Path(folder) / "pip.conf"
        acquire, lines = _acquire(), ["[global]"]
        mounts = {}
        if AUTHORITIES.exists():
            mounts[LENT_AUTHORITIES] = AUTHORITIES
            acquire += f'Acquire::https::CAInfo "{LENT_AUTHORITIES}";\n'
            lines.append(f"cert = {LENT_AUTHORITIES}")
        for name in PIP_SETTINGS:
            if value := _pip(name):
                lines.append(f"{name} = {value}")
                if name == "find-links" and Path(value).is_dir():
                    mounts[value] = Path(value)
        apt.write_text(acquire)
        pip.write_text("\n".join(lines) + "\n")
        mounts |= {"/etc/apt/apt.conf.d/99host": apt, "/etc/pip.conf": pip}
        yield [
            word
            for target, source in mounts.items()
            for word in ("--volume", f"{source}:{target}:ro")
        ]


def _pip(name: str) -> str:
    """A setting of the host's pip, from its environment or its files."""
    variable = os.environ.get(f"PIP_{name.upper().replace('-', '_')}")
    if variable:
        return variable
    done = subprocess.run(
        ["python3", "-m", "pip", "config", "get", f"global.{name}"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip() if done.returncode == 0 else ""


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
