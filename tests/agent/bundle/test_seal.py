# SPDX-License-Identifier: Apache-2.0
"""Sealing: whole bundles or none, every row counted, also where the disk or the budget ends."""

import ctypes
import hashlib
import json
import os
import pickle
import subprocess
import sys
import tarfile
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier, get_ident
from typing import Any

import duckdb
import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ktrace_agent.bundle import archive
from ktrace_agent.bundle.seal import Sealed, seal
from ktrace_agent.enrich.conntrack.lookup import Conntrack
from ktrace_agent.errors import SinkFailed
from ktrace_agent.kernel.recording import HookCounters, Recording
from ktrace_agent.tables import dns_pairs
from ktrace_agent.tables.captured import Captured
from ktrace_agent.tables.contract import COLUMNS
from ktrace_agent.tables.load import Names
from ktrace_api.bundle import Manifest
from ktrace_api.capture import MIB, CaptureConfig
from ktrace_api.names import RowType
from ktrace_api.node import NodeInfo
from ktrace_api.row import PodIdentity
from ktrace_api.schemas import schemas
from ktrace_api.summary import Summary
from tests.agent.conftest import BOOT_NS, Make, make_events, make_flows

STEM = "ktrace.etcd-1.20260124T215754Z"
PARTS = ("events.jsonl", "events.parquet", "summary.json", "node.json", "bundle.tgz")
NAMES = [f"{STEM}.{part}" for part in PARTS]
SIDES = [f"{STEM}.{part}" for part in ("flows.parquet", "sockets.parquet")]
SAME = ("type", "node", "comm", "pid", "tgid", "ppid", "uid", "gid", "family", "role",
        "cgroup_id", "owner_source", "peer_source")  # fmt: skip


def many(count: int) -> np.ndarray[Any, Any]:
    """Rows of all types, each its own socket."""
    events = np.repeat(make_events([{}]), count)
    events["ts"] = BOOT_NS + np.arange(count) * 1000
    events["sock"] = np.arange(count) + 1
    events["type"] = np.arange(count) % 5
    return events


