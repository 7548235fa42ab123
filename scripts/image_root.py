# SPDX-License-Identifier: Apache-2.0
"""Creates the root of an image in a build stage, one folder for each layer.

    image_root.py system FOLDER PACKAGE...   files of Debian packages that are installed here
    image_root.py site FOLDER LOCK           Python packages of a lock, with hashes checked
    image_root.py app FOLDER WHEEL NAME...   the project without the named packages
    image_root.py check FOLDER...            checks that all layers together lack no library

The image contains no shell, package manager or compiler. An attacker in a privileged container
cannot use them, and they need no security updates. Uses only the standard library, because it runs
before anything is installed.
"""

import compileall
import os
import py_compile
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = re.compile(r"/usr/share/(doc|man|locale|info|lintian|bug|bash-completion)(/|$)")
COPYRIGHT = re.compile(r"/usr/share/doc/[^/]+(/copyright)?$")
LEFT_OUT = re.compile(
    r"/usr/lib/[^/]+/gconv/|/usr/share/(pixmaps|applications)/"
    # modules whose libraries are useful only at a terminal
    r"|/lib-dynload/(_sqlite3|_curses|_dbm|_gdbm|_tkinter|_test|_xx|_ctypes_test|readline)"
)
SITE_LEFT_OUT = re.compile(
    r"/(tests?|_pyinstaller|f2py|examples|include)/.*"
    r"|_tests?\.|\.(pyi|pxd|a|h|c|lib|rst)$"
)
AWS_SERVICES = {"s3", "sts", "sso", "sso-oidc", "signin"}
"""Services that botocore needs to find credentials and to use S3; it contains 400 more."""
ACCOUNTS = {
    "etc/passwd": "root:x:0:0:root:/root:/sbin/nologin\n"
    "nonroot:x:65532:65532:nonroot:/tmp:/sbin/nologin\n",
    "etc/group": "root:x:0:\nnonroot:x:65532:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}


def run(*command: str | Path) -> str:
    """Return the standard output; the build ends if the command fails."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def system(root: Path, *packages: str) -> None:
    """Copy the files and licences of packages, and their versions to the place scanners read."""
    for folder in ("proc", "sys", "dev", "run", "root", "tmp", "var/lib/dpkg/status.d"):
        (root / folder).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    for package in packages:
        for line in run("dpkg", "--listfiles", package).splitlines():
            if os.path.lexists(line) and _wanted(line):  # a slim base has no docs
                _take(Path(line), root)
        status = run("dpkg-query", "--status", package)
        (root / "var/lib/dpkg/status.d" / package).write_text(status)
    for name, text in ACCOUNTS.items():
        (root / name).write_text(text)
    _take(Path("/etc/ssl/certs/ca-certificates.crt"), root)
    _compile(root / "usr/lib")


def site(root: Path, lock: str) -> None:
    """Install the packages of a lock without their tests and without unused AWS services."""
    _pip(root, "--require-hashes", "--requirement", lock)
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif SITE_LEFT_OUT.search(str(path)):
            path.unlink()
    for data in root.rglob("botocore/data/*"):
        if data.is_dir() and data.name not in AWS_SERVICES:
            shutil.rmtree(data)
    shutil.rmtree(root / "usr/local/bin", ignore_errors=True)
    _compile(root)


def app(root: Path, wheel: str, *unwanted: str) -> None:
    """Install the project's wheel without packages and commands of the other image."""
    _pip(root, "--no-deps", "--no-index", wheel)
    for name in unwanted:
        found = next(root.rglob(name))
        if found.is_dir():
            shutil.rmtree(found)
        else:
            found.unlink()
    _compile(root)


def check(*layers: str) -> None:
    """Resolve the libraries of every program and extension with the image's own loader."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for layer in layers:
            shutil.copytree(layer, root, symlinks=True, dirs_exist_ok=True)
        loader = next(root.glob("usr/lib*/ld-linux-*.so.*"))
        found = 0
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink() and _is_dynamic(path):
                inside = f"/{path.relative_to(root)}"
                run("chroot", root, f"/{loader.relative_to(root)}", "--list", inside)
                found += 1
    print(f"all libraries of {found} files were found")


def _pip(root: Path, *arguments: str) -> None:
    run(
        sys.executable, "-m", "pip", "install", "--quiet", "--root", root, "--ignore-installed",
        "--break-system-packages", "--root-user-action=ignore", "--no-compile", "--no-cache-dir",
        "--only-binary=:all:", *arguments,
    )  # fmt: skip


def _wanted(path: str) -> bool:
    if COPYRIGHT.match(path):
        return path.endswith("/copyright") or os.path.islink(path)  # to a package with the same
    return not (DOCS.match(path) or LEFT_OUT.search(path))


def _take(path: Path, root: Path) -> None:
    """Copy a file or link to the same path below root; only create a folder."""
    target = root / str(path).lstrip("/")
    if path.is_dir() and not path.is_symlink():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, target, follow_symlinks=False)


def _compile(root: Path) -> None:
    """Compile now, because the image is read-only; hashes keep byte code valid at any time."""
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    if not compileall.compile_dir(
        root, quiet=1, stripdir=str(root), prependdir="/", invalidation_mode=mode
    ):
        raise SystemExit(f"{root}: not everything compiles")


def _is_dynamic(path: Path) -> bool:
    """Return whether the file is an ELF program or shared library, not an object file."""
    with path.open("rb") as file:
        head = file.read(18)
    return head[:4] == b"\x7fELF" and int.from_bytes(head[16:18], "little") in (2, 3)


def main() -> None:
    step, folder, *rest = sys.argv[1:]
    match step:
        case "system":
            system(Path(folder), *rest)
        case "site":
            site(Path(folder), *rest)
        case "app":
            app(Path(folder), *rest)
        case "check":
            check(folder, *rest)
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
