# SPDX-License-Identifier: Apache-2.0
"""SQL over a bundle: the promised tables, and no way out of it."""

import csv
import io
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from ktrace_agent.bundle import fact_tables, query, reader
from ktrace_agent.bundle.seal import seal
from ktrace_agent.errors import BadBundle, UsageError
from ktrace_agent.tables.captured import Captured
from ktrace_agent.tables.contract import COLUMNS
from ktrace_agent.tables.load import Names
from ktrace_api.capture import CaptureConfig
from ktrace_api.node import Delta, HookChoice, NetnsCounters, NodeInfo, Refusal
from ktrace_api.row import PodIdentity
from tests.agent.bundle.test_reader import members, packed
from tests.agent.conftest import Make, make_events, make_flows

POD = PodIdentity(pod_uid="u-1", namespace="shop", pod="cart-7d9", container="app")


@pytest.fixture(scope="module")
def bundle_once(
    make_module_recording: Make,
    config: CaptureConfig,
    node_info: NodeInfo,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    counter = {"snmp": {"Tcp.RetransSegs": Delta(before=1, after=4, delta=3)}}
    refusals = (Refusal(program="x", reason="no BTF"),)
    node = node_info.model_copy(
        update={
            "host": {"pressure/cpu": {"some.total": Delta(before=0.5, after=2.5, delta=2)}},
            "netns": (
                NetnsCounters(netns=4026531840, counters=counter),
                # Nobody lived there at the start: no change is known, so none is told.
                NetnsCounters(netns=4026532000, counters=counter, missing="appeared"),
            ),
            "hooks": (
                HookChoice(hook="tcp_state", chosen="a + b"),
                HookChoice(hook="connect", chosen="-", refused=refusals),
            ),
            "sysctls": {"net.ipv4.ip_local_port_range": "32768 60999"},
        }
    )
    recording = make_module_recording(
        make_events([{"type": 3, "sock": 7, "cgroup_id": 5, "error": 111, "result": 2},
                     {"type": 1, "bytes": 40, "flags": 2}]),
        make_flows([{"tx_bytes": 9, "cgroup_id": 5, "role": 1}, {"proto": 17, "remote_port": 53}]),
        stock_end=make_events([{"type": 6, "new_state": 8, "cgroup_id": 5, "role": 2,
                                "duration": 5_000_000}]).tobytes(),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("sealed")
    return seal(Captured(recording, config, node, names=Names({5: POD})), folder).bundle


@pytest.fixture
def bundle(bundle_once: Path, tmp_path: Path) -> Path:
    """A copy of the module's bundle that the test may change."""
    shutil.copytree(bundle_once.parent, tmp_path / "out")
    return tmp_path / "out" / bundle_once.name


@pytest.fixture
def con(bundle: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with reader.opened(bundle) as found, query.database(found) as database:
        yield database


def rows(con: duckdb.DuckDBPyConnection, question: str) -> list[dict[str, Any]]:
    found = query.ask(con, question)
    return [dict(zip(found.names, row, strict=True)) for part in found.batches for row in part]


@pytest.mark.parametrize("table", COLUMNS)
def test_every_table_has_the_promised_columns(con: duckdb.DuckDBPyConnection, table: str):
    found = rows(con, f"DESCRIBE {table}")
    assert {row["column_name"]: row["column_type"] for row in found} == dict(COLUMNS[table])


def test_rows_flows_and_sockets_with_their_pods(con: duckdb.DuckDBPyConnection):
    connect, send = rows(con, "SELECT * FROM rows ORDER BY n")
    assert (connect["error"], connect["result"], connect["errno"]) == (
        "ECONNREFUSED",
        "failed",
        111,
    )
    assert (connect["pod"], connect["namespace"], connect["container"]) == (
        "cart-7d9",
        "shop",
        "app",
    )
    assert (connect["remote_ip"], connect["remote_port"]) == ("10.0.0.2", 443)
    assert (send["flags"], send["measure"], send["pod"]) == (["PEEK"], 40, None)
    tcp, udp = rows(con, "SELECT * FROM flows ORDER BY proto")
    assert (tcp["proto"], tcp["tx_bytes"], tcp["pod"], tcp["role"]) == (
        "tcp",
        9,
        "cart-7d9",
        "client",
    )
    assert (udp["proto"], udp["remote"], udp["pod"]) == ("udp", "10.0.0.2:53", None)
    (socket,) = rows(con, "SELECT * FROM sockets")
    assert (socket["moment"], socket["state"], socket["age_us"]) == ("end", "CLOSE_WAIT", 5_000)
    assert (socket["pod"], socket["role"], socket["local_port"]) == ("cart-7d9", "server", 40_000)


def test_what_the_capture_was(con: duckdb.DuckDBPyConnection):
    (capture,) = rows(con, "SELECT * FROM capture")
    assert (capture["node"], capture["rows"], capture["complete"]) == ("etcd-1", 2, False)
    assert (capture["gaps"], capture["lost"]) == (["not_traced"], None)
    assert capture["events"] == ["tcp", "udp", "connect", "retransmit"]
    host, netns = rows(con, "SELECT * FROM counters ORDER BY netns NULLS FIRST")
    assert (host["netns"], host["file"], host["delta"]) == (None, "pressure/cpu", 2.0)
    assert (netns["netns"], netns["name"], netns["after"]) == (4026531840, "Tcp.RetransSegs", 4.0)
    assert rows(con, "SELECT hook, chosen, refused FROM hooks ORDER BY 1") == [
        {"hook": "connect", "chosen": None, "refused": ["x: no BTF"]},
        {"hook": "tcp_state", "chosen": "a + b", "refused": []},
    ]
    assert rows(con, "FROM sysctls")[0]["value"] == "32768 60999"
    assert rows(con, "SELECT sum(seen) AS seen FROM accounting") == [{"seen": 2}]


@pytest.mark.parametrize(
    "question",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_parquet('/tmp/x.parquet')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM read_csv('https://127.0.0.1/x')",
        "COPY rows TO '/tmp/ktrace-test-copy'",
        "ATTACH '/tmp/ktrace-test.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET memory_limit = '1GB'",
        "PRAGMA version",
        "DROP VIEW rows",
        "CREATE TABLE x (a INTEGER)",
        "EXPORT DATABASE '/tmp/ktrace-test'",
        "SELECT 1; SELECT 2",
        "",
        ";",
        "SELECT",
        "SELECT nothing FROM rows",
        "SELECT * FROM nothing",
        "SELECT 1/0::INTEGER + 'x'::INTEGER",
    ],
)
def test_what_is_no_answer_is_one_line(con: duckdb.DuckDBPyConnection, question: str):
    with pytest.raises(UsageError) as failure:
        rows(con, question)
    assert "\n" not in str(failure.value)
    assert not Path("/tmp/ktrace-test-copy").exists()


def test_a_table_that_is_no_parquet_is_named(bundle: Path, tmp_path: Path):
    import hashlib

    parts = members(bundle)
    name = next(name for name in parts if name.endswith("flows.parquet"))
    manifest = json.loads(parts["manifest.json"])
    parts[name] = b"PAR1 and nothing behind it PAR1"
    for file in manifest["files"]:
        if file["name"] == name:
            file["sha256"] = hashlib.sha256(parts[name]).hexdigest()
    parts["manifest.json"] = json.dumps(manifest).encode()
    file = packed(tmp_path / "wrong.tgz", parts)
    with (
        pytest.raises(BadBundle, match=r"cannot read flows\.parquet") as failure,
        reader.opened(file) as found,
        query.database(found),
    ):
        pass
    assert "\n" not in str(failure.value)


def test_a_summary_alone_has_no_rows(bundle: Path):
    summary = next(bundle.parent.glob("*.summary.json"))
    with (
        pytest.raises(UsageError, match=r"give the bundle\.tgz"),
        reader.opened(summary) as found,
        query.database(found),
    ):
        pass


QUESTION = """SELECT n, ts, flags, error, 1.5 AS real, 'inf'::DOUBLE AS far, MAP {'a': 1} AS map,
    DATE '2026-01-24' AS day, 2.50::DECIMAL(4,2) AS exact FROM rows ORDER BY n"""


def test_csv_has_a_header_and_empty_cells_for_null(con: duckdb.DuckDBPyConnection):
    out = io.StringIO()
    query.write(query.ask(con, QUESTION), "csv", out)
    first, second = csv.DictReader(io.StringIO(out.getvalue()))
    assert (first["n"], first["flags"], first["error"]) == ("0", "", "ECONNREFUSED")
    assert first["ts"] == "2026-01-24T21:57:54.000000Z"
    assert (second["flags"], second["error"], second["far"]) == ('["PEEK"]', "", "inf")
    assert (second["map"], second["day"], second["exact"]) == ('{"a": 1}', "2026-01-24", "2.5")


def test_json_lines_are_json(con: duckdb.DuckDBPyConnection):
    out = io.StringIO()
    query.write(query.ask(con, QUESTION), "jsonl", out)
    first, second = map(json.loads, out.getvalue().splitlines())
    assert (first["flags"], first["error"], first["real"]) == (None, "ECONNREFUSED", 1.5)
    assert (second["flags"], second["map"], second["far"]) == (["PEEK"], {"a": 1}, "inf")


@pytest.mark.parametrize(
    ("question", "names"),
    [
        ("SELECT 1 AS a, 2 AS a, 3 AS a", ["a", "a_1", "a_2"]),
        # A name that the query gives is kept.
        ("SELECT 1 AS a, 2 AS a, 3 AS a_1", ["a", "a_2", "a_1"]),
        ("SELECT 1 AS a, 2 AS A, 3 AS b", ["a", "A", "b"]),
    ],
)
def test_columns_of_one_name_are_told_apart(
    con: duckdb.DuckDBPyConnection, question: str, names: list[str]
):
    lines, table = io.StringIO(), io.StringIO()
    query.write(query.ask(con, question), "jsonl", lines)
    query.write(query.ask(con, question), "csv", table)
    assert json.loads(lines.getvalue()) == dict(zip(names, [1, 2, 3], strict=True))
    assert table.getvalue() == f"{','.join(names)}\n1,2,3\n"


def test_both_ends_of_a_conversation_are_in_the_answer(con: duckdb.DuckDBPyConnection):
    question = """SELECT c.comm, s.comm, c.remote, s.remote FROM flows c JOIN flows s
        ON c.proto = 'tcp' AND s.proto = 'udp'"""
    assert rows(con, question) == [
        {"comm": "curl", "comm_1": "curl", "remote": "10.0.0.2:443", "remote_1": "10.0.0.2:53"}
    ]


EPOCH = "1970-01-01T00:00:00.000000Z"
ZONED = "to_timestamp(0)"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (ZONED, EPOCH),
        ("TIMESTAMPTZ '1970-01-01 02:00:00+02'", EPOCH),
        ("TIMESTAMP '1970-01-01'::TIMESTAMPTZ", EPOCH),
        (f"{ZONED}::TIMESTAMPTZ_NS", EPOCH),
        (f"[{ZONED}, NULL]", [EPOCH, None]),
        (f"array_value({ZONED})", [EPOCH]),
        (f"MAP {{{ZONED}: 1}}", {EPOCH: 1}),
        (f"union_value(a := {ZONED})", EPOCH),
        (
            f"""{{'TIMESTAMP WITH TIME ZONE': [{ZONED}], 'a "b"': 'TIMESTAMPTZ_NS'}}""",
            {"TIMESTAMP WITH TIME ZONE": [EPOCH], 'a "b"': "TIMESTAMPTZ_NS"},
        ),
        (f"{ZONED}::VARCHAR", "1970-01-01 00:00:00+00"),
        ("NULL::TIMESTAMPTZ", None),
    ],
)
def test_a_time_with_a_zone_is_told_as_any_other(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, value: str, shown: Any
):
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    out = io.StringIO()
    with reader.opened(bundle) as found, query.database(found) as con:
        query.write(query.ask(con, f"SELECT 7 AS n, {value} AS n -- why"), "jsonl", out)
    assert json.loads(out.getvalue()) == {"n": 7, "n_1": shown}


