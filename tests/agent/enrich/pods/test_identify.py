# SPDX-License-Identifier: Apache-2.0
"""Sources that agree, that report nothing, and that contradict each other."""

import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from syrupy.assertion import SnapshotAssertion

from ktrace_agent.enrich.pods import kubelet, watch
from ktrace_agent.enrich.pods.cri import Answer, CriState
from ktrace_agent.enrich.pods.cri_wire import Container, Sandbox
from ktrace_agent.enrich.pods.identify import MAX_NOTES, Identities, identify
from ktrace_agent.enrich.pods.kubelet import Folders, LogLink
from ktrace_agent.enrich.pods.watch import PodMetadata, Watch
from ktrace_api.row import PodIdentity
from tests.bpf.workers import wait_until

ID, OTHER, POD = "7d" * 32, "c0" * 32, "a1" * 32
UID = "0f61a1d3-3c5e-4b0a-9d2e-2f4b6a7c8d9e"
OTHER_UID = "9b4ef2a1c35d4f7e8a6b0c1d2e3f4a5b"
PATH = f"/kubepods/burstable/pod{UID}/{ID}"
WEB = PodIdentity(pod_uid=UID, namespace="shop", pod="web-0", container="app", container_id=ID)
NAMELESS = PodIdentity(pod_uid=UID, container_id=ID)

SANDBOX = Sandbox(POD, UID, "shop", "web-0")
CONTAINER = Container(ID, POD, "app", UID, "shop", "web-0")
NO_FOLDERS = Folders()
LINK = LogLink(ID, "shop", "web-0", "app", UID)


def answer(*items: Sandbox | Container, **facts: Any) -> Answer:
    return Answer(
        "/run/x.sock",
        CriState.ANSWERED,
        sandboxes=tuple(item for item in items if isinstance(item, Sandbox)),
        containers=tuple(item for item in items if isinstance(item, Container)),
        **facts,
    )


@pytest.fixture
def who(tmp_path: Path) -> Any:
    """identify() of one path, with the given answers of the sources."""

    def ask(
        *answers: Answer, folders: Folders = NO_FOLDERS, path: str = PATH, **how: Any
    ) -> Identities:
        metadata = PodMetadata()
        metadata.add(folders, answers)
        root = tmp_path / "empty"
        return identify({7: path}, host_root=root, proc=root / "proc", metadata=metadata, **how)

    return ask


def test_the_runtime_names_it(who: Any) -> None:
    found = who(answer(SANDBOX, CONTAINER))
    assert found.by_cgroup == {7: WEB}
    assert found.notes == ()
    assert (found.sources.containers, found.sources.named) == (1, 1)


@pytest.mark.parametrize(
    ("items", "folders", "path", "expected"),
    [
        pytest.param((), Folders(links=(LINK,)), PATH, WEB, id="log link"),
        pytest.param(
            (), Folders(pods={UID: ("shop", "web-0")}), PATH,
            WEB.model_copy(update={"container": "-"}), id="log folder: no container by its id"),
        pytest.param((), Folders(), PATH, NAMELESS, id="no source"),
        pytest.param((SANDBOX, CONTAINER), Folders(links=(LINK,), pods={UID: ("shop", "web-0")}),
                     PATH, WEB, id="all"),
        pytest.param((CONTAINER,), Folders(), PATH, WEB, id="its sandbox is bad"),
        pytest.param((SANDBOX, Container(ID, POD, "app")), Folders(), PATH, WEB, id="no labels"),
        pytest.param(
            (SANDBOX, CONTAINER), Folders(), f"/kubepods/burstable/pod{UID}/{POD}",
            WEB.model_copy(update={"container": "-", "container_id": POD}), id="the sandbox"),
        pytest.param(
            (SANDBOX, CONTAINER), Folders(), f"/kubepods/burstable/pod{UID}",
            WEB.model_copy(update={"container": "-", "container_id": "-"}), id="the pod"),
        pytest.param((SANDBOX, CONTAINER), Folders(), f"/k8s.io/{ID}", WEB, id="id alone"),
        pytest.param(
            (SANDBOX, CONTAINER), Folders(),
            f"/kubepods-pod{UID.replace('-', '_')}.slice:cri-containerd:{ID}"[:96], WEB,
            id="id cut"),
        pytest.param((SANDBOX, CONTAINER), Folders(), f"/docker/{OTHER}",
                     PodIdentity(container_id=OTHER), id="another container"),
    ],
)  # fmt: skip
def test_what_is_known(
    who: Any, items: tuple[Any, ...], folders: Folders, path: str, expected: PodIdentity
) -> None:
    found = who(answer(*items), folders=folders, path=path)
    assert found.by_cgroup == {7: expected}
    assert found.notes == ()