def check(sealed: Sealed, folder: Path) -> Summary:
    """What holds for every bundle; its summary as it was read back."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(p.name for p in sealed.paths)
    events, columns, summary_file, node, archive = (path.read_bytes() for path in sealed.paths)
    assert hashlib.sha256(archive).hexdigest() == sealed.sha256
    assert len(archive) == sealed.bytes
    with tarfile.open(sealed.bundle) as tar:
        members = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
    manifest = Manifest.model_validate_json(members.pop("manifest.json"))
    assert manifest == sealed.manifest
    assert list(members.values())[:-2] == [events, columns, summary_file, node]
    assert sum(map(len, members.values())) <= json.loads(node)["config"]["max_bytes"]
    for part in manifest.files:
        assert len(members[part.name]) == part.bytes
        assert hashlib.sha256(members[part.name]).hexdigest() == part.sha256
    summary = Summary.model_validate_json(summary_file)
    assert summary == sealed.summary
    for text, name in ((summary_file, "summary"), (node, "node")):
        jsonschema.validate(json.loads(text), schemas()[f"{name}.schema.json"])
    assert events.count(b"\n") == summary.rows == manifest.rows
    assert not events or events.endswith(b"\n")
    found = [json.loads(line)["type"] for line in events.splitlines()]
    assert {name: found.count(name) for name in RowType} == summary.rows_by_type
    same_rows(events, sealed.paths[1])
    for name, account in summary.counted.items():
        parts = account.model_dump(exclude={"seen", "bytes"})
        assert account.seen == sum(parts.values())
        assert account.written == summary.rows_by_type[name]
    return summary


def same_rows(events: bytes, columns: Path) -> None:
    """Parquet says what JSON says, row by row, NULL where that says "-"."""
    con = duckdb.connect(config={"threads": 1})  # another thread does not see a thread's mounts
    table = con.sql(f"SELECT * FROM read_parquet('{columns}')")
    assert table.columns == ["node", *COLUMNS["rows"]]
    assert [str(kind) for kind in table.types[1:]] == [*COLUMNS["rows"].values()]
    rows = [dict(zip(table.columns, values, strict=True)) for values in table.fetchall()]
    lines = [json.loads(line) for line in events.splitlines()]
    assert [row["n"] for row in rows] == list(range(len(lines)))
    for row, line in zip(rows, lines, strict=True):
        shown = {name: "-" if value is None else value for name, value in row.items()}
        assert {name: shown[name] for name in SAME} == {name: line[name] for name in SAME}
        assert f"{shown['local']} -> {shown['remote']}" == line["tuple"]
        assert f"{row['ts']:%Y-%m-%dT%H:%M:%S.%f}"[:23] + "Z" == line["ts"]
        assert {name: shown[name] for name in line["k8s"]} == line["k8s"]
        names = ("ct_state", "ct_reply", "nat", "backend")
        assert [shown[name] for name in names] == [*line["conntrack"].values()]
        for name in ("sock", "flow"):
            number = row[name]
            assert ("-" if number is None else hex(number)) == line[name]
        names = ("state_us", "bytes", "duration_us", "segs")
        assert shown["measure"] == next(line[name] for name in names if name in line)
        for name in ("old_state", "new_state", "error", "result", "errno", "synack", "flags",
                     "dns_rtt_us", "dns_rtt_source"):  # fmt: skip
            assert shown[name] == line.get(name, line["state"] if name == "new_state" and
                                           "state" in line else "-")  # fmt: skip


def test_a_bundle_holds_its_four_files_and_a_manifest(
    make_recording: Make, config: CaptureConfig, node_info: NodeInfo, tmp_path: Path
):
    told: list[str] = []
    sealed = seal(Captured(make_recording(many(23)), config, node_info), tmp_path, told.append)
    summary = check(sealed, tmp_path)
    assert [path.name for path in sealed.paths] == NAMES
    assert summary.complete
    assert not summary.disk_full
    assert summary.rows == 23
    assert NodeInfo.model_validate_json(sealed.paths[3].read_bytes()) == node_info
    assert any("23 rows" in text for text in told)


def test_no_rows_make_a_bundle_too(
    make_recording: Make, config: CaptureConfig, node_info: NodeInfo, tmp_path: Path
):
    sealed = seal(Captured(make_recording(many(0)), config, node_info), tmp_path / "new" / "out")
    assert check(sealed, tmp_path / "new" / "out").rows == 0


def test_the_spool_is_emptied(
    make_recording: Make, config: CaptureConfig, node_info: NodeInfo, tmp_path: Path
):
    recording = make_recording(many(5))
    seal(Captured(recording, config, node_info), tmp_path)
    assert os.fstat(recording.spool_fd).st_size == 0


def test_a_second_bundle_of_one_second_has_its_own_name(
    make_recording: Make, config: CaptureConfig, node_info: NodeInfo, tmp_path: Path
):
    seal(Captured(make_recording(many(5)), config, node_info), tmp_path)
    second = seal(Captured(make_recording(many(7)), config, node_info), tmp_path)
    assert second.bundle.name == f"{STEM}-2.bundle.tgz"
    assert len(list(tmp_path.iterdir())) == 10


def test_bundles_that_are_packed_at_the_same_time_all_get_a_name(
    make_recording: Make,
    config: CaptureConfig,
    node_info: NodeInfo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """The names are chosen before they are packed and given after it: then all had chosen one."""
    count, real = 4, archive.pack
    first, met = Barrier(count), set[int]()

    def pack(*args: Any, **named: Any) -> Any:
        if get_ident() not in met:
            met.add(get_ident())
            first.wait(60)
        return real(*args, **named)

    monkeypatch.setattr(archive, "pack", pack)
    recordings = [make_recording(many(3 + number)) for number in range(count)]
    with ThreadPoolExecutor(count) as pool:
        sealed = list(
            pool.map(lambda one: seal(Captured(one, config, node_info), tmp_path), recordings)
        )
    assert {one.bundle.name for one in sealed} == {
        NAMES[-1], *(f"{STEM}-{number}.bundle.tgz" for number in range(2, count + 1))
    }  # fmt: skip
    assert [one.summary.rows for one in sealed] == [3 + number for number in range(count)]
    assert len(list(tmp_path.iterdir())) == count * len(PARTS)
    for one in sealed:
        stem = one.bundle.name.removesuffix(".bundle.tgz")
        assert all(path.name.startswith(f"{stem}.") for path in one.paths)
        with tarfile.open(one.bundle) as tar:
            assert tar.getnames()[0] == f"{stem}.events.jsonl"


@pytest.mark.parametrize("part", PARTS)
def test_what_a_killed_agent_left_takes_its_number(
    part: str, make_recording: Make, config: CaptureConfig, node_info: NodeInfo, tmp_path: Path
):
    (tmp_path / f"{STEM}.{part}").write_text("left")
    sealed = seal(Captured(make_recording(many(5)), config, node_info), tmp_path)
    assert sealed.bundle.name == f"{STEM}-2.bundle.tgz"
    assert (tmp_path / f"{STEM}.{part}").read_text() == "left"
    assert len(list(tmp_path.iterdir())) == 1 + len(PARTS)


def test_rows_beyond_max_bytes_are_capped_and_counted(
    make_recording: Make, config: CaptureConfig, node_info: NodeInfo, tmp_path: Path
):
    small = config.model_copy(update={"max_bytes": MIB})
    sealed = seal(Captured(make_recording(many(3001)), small, node_info), tmp_path)
    summary = check(sealed, tmp_path)
    assert sum(path.stat().st_size for path in sealed.paths[:4]) <= MIB
    assert 1000 < summary.rows < 3001
    assert sum(account.capped for account in summary.counted.values()) == 3001 - summary.rows
    assert not summary.complete
    assert any("max_bytes (1048576)" in note for note in summary.notes)


def test_the_first_rows_are_kept(
    make_recording: Make, config: CaptureConfig, node_info: NodeInfo, tmp_path: Path
):
    small = config.model_copy(update={"max_bytes": MIB})
    sealed = seal(Captured(make_recording(many(3001)), small, node_info), tmp_path)
    socks = [
        int(json.loads(line)["sock"], 16) for line in sealed.paths[0].read_bytes().splitlines()
    ]
    assert socks == list(range(1, len(socks) + 1))


@pytest.mark.parametrize(("max_bytes", "times"), [(16 * MIB, 1), (MIB, 2)], ids=["all", "cut"])
def test_findings_judge_the_dns_answers_in_the_bundle_alone(
    max_bytes: int,
    times: int,
    make_recording: Make,
    config: CaptureConfig,
    node_info: NodeInfo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Pairs are made once. They are made again only if rows were cut, here most of the answers."""
    queries = 2000
    events = np.repeat(make_events([{"remote_port": 53}]), 2 * queries)
    events["ts"] = BOOT_NS + np.arange(2 * queries) * 10_000
    events["type"] = np.repeat([1, 2], queries)
    events["sock"] = np.tile(np.arange(queries) + 1, 2)
    calls = list[None]()
    real = dns_pairs.pair

    def pair(*args: Any) -> None:
        calls.append(None)
        real(*args)

    monkeypatch.setattr(dns_pairs, "pair", pair)
    monkeypatch.setattr("ktrace_agent.analyze.findings.pair", pair)
    asked = config.model_copy(update={"max_bytes": max_bytes})
    captured = Captured(make_recording(events), asked, node_info)
    summary = check(seal(captured, tmp_path), tmp_path)
    assert len(calls) == times
    assert (summary.rows < 2 * queries) == (times > 1)
    assert summary.dns.queries == summary.rows_by_type[RowType.UDP_SEND]
    assert summary.dns.answers == summary.rows_by_type[RowType.UDP_RECV]


