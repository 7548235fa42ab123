# SPDX-License-Identifier: Apache-2.0
"""A volume whose content nobody vouches for."""

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ktrace_agent.errors import SinkFailed
from ktrace_agent.sinks.parcel import Parcel
from ktrace_agent.sinks.volume import Volume
from ktrace_api.assignment import VolumeTarget
from ktrace_api.snapshot import PvcOutput

FOLDER = "ops/slow-6f2c7a0e/node=n1"
NAMES = ("a.events.jsonl", "a.bundle.tgz")


class Place:
    def __init__(self, folder: Path) -> None:
        self.mount, self.outside = folder / "volume", folder / "outside"
        self.mount.mkdir()
        self.outside.mkdir()
        self.parcels = []
        for size, name in zip((1009, 3 * 2**20 + 7), NAMES, strict=True):
            content = (name.encode() * (size // 8 + 1))[:size]
            (folder / name).write_bytes(content)
            sha256 = hashlib.sha256(content).hexdigest()
            self.parcels.append(Parcel(folder / name, size, sha256))

    @property
    def folder(self) -> Path:
        return self.mount / FOLDER

    def deliver(self) -> None:
        target = VolumeTarget(
            output=PvcOutput(claim_name="traces"), mount=str(self.mount), folder=FOLDER
        )
        Volume(target, lambda _: None).deliver(self.parcels)

    def refused(self) -> str:
        with pytest.raises(SinkFailed) as refused:
            self.deliver()
        message = str(refused.value)
        assert "claim traces" in message
        assert "/proc/" not in message
        assert "\n" not in message
        return message


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_what_lies_there_is_what_was_given(place: Place):
    place.deliver()
    assert sorted(path.name for path in place.folder.iterdir()) == sorted(NAMES)
    for parcel in place.parcels:
        assert (place.folder / parcel.name).read_bytes() == parcel.path.read_bytes()


def test_folders_that_are_there_are_used(place: Place):
    place.folder.mkdir(parents=True)
    place.deliver()
    assert len(list(place.folder.iterdir())) == 2


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("leads_to", ["outside", "nowhere"])
def test_a_link_on_the_way_is_not_followed(place: Place, depth: int, leads_to: str):
    link = place.mount.joinpath(*FOLDER.split("/")[:depth])
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(place.outside if leads_to == "outside" else "/nowhere")
    assert "links are not followed" in place.refused()
    assert list(place.outside.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_link_in_place_of_a_file_is_not_written_through(place: Place, name: str):
    (place.outside / "passwd").write_text("root")
    place.folder.mkdir(parents=True)
    (place.folder / name).symlink_to(place.outside / "passwd")
    assert "not overwritten" in place.refused()
    assert (place.outside / "passwd").read_text() == "root"
    assert os.listdir(place.folder) == [name]


def test_a_file_that_is_there_stays_as_it_is(place: Place):
    place.folder.mkdir(parents=True)
    (place.folder / NAMES[1]).write_text("older")
    assert "not overwritten" in place.refused()
    assert (place.folder / NAMES[1]).read_text() == "older"
    assert os.listdir(place.folder) == [NAMES[1]]


def test_a_file_in_place_of_a_folder_is_told(place: Place):
    (place.mount / "ops").write_text("")
    assert "ops in claim traces is not a folder" in place.refused()


def test_what_cannot_be_read_back_is_not_delivered(place: Place):
    first = place.parcels[0]
    place.parcels[0] = Parcel(first.path, first.bytes, "0" * 64)
    assert "returns other content than was written" in place.refused()
    assert os.listdir(place.folder) == []


def refuse_link(*_: object, **how: object) -> None:
    raise OSError(errno.ENOENT if how else errno.EPERM, "no links here")


@pytest.mark.parametrize("links", [True, False])
def test_storage_without_unnamed_files_or_links_serves_as_well(
    place: Place, monkeypatch: pytest.MonkeyPatch, links: bool
):
    monkeypatch.setattr(os, "O_TMPFILE", 0)  # opening a folder to write: EISDIR
    if not links:
        monkeypatch.setattr(os, "link", refuse_link)
    place.deliver()
    assert sorted(os.listdir(place.folder)) == sorted(NAMES)
    for parcel in place.parcels:
        assert (place.folder / parcel.name).read_bytes() == parcel.path.read_bytes()
    again = {path.name: path.stat().st_ino for path in place.folder.iterdir()}
    assert "not overwritten" in place.refused()
    assert {path.name: path.stat().st_ino for path in place.folder.iterdir()} == again


IN_A_MOUNT = """
import sys
sys.path[:0] = [{root!r}]
from pathlib import Path
from tests.agent.sinks.test_volume import Place
place = Place(Path({folder!r}))
import subprocess
subprocess.run(["mount", "-t", "tmpfs", "-o", {options!r}, "none", str(place.mount)], check=True)
print(place.refused())
print([str(p) for p in place.mount.rglob("*") if p.is_file()])
"""


@pytest.mark.world("mount")
@pytest.mark.parametrize(
    ("options", "words"),
    [("size=1m", "claim traces is full"), ("ro", "claim traces is read-only")],
)
def test_a_full_or_closed_volume_is_told_and_nothing_half_lies_there(
    tmp_path: Path, options: str, words: str
):
    root = str(Path(__file__).resolve().parents[3])
    script = IN_A_MOUNT.format(root=root, folder=str(tmp_path), options=options)
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    message, files = done.stdout.splitlines()
    assert words in message
    assert files == "[]"