@pytest.mark.parametrize(
    ("items", "folders", "unknown"),
    [
        pytest.param(
            (Sandbox(POD, OTHER_UID, "shop", "web-0"), Container(ID, POD, "app")), Folders(),
            ("pod_uid", "namespace", "pod", "container"), id="the runtime names another pod"),
        pytest.param((SANDBOX, CONTAINER), Folders(pods={UID: ("shop", "web-1")}), ("pod",),
                     id="the log folder names another pod"),
        pytest.param((SANDBOX, CONTAINER),
                     Folders(links=(LogLink(ID, "shop", "web-0", "db", "-"),)), ("container",),
                     id="the log link names another container"),
        pytest.param((SANDBOX, Container(ID, POD, "app", UID, "bank", "web-0")), Folders(),
                     ("namespace",), id="container and sandbox differ"),
        pytest.param((SANDBOX, Sandbox(OTHER, UID, "shop", "web-9"), CONTAINER), Folders(),
                     ("pod",), id="two sandboxes of one uid differ"),
        pytest.param((SANDBOX, CONTAINER, Container(ID, POD, "db", UID, "shop", "web-0")),
                     Folders(), ("container",), id="one id twice"),
    ],
)  # fmt: skip
def test_a_contradiction_is_shown_and_nothing_is_guessed(
    who: Any, items: tuple[Any, ...], folders: Folders, unknown: tuple[str, ...]
) -> None:
    found = who(answer(*items), folders=folders)
    assert found.by_cgroup == {7: WEB.model_copy(update=dict.fromkeys(unknown, "-"))}
    assert found.sources.contradictions == 1
    (note,) = found.notes
    assert ID[:12] in note
    assert note.startswith(f"Sources disagree on the {unknown[0].replace('_uid', ' UID')}")


def test_what_went_away_keeps_its_name(who: Any) -> None:
    assert who(answer(SANDBOX, CONTAINER), answer()).by_cgroup == {7: WEB}
    changed = Container(ID, POD, "db", UID, "shop", "web-0")
    found = who(answer(SANDBOX, CONTAINER), answer(changed))
    assert found.by_cgroup[7].container == "-"


def test_neither_pod_nor_container_is_left_out(who: Any) -> None:
    assert who(answer(SANDBOX, CONTAINER), path="/system.slice/sshd.service").by_cgroup == {}


def test_a_prefix_of_two_ids_is_none(who: Any) -> None:
    twin = Container(ID[:62] + "00", POD, "db", UID, "shop", "web-0")
    path = f"/kubepods-pod{UID.replace('-', '_')}.slice:cri-containerd:{ID}"[:96]
    found = who(answer(SANDBOX, CONTAINER, twin), path=path)
    assert found.by_cgroup[7] == WEB.model_copy(update={"container": "-", "container_id": "-"})