@pytest.mark.parametrize(
    "question",
    [
        "SELECT ts::TIMESTAMPTZ AS seen FROM rows ORDER BY n DESC;",
        """-- a comment
        WITH a AS (SELECT n, ts::TIMESTAMPTZ AS seen FROM rows) SELECT seen FROM a ORDER BY n DESC
        """,
        "FROM (SELECT ts::TIMESTAMPTZ AS seen FROM rows ORDER BY n DESC)",
        "(SELECT max(ts)::TIMESTAMPTZ AS seen FROM rows GROUP BY n ORDER BY n DESC)",
    ],
)
def test_times_with_a_zone_keep_the_order_of_the_query(
    con: duckdb.DuckDBPyConnection, question: str
):
    times = [row["ts"] for row in rows(con, "SELECT ts FROM rows ORDER BY n DESC")]
    assert len(set(times)) == 2
    assert [row["seen"] for row in rows(con, question)] == times


def test_an_error_while_rows_are_read_is_no_trace(con: duckdb.DuckDBPyConnection):
    """A VARIANT does not tell what is in it before it is read."""
    with pytest.raises(UsageError) as failure:
        rows(con, "SELECT now()::VARIANT AS v")
    message = str(failure.value)
    assert "Traceback" not in message
    assert "cast it to VARCHAR" in message
    assert len(message) < 200