COUNTS = st.integers(0, 1000)


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    present=st.lists(st.integers(0, 40), min_size=5, max_size=5),
    rest=st.lists(st.tuples(*[COUNTS] * 5), min_size=5, max_size=5),
    missing=st.lists(st.integers(0, 3), min_size=5, max_size=5),
)
def test_every_event_is_accounted_for(
    make_recording: Make,
    config: CaptureConfig,
    node_info: NodeInfo,
    tmp_path_factory: pytest.TempPathFactory,
    present: list[int],
    rest: list[tuple[int, ...]],
    missing: list[int],
):
    folder = tmp_path_factory.mktemp("out")
    events = make_events([{"type": n} for n, count in enumerate(present) for _ in range(count)])
    counters = {}
    for row_type, written, others, gone in zip(RowType, present, rest, missing, strict=True):
        seen = written + gone + sum(others)
        names = ("filtered", "sampled", "capped", "lost_ring", "lost_map")
        counters[row_type] = HookCounters(
            seen=seen, written=written + gone, **dict(zip(names, others, strict=True))
        )
    recording = make_recording(events, counters=counters)
    summary = check(seal(Captured(recording, config, node_info), folder), folder)
    for row_type, hook in counters.items():
        assert summary.counted[row_type].seen == hook.seen
    unwanted = sum(c.capped + c.lost_ring + c.lost_map for c in counters.values()) + sum(missing)
    assert summary.complete == (unwanted == 0)