def test_notes(who: Any, tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    (tmp_path / "empty/proc/1").mkdir(parents=True)
    timeout = Answer("/run/y.sock", CriState.TIMEOUT, "DEADLINE_EXCEEDED: Deadline Exceeded")
    other = Container(ID, POD, "db", OTHER_UID, "shop", "web-0")
    notes = {
        "no socket answered": who(mode="true"),
        "a missing socket": who(sockets=["/none.sock"]),
        "no socket is queried": who(mode="false", sockets=["/none.sock"]),
        "a timeout": who(timeout),
        "invalid items": who(answer(bad=2)),
        "many items": who(answer(left_out=1)),
        "large directories": who(folders=Folders(cut=True)),
        "no time for processes": who(deadline_s=-1),
        "two pods": who(answer(SANDBOX, other)),
        "two containers": who(answer(CONTAINER, Container(ID, POD, "db", UID, "shop", "web-0"))),
    }
    assert {case: sorted(found.notes) for case, found in notes.items()} == snapshot


def test_many_contradictions_are_counted(tmp_path: Path) -> None:
    metadata, paths = PodMetadata(), {}
    for number in range(50):
        key = f"{number:064x}"
        paths[number] = f"/kubepods/pod{UID}/{key}"
        metadata.add(Folders(), [answer(*(Container(key, POD, name) for name in ("a", "b")))])
    found = identify(paths, host_root=tmp_path, proc=tmp_path, metadata=metadata)
    assert len(found.notes) <= MAX_NOTES
    assert found.sources.contradictions == 50
    assert found.notes[-1].endswith("more disagreements are not listed.")


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MAX_KNOWN", 3)
    metadata = PodMetadata()
    for number in range(9):
        metadata.add(Folders(), [answer(Container(ID, POD, f"n{number}"))])
        metadata.add(Folders(), [answer(Container(f"{number:064x}", POD, "app"))])
    assert len(metadata.containers) == 3
    assert len(metadata.containers[ID]) == watch.MAX_CLAIMS
    assert metadata.limits == {"more than 3 containers or pods were reported"}


def test_a_watch_keeps_what_is_removed_before_the_end(tmp_path: Path) -> None:
    folder = tmp_path / kubelet.LOGS / f"shop_web-0_{UID}"
    watch = Watch(mode="auto", sockets=(), host_root=tmp_path, period_s=0.01)
    watch.start()
    folder.mkdir(parents=True)
    wait_until(lambda: UID in watch.metadata.pods, "a poll of the directory", 10)
    folder.rmdir()
    watch.stop()
    assert "identity" not in {thread.name for thread in threading.enumerate()}
    found = identify({7: PATH}, host_root=tmp_path, proc=tmp_path, metadata=watch.metadata)
    assert found.by_cgroup[7].pod == "web-0"


CLAIM = st.sampled_from(["-", "a", "b"])
UIDS = st.sampled_from(["-", UID, OTHER_UID])


@given(
    path=st.sampled_from([PATH, f"/k8s.io/{ID}", f"/kubepods/pod{UID}"]),
    sandboxes=st.lists(st.builds(Sandbox, st.sampled_from([POD, OTHER]), UIDS, CLAIM, CLAIM)),
    containers=st.lists(st.builds(Container, st.just(ID), st.just(POD), CLAIM, UIDS, CLAIM, CLAIM)),
    pods=st.dictionaries(st.sampled_from([UID, OTHER_UID]), st.tuples(CLAIM, CLAIM)),
)
def test_a_name_is_never_one_that_a_source_disputes(
    path: str,
    sandboxes: list[Sandbox],
    containers: list[Container],
    pods: dict[str, tuple[str, str]],
) -> None:
    metadata = PodMetadata()
    metadata.add(Folders(pods=pods), [answer(*sandboxes, *containers)])
    nowhere = Path("/nonexistent")
    found = identify({7: path}, mode="false", host_root=nowhere, proc=nowhere, metadata=metadata)
    one = found.by_cgroup[7]
    if path != f"/kubepods/pod{UID}":
        names = {container.name for container in containers} - {"-"}
        assert one.container == "-" or names == {one.container}
    of_uid = {pods[one.pod_uid][1]} if one.pod_uid in pods else set()
    assert one.pod == "-" or not of_uid - {"-", one.pod}