LONG = "SELECT count(*) FROM range(100_000_000) a, range(100_000) b"


@pytest.fixture
def ctrl_c(bundle: Path) -> Iterator[None]:
    """Ctrl-C in half a second, whatever the tests were started by."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    yield
    timer.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupt_ends_a_long_query(bundle: Path):
    began = time.monotonic()
    with (
        pytest.raises(KeyboardInterrupt),
        reader.opened(bundle) as found,
        query.database(found) as con,
    ):
        rows(con, LONG)
    assert time.monotonic() - began < 5


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupt_while_tables_are_filled_is_one_too(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    """DuckDB makes a RuntimeError of it."""
    monkeypatch.setattr(fact_tables, "load", lambda con, *_, **__: con.execute(LONG))
    with (
        pytest.raises(KeyboardInterrupt),
        reader.opened(bundle) as found,
        query.database(found),
    ):
        pass


def test_an_ignored_interrupt_stays_ignored(bundle: Path):
    """As of a job that a shell runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with reader.opened(bundle) as found, query.database(found) as con:
            signal.raise_signal(signal.SIGINT)
            assert rows(con, "SELECT 1 AS a") == [{"a": 1}]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_wrong_name_is_no_interrupt(con: duckdb.DuckDBPyConnection):
    with pytest.raises(UsageError, match="interrupted"):
        rows(con, "SELECT * FROM rows WHERE result = interrupted")


def test_descriptors_are_closed(bundle: Path):
    before = len(os.listdir("/proc/self/fd"))
    with reader.opened(bundle) as found, query.database(found) as database:
        rows(database, "FROM rows")
    assert len(os.listdir("/proc/self/fd")) == before
