# SPDX-License-Identifier: Apache-2.0
"""seen = written + filtered + sampled + capped + lost_ring + lost_map, for every hook, to the
last event. The flow sums stay exact whatever rows were lost.

Every capture of these tests keeps one port, so that only the workload passes the filter.
"""

import socket
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.bpf.captures import PARTS, Capture
from tests.bpf.conftest import Begin
from tests.bpf.namespaces import Namespace
from tests.bpf.tcp_jobs import Kind as Ends
from tests.bpf.tcp_jobs import listener
from tests.bpf.workers import Line, wait_until

pytestmark = pytest.mark.world("bpf")

PORT, TCP_PORT = 7601, 7602
DATAGRAMS, BYTES = 40_009, 61
CONNECTIONS = 211
HOME = Ends("v4", socket.AF_INET, "127.0.0.1", "127.0.0.1")


def flood(line: Line) -> None:
    """DATAGRAMS sends to its own socket, most of which are never read."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sink.bind(("127.0.0.1", PORT))
        sock.connect(("127.0.0.1", PORT))
        text = b"x" * BYTES
        for _ in range(DATAGRAMS):
            sock.send(text)


def chat(connections: int, held: bool) -> Any:
    """Connections to itself, all open at once where `held`; 100 bytes there, 300 back."""

    def talk(pair: tuple[socket.socket, socket.socket]) -> None:
        client, child = pair
        client.sendall(b"q" * 100)
        child.recv(200)
        child.sendall(b"r" * 300)
        client.recv(400)

    def close(pair: tuple[socket.socket, socket.socket]) -> None:
        client, child = pair
        client.close()
        assert child.recv(1) == b""
        child.close()

    def job(line: Line) -> None:
        pairs = []
        with listener(HOME, TCP_PORT) as server:
            for _ in range(connections):
                client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                client.connect(("127.0.0.1", TCP_PORT))
                pairs.append((client, server.accept()[0]))
                talk(pairs[-1])
                if not held:
                    close(pairs.pop())
            for pair in pairs:
                close(pair)

    return job


LIMITS: dict[str, tuple[str, ...]] = {
    "none": ("--max-events=10000000",),
    "small-ring": ("--ring-bytes=4096", "--max-events=10000000"),
    "sample": ("--sample=7", "--max-events=10000000"),
    "max-events": ("--max-events=1009",),
    "max-bytes": ("--max-bytes=1MiB", "--max-events=10000000"),
    "sample-and-small-ring": ("--sample=3", "--ring-bytes=4096", "--max-events=20011"),
}


@dataclass
class Flood:
    name: str
    capture: Capture
    tgids: dict[str, int] = field(default_factory=dict)

    @property
    def accounts(self) -> dict[str, dict[str, int]]:
        accounts: dict[str, dict[str, int]] = self.capture.summary["accounting"]
        return accounts


@pytest.fixture(scope="module", params=LIMITS)
def flooded(request: pytest.FixtureRequest, capture: Begin, alone: Namespace) -> Flood:
    lossy = request.param not in ("none", "sample")
    one = capture(*LIMITS[request.param], f"--ports={PORT},{TCP_PORT}", lossy=lossy)
    scene = Flood(request.param, one)

    def play(name: str, job: Any) -> None:
        worker = alone.start(job)
        worker.result()
        scene.tgids[name] = worker.tgid

    with one:
        with one.paused() if "small-ring" in request.param else nullcontext():
            play("udp", flood)
        play("tcp", chat(CONNECTIONS, held=False))
        alone.wait_quiet()
    return scene


def test_every_event_is_seen(flooded: Flood) -> None:
    one = flooded.capture
    assert one.kept("udp_send") == DATAGRAMS
    assert one.kept("udp_recv") == 0
    assert one.kept("connect") == CONNECTIONS
    assert one.kept("tcp_state") == CONNECTIONS * 10 + 2


def test_bytes_are_exact(flooded: Flood) -> None:
    assert flooded.accounts["udp_send"]["bytes"] == DATAGRAMS * BYTES
    talkers = flooded.capture.talkers()
    udp, tcp = talkers[flooded.tgids["udp"]], talkers[flooded.tgids["tcp"]]
    assert (udp["tx_bytes"], udp["tx_calls"], udp["flows"]) == (DATAGRAMS * BYTES, DATAGRAMS, 1)
    assert tcp["tx_bytes"] == tcp["rx_bytes"] == CONNECTIONS * 400
    assert tcp["opened"] == CONNECTIONS * 2  # both ends are this process


def test_what_became_of_them(flooded: Flood) -> None:
    udp, kept = flooded.accounts["udp_send"], flooded.capture.kept
    total = {name: sum(each[name] for each in flooded.accounts.values()) for name in PARTS}
    match flooded.name:
        case "none":
            assert udp["written"] == DATAGRAMS
        case "small-ring":
            assert total["lost_ring"] > 0
            assert total["sampled"] == total["capped"] == total["lost_map"] == 0
        case "sample":
            for hook in ("udp_send", "tcp_state", "connect"):
                sampled = flooded.accounts[hook]["sampled"]
                assert abs(sampled - kept(hook) * 6 / 7) <= 2
            assert total["lost_ring"] == total["capped"] == 0
        case "max-events":
            assert total["written"] == 1009
            assert total["capped"] == kept("udp_send") + kept("connect") + kept("tcp_state") - 1009
        case "max-bytes":
            assert total["capped"] > 0
            files = [flooded.capture.file(kind) for kind in ("events.jsonl", "summary.json")]
            files.append(flooded.capture.file("node.json"))
            assert sum(file.stat().st_size for file in files) <= 1 << 20
        case "sample-and-small-ring":
            assert total["sampled"] > 0
            assert total["lost_ring"] > 0


def test_complete_is_honest(flooded: Flood) -> None:
    summary = flooded.capture.summary
    missing = sum(
        each[name]
        for each in flooded.accounts.values()
        for name in ("capped", "lost_ring", "lost_map", "unseen")
    )
    assert summary["complete"] == (missing == 0)
    if flooded.name in ("small-ring", "max-events", "max-bytes"):
        assert missing
    assert summary["rows"] == len(flooded.capture.rows)


def test_few_sockets(capture: Begin, alone: Namespace) -> None:
    """More sockets than places for owners: no row without a count, none with a wrong owner."""
    one = capture("--max-sockets=8", f"--ports={TCP_PORT}", lossy=True)
    with one:
        worker = alone.start(chat(53, held=True))
        worker.result()
        alone.wait_quiet()
    states = one.of("tcp_state", net=alone.inode)
    assert len(states) == 53 * 10 + 2
    assert {row["tgid"] for row in states} <= {worker.tgid, "-"}
    connects = one.summary["accounting"]["connect"]
    assert connects["lost_map"] > 0
    assert connects["written"] == len(one.of("connect", tgid=worker.tgid))
    assert connects["written"] + connects["lost_map"] == 53
    assert one.summary["overflow"]["socks"] > 0
    assert not one.summary["complete"]
    talker = one.talkers()[worker.tgid]
    assert talker["tx_bytes"] == talker["rx_bytes"] == 53 * 400


def test_few_flows(capture: Begin, alone: Namespace) -> None:
    """More flows than places: what the map could not hold is summed up beside it."""
    one = capture("--max-flows=5", f"--ports={TCP_PORT}", lossy=True)
    with one:
        worker = alone.start(chat(53, held=False))
        worker.result()
        alone.wait_quiet()
    overflow = one.summary["overflow"]
    talker = one.talkers()[worker.tgid]
    assert talker["flows"] == 5
    assert talker["tx_bytes"] + overflow["flow_tx_bytes"] == 53 * 400
    assert talker["rx_bytes"] + overflow["flow_rx_bytes"] == 53 * 400
    assert talker["tx_calls"] + overflow["flow_tx_calls"] == 53 * 2
    assert talker["rx_calls"] + overflow["flow_rx_calls"] == 53 * 2
    assert overflow["flows"] > 0
    assert not one.summary["complete"]
    assert len(one.of("tcp_state", net=alone.inode)) == 53 * 10 + 2


def test_summary_is_bounded(capture: Begin, alone: Namespace) -> None:
    """A thousand processes, peers and owners fit into a summary of 64 KiB."""

    def crowd(line: Line) -> None:
        for number in range(997):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"x" * number, (f"127.1.{number // 200}.{number % 200 + 1}", PORT))
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
                sock.connect_ex((f"127.1.{number // 200}.{number % 200 + 1}", TCP_PORT))

    with capture(f"--ports={PORT},{TCP_PORT}") as one:
        alone.call(crowd)
    assert one.kept("connect") == one.kept("udp_send") == 997
    assert one.file("summary.json").stat().st_size <= 64 * 1024
    assert one.summary["connects"]["left_out"] > 0
    assert one.summary["connects"]["results"] == {"failed": 997}


def test_bundle_is_all_files(capture: Begin) -> None:
    """The archive holds what lies beside it, and the manifest's sums are theirs."""
    import hashlib
    import json
    import tarfile

    with capture() as one:
        wait_until(lambda: one.process.poll() is None, "the capture")
    with tarfile.open(one.file("bundle.tgz")) as archive:
        members = {name: archive.extractfile(name) for name in archive.getnames()}
        texts = {name: file.read() for name, file in members.items() if file}
    manifest = json.loads(texts.pop("manifest.json"))
    assert {each["name"] for each in manifest["files"]} == set(texts)
    inner = {name for name in texts if name.endswith((".flows.parquet", ".sockets.parquet"))}
    shown = {path.name for path in one.out.iterdir()}
    assert len(inner) == 2
    assert shown == {*texts, one.file("bundle.tgz").name} - inner
    for each in manifest["files"]:
        text = texts[each["name"]]
        assert each["name"] in inner or (one.out / each["name"]).read_bytes() == text
        assert (each["bytes"], each["sha256"]) == (len(text), hashlib.sha256(text).hexdigest())
