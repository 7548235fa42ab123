# SPDX-License-Identifier: Apache-2.0
import os
import threading
from pathlib import Path

import pytest

from ktrace_agent.host.netns import find_netns, inode_of, run_in_netns


def never() -> bool:
    return False


def processes(root: Path, namespaces: dict[str, str]) -> Path:
    for pid, link in namespaces.items():
        (root / pid / "ns").mkdir(parents=True)
        (root / pid / "ns/net").symlink_to(link)
    return root


@pytest.mark.parametrize(
    ("link", "kind", "inode"),
    [
        ("net:[4026531833]", "net", 4026531833),
        ("time:[1]", "time", 1),
        ("mnt:[1]", "net", None),
        ("net:[]", "net", None),
        ("net:[-1]", "net", None),
        (f"net:[{'9' * 16}]", "net", None),
    ],
)
def test_a_link_names_an_inode_of_its_kind(tmp_path: Path, link: str, kind: str, inode: int | None):
    (tmp_path / "link").symlink_to(link)
    assert inode_of(tmp_path / "link", kind) == inode
    assert inode_of(tmp_path / "missing") is None


def test_three_processes_of_each_namespace_are_found(tmp_path: Path):
    same = {str(pid): "net:[1]" for pid in range(10, 15)}
    proc = processes(tmp_path, {**same, "20": "net:[2]", "30": "nothing", "self": "net:[3]"})
    found = find_netns(proc, never)
    assert found.keys() == {1, 2}
    assert (len(found[1]), found[2]) == (3, ["20"])
    assert set(found[1]) <= same.keys()


def test_without_time_or_processes_nothing_is_found(tmp_path: Path):
    assert find_netns(processes(tmp_path, {"1": "net:[1]"}), lambda: True) == {}
    assert find_netns(tmp_path / "missing", never) == {}


def test_work_for_a_namespace_that_is_gone_or_another_is_not_done():
    own = inode_of("/proc/self/ns/net")
    assert own is not None
    assert run_in_netns(os.getpid(), own + 1, threading.get_ident) is None
    assert run_in_netns(2**22 + 1, own, threading.get_ident) is None
