# SPDX-License-Identifier: Apache-2.0
"""Bundles read back: whole ones say what was sealed, any other is refused in one line."""

import gzip
import io
import json
import os
import random
import shutil
import tarfile
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ktrace_agent.bundle import archive, reader
from ktrace_agent.bundle.reader import opened
from ktrace_agent.bundle.seal import Sealed, seal
from ktrace_agent.errors import BadBundle, KtraceError, UsageError
from ktrace_agent.tables.captured import Captured
from ktrace_api.capture import GIB, CaptureConfig
from ktrace_api.node import NodeInfo
from tests.agent.conftest import Make, make_events, make_flows

Members = dict[str, bytes]


@pytest.fixture(scope="module")
def sealed_once(
    make_module_recording: Make,
    config: CaptureConfig,
    node_info: NodeInfo,
    tmp_path_factory: pytest.TempPathFactory,
) -> Sealed:
    events = make_events([{"type": n % 5, "sock": n + 1} for n in range(40)])
    recording = make_module_recording(events, make_flows([{"tx_bytes": 9}]))
    return seal(Captured(recording, config, node_info), tmp_path_factory.mktemp("sealed"))


@pytest.fixture
def sealed(sealed_once: Sealed, tmp_path: Path) -> Sealed:
    """A copy of the module's bundle that the test may change."""
    shutil.copytree(sealed_once.bundle.parent, tmp_path / "out")
    return replace(
        sealed_once, paths=tuple(tmp_path / "out" / path.name for path in sealed_once.paths)
    )


def members(path: Path) -> Members:
    with tarfile.open(path) as tar:
        return {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]


def packed(path: Path, parts: Members, **facts: Any) -> Path:
    """An archive as someone else might have made it."""
    with tarfile.open(path, "w:gz") as tar:
        for name, text in parts.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            for field, value in facts.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(text))
    return path


def refused(path: Path, kind: type[KtraceError] = BadBundle) -> str:
    with pytest.raises(kind) as failure, opened(path):
        pass
    message = str(failure.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_what_was_sealed_is_what_is_read(sealed: Sealed, node_info: NodeInfo):
    for path in (sealed.bundle, sealed.bundle.parent):
        with opened(path) as found:
            assert found.path == sealed.bundle
            assert found.summary == sealed.summary
            assert found.node == node_info
            assert found.sha256 == sealed.sha256
            for file in found.tables:
                file.seek(0)
                assert file.read(4) == b"PAR1"
    assert all(file.closed for file in found.tables)


def test_a_summary_alone_can_be_shown(sealed: Sealed, tmp_path: Path):
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "x.summary.json").write_bytes(sealed.summary.to_bytes())
    for path in (alone, alone / "x.summary.json"):
        with opened(path) as found:
            assert found.summary == sealed.summary
            assert found.node is None


def test_a_long_name_of_a_node_survives(
    make_recording: Make, config: CaptureConfig, node_info: NodeInfo, tmp_path: Path
):
    node = "n" * 200
    named = config.model_copy(update={"node": node})
    made = seal(Captured(make_recording(make_events([{}])), named, node_info), tmp_path)
    with opened(made.bundle) as found:
        assert found.summary.node == node


def test_what_is_not_there_is_named(sealed: Sealed, tmp_path: Path):
    assert "No such file" in refused(tmp_path / "nothing.tgz", UsageError)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no bundle in" in refused(empty, UsageError)
    second = sealed.bundle.with_name("ktrace.b.bundle.tgz")
    second.write_bytes(sealed.bundle.read_bytes())
    assert "holds 2 bundles: name one" in refused(sealed.bundle.parent, UsageError)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_bundle_says_where_it_ends(sealed: Sealed, tmp_path: Path, share: float):
    whole, cut = sealed.bundle.read_bytes(), tmp_path / "cut.bundle.tgz"
    cut.write_bytes(whole[: int(len(whole) * share)])
    assert "is truncated: it ends within" in refused(cut)


@pytest.mark.parametrize("after", ["twice", "text", "gzip", "empty", "zeros", "a byte"])
def test_what_stands_behind_a_bundle_is_told(sealed: Sealed, tmp_path: Path, after: str):
    whole, longer = sealed.bundle.read_bytes(), tmp_path / "longer.bundle.tgz"
    behind = {
        "twice": whole,
        "text": b"hello\n",
        "gzip": gzip.compress(b"hello"),
        "empty": gzip.compress(b""),
        "zeros": bytes(512),
        "a byte": b"\x1f",
    }
    longer.write_bytes(whole + behind[after])
    assert "was changed after it was sealed: data follows its end" in refused(longer)


