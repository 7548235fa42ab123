# SPDX-License-Identifier: Apache-2.0
"""The CRI client against real gRPC servers that answer, lie, hang, close and stutter."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ktrace_agent.enrich.pods import cri, cri_wire
from ktrace_agent.enrich.pods.cri import Answer, CriState
from ktrace_agent.enrich.pods.cri_wire import Container, Sandbox
from tests.containers.cri_server import Reply, Service, listen, serve
from tests.containers.wire import labels, message

POD, APP = "a1" * 32, "b2" * 32
UID = "0f61a1d3-3c5e-4b0a-9d2e-2f4b6a7c8d9e"
KUBERNETES = {
    "io.kubernetes.pod.name": "web-0",
    "io.kubernetes.pod.namespace": "shop",
    "io.kubernetes.pod.uid": UID,
}
VERSION = message((1, "0.1.0"), (2, "containerd"), (3, "v2.1.4"), (4, "v1"))


def sandbox(number: str = POD, name: str = "web-0", **labelled: str) -> bytes:
    metadata = message((1, name), (2, UID), (3, "shop"), (4, 1))
    texts = {**KUBERNETES, "tier": "front", **labelled}
    return message(
        (1, number), (2, metadata), (3, 0), (4, 1769291874326000000), *labels(5, texts), (7, "runc")
    )


def container(number: str = APP, name: str = "app") -> bytes:
    return message(
        (1, number), (2, POD), (3, message((1, name), (2, 3))), (4, message((1, "app:1"))),
        (5, "sha256:00"), (6, 1), (7, 1769291874326000000),
        *labels(8, {**KUBERNETES, "io.kubernetes.container.name": name}),
        *labels(9, {"io.kubernetes.container.hash": "7"}),
    )  # fmt: skip


def listing(*items: bytes) -> bytes:
    return message(*((1, item) for item in items))


USUAL: dict[str, Reply] = {
    "Version": VERSION,
    "ListPodSandbox": listing(sandbox()),
    "ListContainers": listing(container()),
}
KNOWN = (
    (Sandbox(POD, UID, "shop", "web-0"),),
    (Container(APP, POD, "app", UID, "shop", "web-0"),),
)


def ask(path: Path, seconds: float = 2.0) -> Answer:
    return cri.query("unix:///x.sock", path, time.monotonic() + seconds)


@pytest.mark.parametrize("api", ["v1", "v1alpha2"])
def test_names_of_both_versions(tmp_path: Path, api: str) -> None:
    with serve(tmp_path / "s", USUAL, api):
        answer = ask(tmp_path / "s")
    assert answer == Answer(
        "unix:///x.sock",
        CriState.ANSWERED,
        api=api,
        runtime="containerd",
        version="v2.1.4",
        sandboxes=KNOWN[0],
        containers=KNOWN[1],
    )


BAD_ITEMS = {
    "no id": message((2, POD)),
    "short id": container(APP[:-1]),
    "terminal escape": container(name="\x1b[31mred"),
    "long name": container(name="x" * 300),
    "not utf-8": container().replace(b"app", b"\xff\xfe\xfd"),
    "cut": container()[:-3],
    "a number for a message": message((1, APP), (2, POD), (3, 7)) + b"\x42\xff",
    "group": b"\x0b\x0c",
    "endless varint": b"\x08" + b"\xff" * 12,
    "metadata and label differ": container().replace(b"app", b"owl", 1),
    "random": bytes(range(1, 200)),
}


@pytest.mark.parametrize("bad", BAD_ITEMS.values(), ids=BAD_ITEMS)
def test_a_bad_item_spoils_no_other(tmp_path: Path, bad: bytes) -> None:
    replies = {**USUAL, "ListContainers": listing(bad, container(), bad)}
    with serve(tmp_path / "s", replies):
        answer = ask(tmp_path / "s")
    assert (answer.state, answer.bad) == (CriState.ANSWERED, 2)
    assert (answer.sandboxes, answer.containers) == KNOWN


@pytest.mark.parametrize(
    ("replies", "state"),
    [
        ({}, CriState.UNIMPLEMENTED),
        ({**USUAL, "ListContainers": grpc.StatusCode.INTERNAL}, CriState.FAILED),
        ({**USUAL, "Version": grpc.StatusCode.PERMISSION_DENIED}, CriState.DENIED),
        ({**USUAL, "ListPodSandbox": b"\xff\xff\xff"}, CriState.GARBAGE),
        ({**USUAL, "ListPodSandbox": b"\x0a\x7f1"}, CriState.GARBAGE),
        ({**USUAL, "Version": b"\x12\x02\xff\xff"}, CriState.GARBAGE),
        ({**USUAL, "ListContainers": bytes(cri.MAX_ANSWER + 1)}, CriState.FAILED),
    ],
)
def test_no_answer_has_a_reason(tmp_path: Path, replies: dict[str, Reply], state: CriState) -> None:
    with serve(tmp_path / "s", replies):
        answer = ask(tmp_path / "s")
    assert answer.state is state
    assert answer.detail != "-"
    assert answer.detail.isprintable()
    assert not answer.containers


def test_ten_thousand_containers_are_read_and_no_more(tmp_path: Path) -> None:
    many = listing(*(container(f"{number:064x}") for number in range(cri_wire.MAX_ITEMS + 7)))
    with serve(tmp_path / "s", {**USUAL, "ListContainers": many}):
        answer = ask(tmp_path / "s", 5)
    assert (len(answer.containers), answer.left_out, answer.bad) == (cri_wire.MAX_ITEMS, 7, 0)
    assert len({one.id for one in answer.containers}) == cri_wire.MAX_ITEMS


def _nothing(_: socket.socket) -> None:
    return


def _drip(connection: socket.socket) -> None:
    """HTTP/2 settings, then a byte now and then."""
    connection.send(b"\0\0\0\4\0\0\0\0\0")
    for _ in range(20):
        connection.send(b"\0")
        time.sleep(0.05)


def _noise(connection: socket.socket) -> None:
    connection.send(os.urandom(65536))


@pytest.mark.parametrize(
    ("job", "states"),
    [
        (_nothing, {CriState.TIMEOUT}),
        (_drip, {CriState.TIMEOUT, CriState.UNREACHABLE}),
        (lambda c: c.close(), {CriState.UNREACHABLE}),
        (lambda c: c.send(b"HTTP/1.1 400 Bad Request\r\n\r\n"), {CriState.UNREACHABLE}),
        (_noise, {CriState.UNREACHABLE, CriState.TIMEOUT}),
    ],
    ids=["hangs", "drips", "closes", "http", "noise"],
)
def test_who_speaks_no_grpc_costs_half_a_second(
    tmp_path: Path, job: Callable[[socket.socket], None], states: set[CriState]
) -> None:
    with listen(tmp_path / "s", job):
        begun = time.monotonic()
        answer = ask(tmp_path / "s", 0.5)
        assert time.monotonic() - begun < 0.9
    assert answer.state in states


def test_the_terminal_stays_clean(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from ktrace_agent.enrich.pods import cri;"
        "print(cri.query('x', pathlib.Path(sys.argv[1]), time.monotonic() + 1).state)"
    )
    with listen(tmp_path / "s", _noise):
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "s"], capture_output=True, check=True
        )
    assert done.stdout in (b"unreachable\n", b"timeout\n")
    assert done.stderr == b""


@pytest.mark.parametrize("method", USUAL)
def test_a_method_that_hangs_ends_at_the_deadline(tmp_path: Path, method: str) -> None:
    released = threading.Event()

    def hang() -> bytes:
        released.wait(10)
        return b""

    with serve(tmp_path / "s", {**USUAL, method: hang}):
        begun = time.monotonic()
        answer = ask(tmp_path / "s", 0.5)
        took = time.monotonic() - begun
        released.set()
    assert answer.state is CriState.TIMEOUT
    assert took < 0.9


def test_all_sockets_are_asked_at_once_and_each_once(tmp_path: Path) -> None:
    run = tmp_path / "run/crio"
    run.mkdir(parents=True)
    (tmp_path / "var").mkdir()
    (tmp_path / "var/run").symlink_to("../run")
    with (
        serve(tmp_path / "run/cri-dockerd.sock", USUAL) as service,
        listen(run / "crio.sock", _nothing),
    ):
        begun = time.monotonic()
        hung, answered = cri.query_all([], tmp_path, begun + 0.5)
        assert time.monotonic() - begun < 0.9
    assert (hung.socket, hung.state) == ("/run/crio/crio.sock", CriState.TIMEOUT)
    assert (answered.socket, answered.containers) == ("/run/cri-dockerd.sock", KNOWN[1])
    assert service.asked == [*USUAL]


def test_named_sockets_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with serve(tmp_path / "a b%41.sock", USUAL):
        names = ["unix:///a b%41.sock", "/none", "file", "\0"]
        answers = cri.query_all(names, tmp_path, time.monotonic() + 2)
    assert [one.state for one in answers] == [CriState.ANSWERED, *[CriState.MISSING] * 3]
    assert [one.socket for one in answers] == names
    assert cri.query_all([], tmp_path, time.monotonic()) == []


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Service]]:
    path = tmp_path_factory.mktemp("cri") / "s"
    with serve(path, dict(USUAL)) as service:
        yield path, service


ANSWERS = st.one_of(
    st.binary(max_size=200),
    st.lists(st.binary(max_size=60), max_size=4).map(lambda items: listing(*items)),
    st.tuples(st.binary(max_size=20), st.integers(0, 300)).map(
        lambda cut: container()[: cut[1]] + cut[0] + container()[cut[1] :]
    ).map(lambda item: listing(item, container())),
)  # fmt: skip


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(version=ANSWERS, sandboxes=ANSWERS, containers=ANSWERS)
def test_arbitrary_answers(
    fuzzed: tuple[Path, Service], version: bytes, sandboxes: bytes, containers: bytes
) -> None:
    path, service = fuzzed
    service.replies.update(
        {"Version": version, "ListPodSandbox": sandboxes, "ListContainers": containers}
    )
    answer = ask(path)
    assert answer.state in (CriState.ANSWERED, CriState.GARBAGE)
    for one in answer.containers:
        assert len(one.id) == 64
        assert one.name.isprintable()