def test_what_the_tables_have_is_given_back_before_rows_are_written(
    make_recording: Make, config: CaptureConfig, node_info: NodeInfo, tmp_path: Path
):
    conntrack = Conntrack(host=0)
    names, known = Names({7: PodIdentity(pod="web-0")}, conntrack), weakref.ref(conntrack)
    del conntrack
    recording = make_recording(many(11), make_flows([{}]))
    said: dict[str, bool] = {}

    def progress(text: str) -> None:
        said[text] = known() is not None or bool(names.pods or recording.flow_keys)

    seal(Captured(recording, config, node_info, names=names), tmp_path, progress)
    assert said == {
        "decoding records": True, "writing 11 rows": False, "compressing 11 rows": False,
    }  # fmt: skip


def in_small_tmpfs(folder: Path, size: int, job: Callable[[], Any]) -> Any:
    """Run `job` in a thread that alone sees a tmpfs of `size` bytes on `folder`."""
    libc = ctypes.CDLL(None, use_errno=True)
    clone_newns, ms_rec_private = 0x20000, 0x44000

    def mounted() -> Any:
        for status in (
            libc.unshare(clone_newns),
            libc.mount(b"none", b"/", None, ms_rec_private, None),
            libc.mount(b"none", bytes(folder), b"tmpfs", 0, f"size={size}".encode()),
        ):
            assert status == 0, os.strerror(ctypes.get_errno())
        return job()

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(mounted).result()


@pytest.mark.world("mount")
@pytest.mark.parametrize("room", [64 << 10, 256 << 10, 1 << 20, 4 << 20])
def test_a_full_disk_keeps_what_fits(
    room: int, make_recording: Make, config: CaptureConfig, node_info: NodeInfo, tmp_path: Path
):
    recording = make_recording(many(10_007))  # about 5 MB of rows

    def job() -> Summary:
        return check(seal(Captured(recording, config, node_info), tmp_path), tmp_path)

    summary = in_small_tmpfs(tmp_path, room, job)
    lost = sum(account.lost_ring for account in summary.counted.values())
    assert summary.rows + lost == 10_007
    assert summary.rows * 500 > room // 4
    assert not summary.complete
    assert any("the disk was full" in note for note in summary.notes)
    assert summary.disk_full


