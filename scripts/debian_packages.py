# SPDX-License-Identifier: Apache-2.0
"""apt with lists, cache and sources of its own: packages of other releases and architectures.

apt verifies every package as it does on the host (debian-archive-keyring). The archives' addresses
are read from the host's apt configuration. The host's own lists and sources are not changed.
"""

import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def missing() -> str | None:
    """Return why nothing can be downloaded here; None where it can."""
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            return f"{tool} is missing: only Debian's packages are supported"
    if not KEYRING.exists():
        return f"{KEYRING} is missing: install debian-archive-keyring"
    return None


class Apt:
    """apt for one architecture, with `folder` for its files.

    `security` and `main` are suites of the security archive and of the main one.
    """

    def __init__(
        self, folder: Path, arch: str, security: Iterable[str], main: Iterable[str]
    ) -> None:
        self._arch = arch
        self._security = tuple(security)
        self._main = tuple(main)
        self._lists = folder / "lists"
        self._sources = folder / "sources.list"
        self._options = [
            f"-oDir::State::lists={self._lists}",
            f"-oDir::Cache={folder / 'cache'}",
            f"-oDir::Etc::sourcelist={self._sources}",
            "-oDir::Etc::sourceparts=-",
            f"-oAPT::Architecture={arch}",
            "-oAPT::Update::Error-Mode=any",
            "-oAcquire::Languages=none",
            "-oAcquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
            "-oAcquire::Retries=2",
        ]
        if os.geteuid() == 0:  # its user _apt cannot enter root's cache
            self._options.append("-oAPT::Sandbox::User=root")
        for place in (self._lists / "partial", folder / "cache/archives/partial"):
            place.mkdir(parents=True, exist_ok=True)

    def age_s(self) -> float:
        """Return the seconds since the lists were updated; infinite if they never were."""
        stamp = self._lists / ".updated"
        return time.time() - stamp.stat().st_mtime if stamp.exists() else math.inf

    def update(self) -> str:
        """Update the lists. Returns apt's errors, such as a missing key; empty on success.

        A suite that fails keeps its old list, the others are updated.
        """
        try:
            self._sources.write_text(sources(self._arch, self._security, self._main))
        except LookupError as error:
            return str(error)
        done = self._run("apt-get", "-q", "update", check=False)
        lines = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W:"))]
        if done.returncode == 0:
            (self._lists / ".updated").touch()
            return ""
        return "; ".join(lines[:2]) or f"apt-get update ended with status {done.returncode}"

    def names(self, pattern: str) -> list[str]:
        """Return the names of packages that match a regular expression of apt-cache."""
        done = self._run("apt-cache", "search", "--names-only", pattern)
        return [line.partition(" ")[0] for line in done.stdout.splitlines()]

    def versions(self, names: Iterable[str]) -> list[tuple[str, str]]:
        """Return (package, version) of every version that the archives serve."""
        if not (wanted := list(names)):
            return []
        shown = self._run("apt-cache", "show", *wanted).stdout
        fields = re.findall(r"^(Package|Version): (\S+)$", shown, re.MULTILINE)
        pairs = zip(fields[::2], fields[1::2], strict=True)
        return [(package[1], version[1]) for package, version in pairs]

    def download(self, folder: Path, *packages: str) -> None:
        """Put the verified .deb of each package, or of each `package=version`, into `folder`."""
        self._run("apt-get", "-q", "download", *packages, folder=folder)

    def _run(
        self, tool: str, *arguments: str, folder: Path | None = None, check: bool = True
    ) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [tool, *self._options, *arguments],
            cwd=folder,
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C"},
        )
        if check and done.returncode != 0:
            raise LookupError(f"{tool} {' '.join(arguments)}: {done.stderr.strip()}")
        return done


def sources(arch: str, security: Iterable[str], main: Iterable[str]) -> str:
    """Return a sources.list of these suites at the mirrors that the host uses.

    Raises LookupError where the host is not a Debian.
    """
    codename = release()
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"],
        check=True,
        capture_output=True,
        text=True,
    )
    mirrors = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    lines = []
    for suites, suite in ((security, f"{codename}-security"), (main, codename)):
        if suite not in mirrors:
            raise LookupError(f"the host's apt sources do not name {suite}")
        lines += [
            f"deb [arch={arch} signed-by={KEYRING}] {mirrors[suite]} {one} main" for one in suites
        ]
    return "\n".join(lines) + "\n"


def release() -> str:
    """Return the codename of the host's Debian release. Raises LookupError on other systems."""
    text = Path("/etc/os-release").read_text()
    fields: dict[str, str] = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, re.MULTILINE))
    if fields.get("ID") != "debian":
        raise LookupError(f"packages come from Debian's mirrors, this is {fields.get('ID', '?')}")
    return fields["VERSION_CODENAME"]
