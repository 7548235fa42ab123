# SPDX-License-Identifier: Apache-2.0
"""The kubelet's folders as it lays them out, and as it never would."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrace_agent.enrich.pods import kubelet
from ktrace_agent.enrich.pods.kubelet import Folders, LogLink

ID = "7d" * 32
UID = "0f61a1d3-3c5e-4b0a-9d2e-2f4b6a7c8d9e"
HASH = "9b4ef2a1c35d4f7e8a6b0c1d2e3f4a5b"


def read(root: Path, seconds: float = 5.0) -> Folders:
    return kubelet.read(root, time.monotonic() + seconds)


def make(root: Path, uid: str = UID, pod: str = "web-0.a", container: str = "app") -> None:
    """One pod of one container, as the kubelet leaves it on the disk."""
    logs = root / kubelet.LOGS / f"shop_{pod}_{uid}" / container
    logs.mkdir(parents=True)
    (logs / "0.log").touch()
    (root / kubelet.PODS / uid / "containers" / container).mkdir(parents=True)
    links = root / kubelet.LINKS
    links.mkdir(parents=True, exist_ok=True)
    target = f"/{kubelet.LOGS}/shop_{pod}_{uid}/{container}/0.log"
    (links / f"{pod}_shop_{container}-{ID}.log").symlink_to(target)


@pytest.mark.parametrize("uid", [UID, HASH])
def test_a_pod(tmp_path: Path, uid: str) -> None:
    make(tmp_path, uid)
    assert read(tmp_path) == Folders(
        links=(LogLink(ID, "shop", "web-0.a", "app", uid),),
        pods={uid: ("shop", "web-0.a")},
        containers={uid: frozenset({"app"})},
    )


def test_one_folder_is_enough_for_what_it_knows(tmp_path: Path) -> None:
    (tmp_path / kubelet.PODS / UID / "containers/app").mkdir(parents=True)
    assert read(tmp_path) == Folders(containers={UID: frozenset({"app"})})
    (tmp_path / kubelet.LINKS).mkdir(parents=True)
    link = tmp_path / kubelet.LINKS / f"web-0_shop_app-sidecar-{ID}.log"
    link.symlink_to(f"/var/lib/docker/containers/{ID}/{ID}-json.log")
    assert read(tmp_path).links == (LogLink(ID, "shop", "web-0", "app-sidecar", "-"),)


def test_nothing_there(tmp_path: Path) -> None:
    assert read(tmp_path) == Folders()


def test_a_link_that_points_to_another_pod_says_nothing(tmp_path: Path) -> None:
    (tmp_path / kubelet.LINKS).mkdir(parents=True)
    link = tmp_path / kubelet.LINKS / f"web-0_shop_app-{ID}.log"
    link.symlink_to(f"/{kubelet.LOGS}/shop_web-1_{UID}/app/0.log")
    assert read(tmp_path).links == ()


def test_more_than_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubelet, "MAX_ENTRIES", 5)
    for number in range(7):
        (tmp_path / kubelet.PODS / f"{number:032x}" / "containers/app").mkdir(parents=True)
    found = read(tmp_path)
    assert found.cut
    assert len(found.containers) == 5
    assert read(tmp_path, -1.0) == Folders(cut=True)


NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60
).filter(lambda name: name not in (".", "..") and len(name.encode()) < 250)


@given(names=st.lists(NAMES, unique=True, max_size=8))
def test_any_names_of_files(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    root = tmp_path_factory.mktemp("root")
    for folder in (kubelet.LINKS, kubelet.LOGS, kubelet.PODS):
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).touch()
    found = read(root)
    assert not found.links
    assert not found.pods
