# SPDX-License-Identifier: Apache-2.0
"""An image as it is pulled (sizes, configuration) and as it lies on a disk (a folder)."""

import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.images import ROOT, build

MOUNTS = (
    "mount -t proc proc proc && mount --rbind /sys sys && mount --bind /dev dev && exec chroot ."
)


@dataclass(frozen=True)
class Image:
    """An unpacked OCI archive."""

    root: Path
    config: dict[str, Any]
    layers: list[int]
    """Compressed sizes in bytes, first the lowest."""
    names: list[str]
    """Every path but folders in any layer, relative to the root."""

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run it in the image's root, with the host's kernel, in mounts of its own."""
        words = ["unshare", "--mount", "sh", "-c", f'{MOUNTS} "$@"', "sh", *command]
        return subprocess.run(words, cwd=self.root, check=False, capture_output=True, text=True)

    def entry(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run(*self.config["Entrypoint"], *arguments)

    @property
    def unpacked(self) -> int:
        """Bytes of all files on a disk, links counted once."""
        inodes = {one.lstat().st_ino: one.lstat().st_size for one in self.files}
        return sum(inodes.values())

    @property
    def files(self) -> list[Path]:
        return [one for one in self.root.rglob("*") if one.is_file() and not one.is_symlink()]


def unpack(archive: Path, folder: Path) -> Image:
    """Lay an archive out in a new folder."""
    names: list[str] = []
    with tarfile.open(archive) as file:

        def blob(descriptor: dict[str, Any]) -> Any:
            return file.extractfile("blobs/" + descriptor["digest"].replace(":", "/"))

        [manifest] = json.load(file.extractfile("index.json"))["manifests"]  # type: ignore[arg-type]
        manifest = json.load(blob(manifest))
        for layer in manifest["layers"]:
            with tarfile.open(fileobj=blob(layer)) as content:
                names += [one.name for one in content if not one.isdir()]
                # With all rights: tests ask for them. Python 3.11.2 (Debian 12) has no filters.
                content.extraction_filter = getattr(tarfile, "fully_trusted_filter", None)
                content.extractall(folder)
        config = json.load(blob(manifest["config"]))["config"]
    return Image(folder, config, [one["size"] for one in manifest["layers"]], names)


def built(name: str, target: str, folder: Path) -> Image:
    """From the Dockerfile, under the name that tests/cluster gives it too, so it is built once."""
    return unpack(
        build(ROOT / f"Dockerfile.{name}", f"localhost/ktrace-{name}:dev", target), folder
    )


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return built("agent", "core", tmp_path_factory.mktemp("agent"))


@pytest.fixture(scope="session")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return built("operator", "", tmp_path_factory.mktemp("operator"))


@pytest.fixture(params=["agent", "operator"])
def image(request: pytest.FixtureRequest) -> Image:
    found: Image = request.getfixturevalue(request.param)
    return found
