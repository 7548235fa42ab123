# SPDX-License-Identifier: Apache-2.0
"""Builds dist/ktrace-static: static_launcher.c and an image with everything the agent needs.

The image contains this interpreter, the part of its library that the agent uses, the packages of
requirements/agent.lock as installed in this environment, the agent, its BPF objects and all shared
libraries including the dynamic loader (docs/adr/0002-static-file.md).
"""

import compileall
import os
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BPF_OBJECTS = ("ktrace.bpf.o", "ktrace_basic.bpf.o", "libktrace_ring.so")
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"

# Parts of the standard library that a node does not need or that need more libraries.
STDLIB_LEFT_OUT = {
    "__pycache__", "config", "distutils", "ensurepip", "idlelib", "lib-dynload", "lib2to3",
    "pydoc_data", "site-packages", "dist-packages", "sqlite3", "test", "tests", "tkinter",
    "turtledemo", "unittest", "venv",
}  # fmt: skip
DYNLOAD_LEFT_OUT = re.compile(
    r"_(test|xx|tkinter|curses|dbm|gdbm|sqlite3|ssl|crypt)|readline|nis|ossaudiodev|xx"
)
SITE_LEFT_OUT = re.compile(
    r"(^|/)(tests?|f2py|__pycache__|include)(/|$)|_tests?\.|_tests\.cpython|\.(pyi|h|c|a|pxd|lib)$"
    r"|^\.\./|^bin/"
)
MAIN = """\
import sys

sys.argv[0] = "ktrace"
from ktrace_agent.cli.main import entry

sys.exit(entry())
"""


def run(*command: str | Path) -> str:
    """Return the standard output of a command. Raises CalledProcessError."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    shutil.copymode(source, target)


def compile_in_place(folder: Path) -> None:
    """Replace every .py by its .pyc: smaller, and nothing is compiled on the node."""
    if not compileall.compile_dir(
        folder, quiet=1, legacy=True, optimize=0, stripdir=str(folder), ddir=None
    ):
        raise SystemExit(f"{folder}: not everything compiles")
    for source in folder.rglob("*.py"):
        source.unlink()


def add_stdlib(image: Path, work: Path) -> None:
    """Add modules as lib/pythonXY.zip, extensions in lib/pythonX.Y/lib-dynload."""
    source = Path(sysconfig.get_path("stdlib"))
    flat = work / "stdlib"
    for path in source.rglob("*.py"):
        relative = path.relative_to(source)
        if not STDLIB_LEFT_OUT & set(relative.parts) and not relative.parts[0].startswith(
            "config-"
        ):
            copy(path, flat / relative)
    compile_in_place(flat)
    library = image / "lib" / f"python{VERSION}"
    (library / "lib-dynload").mkdir(parents=True)
    archive = image / "lib" / f"python{VERSION.replace('.', '')}.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for path in sorted(flat.rglob("*.pyc")):
            file.write(path, path.relative_to(flat))
    for path in (source / "lib-dynload").glob("*.so"):
        if not DYNLOAD_LEFT_OUT.match(path.name):
            copy(path, library / "lib-dynload" / path.name)


def locked_packages() -> Iterator[metadata.Distribution]:
    """Return the packages of requirements/agent.lock that are installed (some are conditional)."""
    lock = (ROOT / "requirements/agent.lock").read_text()
    for name in sorted(set(re.findall(r"^([a-z0-9._-]+)==", lock, re.MULTILINE))):
        try:
            yield metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue


def add_packages(image: Path) -> None:
    site = image / "site"
    for package in locked_packages():
        for file in package.files or ():
            if not SITE_LEFT_OUT.search(str(file)):
                copy(Path(str(file.locate())), site / file)
    for name in ("api/ktrace_api", "agent/ktrace_agent"):
        for path in (ROOT / name).rglob("*.py"):
            copy(path, site / path.relative_to(ROOT / Path(name).parent))
    compile_in_place(site)


def shared_libraries(file: Path) -> Iterator[Path]:
    """Return the libraries that the dynamic loader of this machine loads for `file`."""
    done = subprocess.run(["ldd", file], check=False, capture_output=True, text=True)
    if "not found" in done.stdout:
        raise SystemExit(f"{file}: {done.stdout}")
    for path in re.findall(r"=> (/\S+) \(", done.stdout):
        yield Path(path)


def add_libraries(image: Path, interpreter: Path) -> None:
    """Add the interpreter's loader as `ktrace`, and all needed libraries in lib/."""
    loader = re.search(r"interpreter: (\S+)\]", run("readelf", "-l", interpreter))
    if loader is None:
        raise SystemExit(f"{interpreter} is not linked dynamically")
    copy(Path(loader[1]).resolve(), image / "ktrace")
    found = {Path(run("cc", f"-print-file-name={name}").strip()) for name in ("libgcc_s.so.1",)}
    for file in [interpreter, *image.rglob("*.so"), *image.rglob("*.so.*")]:
        for library in shared_libraries(file):
            if not library.is_relative_to(image):
                found.add(library)
    for library in found:
        if library.name != Path(loader[1]).name:
            copy(library.resolve(), image / "lib" / library.name)


def strip_debug(image: Path) -> None:
    """Remove debug symbols, but not from wheels: their patched libraries may break."""
    files = [image / "bin/python", *(image / "lib").rglob("*.so*")]
    run("strip", "--strip-debug", *files)


def make_image(image: Path, work: Path) -> None:
    interpreter = Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
    add_stdlib(image, work)
    add_packages(image)
    for name in BPF_OBJECTS:
        copy(ROOT / "agent/bpf/build" / name, image / "bpf" / name)
    copy(interpreter, image / "bin/python")
    add_libraries(image, interpreter)
    strip_debug(image)
    for file in ("LICENSE", "LICENSES/GPL-2.0-only.txt"):
        copy(ROOT / file, image / "licenses" / Path(file).name)
    (image / "main.py").write_text(MAIN)


def pack(image: Path, target: Path) -> int:
    """Pack the image as ustar, folders first, sorted, without owners and times; return the size."""
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as file:
        for path in sorted(image.rglob("*")):
            member = file.gettarinfo(path, str(path.relative_to(image)))
            member.uid = member.gid = member.mtime = 0
            member.uname = member.gname = ""
            if member.isfile():
                with path.open("rb") as content:
                    file.addfile(member, content)
            elif member.isdir():
                file.addfile(member)
            else:
                raise SystemExit(f"{path} is neither file nor folder")
    return target.stat().st_size


def main(target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="ktrace-static-") as name:
        work = Path(name)
        image, tar, packed, launcher = (work / n for n in ("image", "tar", "tar.zst", "launcher"))
        image.mkdir()
        make_image(image, work)
        unpacked = pack(image, tar)
        run("zstd", "-q", "-15", "-T0", tar, "-o", packed)
        source = Path(__file__).with_name("static_launcher.c")
        run(
            "cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-sign-compare",
            "-static", "-s", source, "-o", launcher, "-lzstd",
        )  # fmt: skip
        content = packed.read_bytes()
        made = target.with_suffix(".new")
        target.parent.mkdir(parents=True, exist_ok=True)
        made.write_bytes(
            launcher.read_bytes() + content + struct.pack("<Q8s", len(content), b"KTRACE01")
        )
        made.chmod(0o755)
        made.replace(target)
    print(f"{target}: {target.stat().st_size / 2**20:.1f} MiB, {unpacked / 2**20:.1f} MiB unpacked")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