@pytest.mark.parametrize("twice", [True, False])
def test_what_stands_behind_the_members_is_told(sealed: Sealed, tmp_path: Path, twice: bool):
    inside, longer = gzip.decompress(sealed.bundle.read_bytes()), tmp_path / "longer.bundle.tgz"
    longer.write_bytes(gzip.compress(inside + (inside if twice else b"hello")))
    assert "was changed after it was sealed: data follows its end" in refused(longer)


@pytest.mark.parametrize("cut", [1, 4, 8, 9])
def test_a_bundle_without_its_last_bytes_is_truncated(sealed: Sealed, tmp_path: Path, cut: int):
    short = tmp_path / "short.bundle.tgz"
    short.write_bytes(sealed.bundle.read_bytes()[:-cut])
    assert "is truncated: it ends within manifest.json" in refused(short)


@contextmanager
def as_a_plain_user() -> Iterator[None]:
    """Permissions count, also where the tests run as root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_folder_that_may_not_be_read_is_not_an_empty_one(sealed: Sealed):
    with tempfile.TemporaryDirectory() as name:
        closed = Path(name)
        (closed / sealed.bundle.name).write_bytes(sealed.bundle.read_bytes())
        closed.chmod(0o111)
        with as_a_plain_user():
            assert ": Permission denied. Give a bundle.tgz" in refused(closed, UsageError)
        closed.chmod(0o700)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a gzip file"),
        (b"hello, world" * 99, "not a gzip file"),
        (gzip.compress(b""), "truncated"),
        (gzip.compress(b"hello, world" * 999), "damaged"),
        (gzip.compress(bytes(10240)), "summary.json is missing"),
        (b"\x1f\x8b" + b"garbage" * 99, "damaged"),
    ],
    ids=["empty", "text", "gzip of nothing", "gzip of text", "gzip of zeros", "magic only"],
)
def test_a_foreign_file_is_named(tmp_path: Path, content: bytes, words: str):
    file = tmp_path / "foreign.tgz"
    file.write_bytes(content)
    assert words in refused(file)


@pytest.mark.parametrize("ending", ["jsonl", "events.parquet", "flows.parquet", "summary.json"])
def test_a_changed_member_is_told_by_its_hash(sealed: Sealed, tmp_path: Path, ending: str):
    parts = members(sealed.bundle)
    name = next(name for name in parts if name.endswith(ending))
    parts[name] = parts[name].replace(b"4", b"5", 1) + b" "
    message = refused(packed(tmp_path / "changed.tgz", parts))
    assert f"changed after it was sealed: the sha256 of {name} is" in message


def test_a_member_that_came_or_went_is_told(sealed: Sealed, tmp_path: Path):
    parts = members(sealed.bundle)
    more = {"extra.txt": b"hello", **parts}
    assert "extra.txt is not in its manifest" in refused(packed(tmp_path / "more.tgz", more))
    name = next(name for name in parts if name.endswith("jsonl"))
    less = {kept: text for kept, text in parts.items() if kept != name}
    assert f"{name} is missing" in refused(packed(tmp_path / "less.tgz", less))
    for kind in ("manifest.json", "node.json", "sockets.parquet"):
        fewer = {kept: text for kept, text in parts.items() if not kept.endswith(kind)}
        assert f"{kind} is missing" in refused(packed(tmp_path / "fewer.tgz", fewer))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
def test_only_plain_files_are_read(sealed: Sealed, tmp_path: Path, kind: bytes):
    link = packed(tmp_path / "link.tgz", {"../../etc/passwd": b""}, type=kind, linkname="/etc")
    assert "is not a regular file" in refused(link)


def test_a_summary_larger_than_one_can_be_is_refused(sealed: Sealed, tmp_path: Path):
    parts = members(sealed.bundle)
    name = next(name for name in parts if name.endswith("summary.json"))
    parts[name] += b" " * 70_000
    assert "invalid summary.json" in refused(packed(tmp_path / "large.tgz", parts))
    (tmp_path / "large.summary.json").write_bytes(parts[name])
    assert "not a ktrace summary: larger than" in refused(tmp_path / "large.summary.json")


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"\xff\xfe", b'{"schema_version": 2}'])
def test_a_foreign_summary_is_named(tmp_path: Path, text: bytes):
    file = tmp_path / "x.summary.json"
    file.write_bytes(text)
    assert "does not match this version of ktrace" in refused(file)


def test_a_size_beyond_all_bounds_is_refused(tmp_path: Path):
    info = tarfile.TarInfo("ktrace.a.events.jsonl")
    info.size = 2**60
    file = tmp_path / "bomb.tgz"
    file.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT)))
    assert "a member of 1152921504606846976 bytes" in refused(file)


def first_member(header: bytes) -> tuple[str, int]:
    return next(reader._headers(Path("a.tgz"), io.BytesIO(header)))


@pytest.mark.parametrize("size", [0, 8 * GIB - 1, 8 * GIB, 16 * GIB])
@pytest.mark.parametrize("node", ["etcd-1", "n" * 200])
def test_rows_of_any_size_that_may_be_asked_for_are_found(size: int, node: str):
    """A plain header of tar has room for a size below 8 GiB; all else stands before it."""
    name = f"ktrace.{node}.20260124T215754Z.events.jsonl"
    header = archive._member(name, size, 1_769_291_874).tobuf(tarfile.DEFAULT_FORMAT)
    assert first_member(header) == (name, size)
    assert (len(header) > tarfile.BLOCKSIZE) == (size >= 8 * GIB or len(name) > 100)


def test_the_size_before_a_header_is_the_one_that_counts(sealed: Sealed, tmp_path: Path):
    """As whole archives, small enough to be written: the plain size is 0 or the same."""
    parts = members(sealed.bundle)
    with tarfile.open(tmp_path / "sized.tgz", "w:gz") as tar:
        for name, text in parts.items():
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 0, {"size": str(len(text))}
            assert tar.fileobj is not None
            tar.fileobj.write(info.tobuf(tarfile.PAX_FORMAT))
            tar.fileobj.write(text + bytes(-len(text) % tarfile.BLOCKSIZE))
    with opened(tmp_path / "sized.tgz") as found:
        assert found.summary == sealed.summary


@pytest.mark.parametrize("size", ["", "-1", "+1", " 1", "1e3", "0x10", "1_0", "\u00b2", "9" * 21])
def test_a_size_that_is_no_number_is_damage(sealed: Sealed, tmp_path: Path, size: str):
    file = packed(tmp_path / "size.tgz", members(sealed.bundle), pax_headers={"size": size})
    assert "damaged within the first member" in refused(file)


@pytest.mark.parametrize("size", [17 * GIB + 1, 2**63])
def test_no_extended_header_leads_beyond_the_bounds(sealed: Sealed, tmp_path: Path, size: int):
    facts = {"pax_headers": {"size": str(size)}}
    file = packed(tmp_path / "size.tgz", members(sealed.bundle), **facts)
    assert f"a member of {size} bytes" in refused(file)


@pytest.mark.parametrize("records", [b"9 size=1", b"0 size=1\n", b"99 size=1\n", b"9 size:1\n"])
def test_an_extended_header_of_another_form_is_damage(records: bytes, tmp_path: Path):
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    file = tmp_path / "form.tgz"
    file.write_bytes(gzip.compress(info.tobuf() + records.ljust(tarfile.BLOCKSIZE, b"\0")))
    assert "damaged within the first member" in refused(file)


def test_nothing_is_left_in_the_temporary_folder(
    sealed: Sealed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with opened(sealed.bundle):
        assert os.listdir(folder) == []


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": lambda data, dice: data[: dice.randrange(len(data))],
    "flip": lambda data, dice: _with(data, dice.randrange(len(data)), dice),
    "drop": lambda data, dice: data[: (at := dice.randrange(len(data)))] + data[at + 7 :],
    "double": lambda data, dice: data + data[dice.randrange(len(data)) :],
}


def _with(data: bytes, at: int, dice: random.Random) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << dice.randrange(8))]) + data[at + 1 :]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(how=st.sampled_from(sorted(DAMAGES)), seed=st.integers(0, 2**32), inside=st.booleans())
def test_no_damage_makes_a_trace(sealed: Sealed, how: str, seed: int, inside: bool):
    dice, whole = random.Random(seed), sealed.bundle.read_bytes()
    if inside:  # a consistent gzip of a damaged tar
        damaged = gzip.compress(DAMAGES[how](gzip.decompress(whole), dice), 1)
    else:
        damaged = DAMAGES[how](whole, dice)
    file = sealed.bundle.with_name("damaged.tgz")
    file.write_bytes(damaged)
    try:
        with opened(file) as found:
            summary = found.summary
    except KtraceError as error:
        line = str(error)
        assert "\n" not in line
    else:
        assert summary == sealed.summary


@given(st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.text(max_size=5)))
def test_any_json_is_a_summary_or_refused(tmp_path_factory: Any, document: dict[str, Any]):
    file = tmp_path_factory.mktemp("json") / "x.summary.json"
    file.write_text(json.dumps(document))
    refused(file)


def test_a_huge_extended_header_is_not_read(tmp_path: Path):
    """tarfile would hold all of it in memory: docs/adr/0016-own-tar-reader.md."""
    size = 16 << 20
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, size
    file = tmp_path / "hostile.bundle.tgz"
    file.write_bytes(gzip.compress(info.tobuf() + b"9" * size))
    tracemalloc.start()
    try:
        assert "is not a ktrace bundle" in refused(file)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size / 2