@pytest.mark.world("mount")
def test_max_bytes_and_a_full_disk_are_told_apart(
    make_recording: Make, config: CaptureConfig, node_info: NodeInfo, tmp_path: Path
):
    small = config.model_copy(update={"max_bytes": 2 * MIB})
    recording = make_recording(many(10_007))

    def job() -> Summary:
        return check(seal(Captured(recording, small, node_info), tmp_path), tmp_path)

    summary = in_small_tmpfs(tmp_path, 2 * MIB - (64 << 10), job)  # the rows fill it
    capped = sum(account.capped for account in summary.counted.values())
    lost = sum(account.lost_ring for account in summary.counted.values())
    assert capped > 0
    assert lost > 0
    assert summary.rows + capped + lost == 10_007


@pytest.mark.world("mount")
def test_a_disk_without_any_room_leaves_nothing(
    make_recording: Make, config: CaptureConfig, node_info: NodeInfo, tmp_path: Path
):
    def job() -> list[str]:
        with pytest.raises(SinkFailed, match="no space left") as failure:
            seal(Captured(make_recording(many(100)), config, node_info), tmp_path)
        assert "\n" not in str(failure.value)
        return [path.name for path in tmp_path.iterdir()]

    assert in_small_tmpfs(tmp_path, 8 << 10, job) == []


def test_an_out_dir_that_is_a_file_is_named(
    make_recording: Make, config: CaptureConfig, node_info: NodeInfo, tmp_path: Path
):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SinkFailed, match=r"out.*--out-dir"):
        seal(Captured(make_recording(many(1)), config, node_info), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_lost_records_of_the_spool_are_named(
    make_recording: Make, config: CaptureConfig, node_info: NodeInfo, tmp_path: Path
):
    recording = make_recording(many(10))
    lost = replace(recording.counters[RowType.CONNECT], seen=5, lost_ring=3)
    counters = {**recording.counters, RowType.CONNECT: lost}
    recording = replace(recording, counters=counters, spool_lost={RowType.CONNECT: 3})
    summary = check(seal(Captured(recording, config, node_info), tmp_path), tmp_path)
    assert not summary.complete
    assert any("3 of them were lost because the disk filled up" in note for note in summary.notes)
    assert summary.disk_full


KILLED = """
import os, pickle, sys
from pathlib import Path
from ktrace_agent.bundle.seal import seal
from ktrace_agent.tables.captured import Captured
facts, config, node_info, spool, out = pickle.load(sys.stdin.buffer)
from ktrace_agent.kernel.recording import Recording
recording = Recording(spool_fd=os.open(spool, os.O_RDWR), **facts)
seal(Captured(recording, config, node_info), Path(out), lambda text: print(text, flush=True))
"""


def facts_of(recording: Recording) -> dict[str, Any]:
    names = [name for name in Recording.__slots__ if name != "spool_fd"]
    return {name: getattr(recording, name) for name in names}


@pytest.mark.parametrize(("line", "delay"), [(1, 0), (2, 0.01), (3, 0), (3, 0.03), (3, 0.06)])
def test_a_killed_agent_leaves_whole_files_or_none(
    line: int,
    delay: float,
    make_recording: Make,
    config: CaptureConfig,
    node_info: NodeInfo,
    tmp_path: Path,
):
    events, out, spool = many(20_011), tmp_path / "out", tmp_path / "spool"
    events.tofile(spool)
    facts = facts_of(make_recording(events))
    room = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{room / 'api'}:{room / 'agent'}"},
    )
    with process:
        assert process.stdin
        assert process.stdout
        pickle.dump((facts, config, node_info, str(spool), str(out)), process.stdin)
        process.stdin.close()
        for _ in range(line):
            assert process.stdout.readline()
        time.sleep(delay)
        process.kill()
    left = sorted(path.name for path in out.iterdir()) if out.exists() else []
    assert set(left) <= set(NAMES)
    if NAMES[-1] in left:
        assert left == sorted(NAMES)
        with tarfile.open(out / NAMES[-1]) as tar:
            assert tar.getnames() == [*NAMES[:-1], *SIDES, "manifest.json"]
    for name in left:
        assert name != NAMES[0] or (out / name).read_bytes().count(b"\n") == 20_011
