# SPDX-License-Identifier: Apache-2.0
"""Rows as they are written, from records as the kernel writes them."""

import json
from collections.abc import Callable
from contextlib import closing
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ktrace_agent.enrich.conntrack.connection import Connection, Endpoint, Tuple
from ktrace_agent.enrich.conntrack.lookup import Conntrack
from ktrace_agent.tables import encode, endpoints, insert
from ktrace_agent.tables.load import Names, load
from ktrace_agent.tables.records import EVENT
from ktrace_api.row import EVENT as ROW_MODEL
from ktrace_api.row import PodIdentity
from ktrace_api.schemas import schemas
from tests.agent.conftest import BOOT_NS, STARTED, Make, make_events, make_flows, v4

VALIDATOR = jsonschema.Draft202012Validator(schemas()["row.schema.json"])
UNKNOWN_NS = 2**64 - 1


@pytest.fixture
def rows_of(make_recording: Make) -> Callable[..., list[dict[str, Any]]]:
    def rows(*events: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
        names = changes.pop("names", None)
        recording = make_recording(make_events([*events]), **changes)
        with closing(load(recording, "etcd-1", names)) as made:
            return [check(line) for part in made.lines(7) for line in part]

    return rows


def check(line: str) -> dict[str, Any]:
    """The row of a line, which must be in its schema and survive its model."""
    row = json.loads(line)
    VALIDATOR.validate(row)
    assert json.loads(ROW_MODEL.validate_json(line).model_dump_json()) == row
    return row


def test_a_state_row_in_full(rows_of: Any):
    (row,) = rows_of(
        {
            "ts": BOOT_NS + 326_999_999,
            "sock": 0x3F2,
            "uid": 33,
            "gid": 34,
            "ns_mnt": 1,
            "ns_pid": 2,
            "ns_user": 3,
            "seccomp_mode": 2,
            "caps_eff": 0x1_0000_0400,
            "cgroup_id": 4711,
            "duration": 412_999,
            "old_state": 2,
            "new_state": 1,
            "role": 1,
        }
    )
    none = dict.fromkeys(("pod_uid", "namespace", "pod", "container", "container_id"), "-")
    assert list(row.items()) == list(
        {
            "ts": "2026-01-24T21:57:54.326Z",
            "type": "tcp_state",
            "node": "etcd-1",
            "comm": "curl",
            "pid": 100,
            "tgid": 100,
            "ppid": 1,
            "uid": 33,
            "gid": 34,
            "tuple": "10.0.0.1:40000 -> 10.0.0.2:443",
            "family": "ipv4",
            "role": "client",
            "old_state": "SYN_SENT",
            "new_state": "ESTABLISHED",
            "state_us": 412,
            "ns": {"net": 4026531840, "mnt": 1, "pid": 2, "user": 3},
            "sec": {"seccomp_mode": 2, "caps_eff": "0x00000001_00000400"},
            "cgroup_id": 4711,
            "k8s": none,
            "conntrack": {"state": "-", "reply": "-", "nat": "-", "backend": "-"},
            "owner_source": "process",
            "peer_source": "socket",
            "sock": "0x3f2",
            "flow": "0x9b496444f40095",
        }.items()
    )


def test_the_fields_of_the_other_types(rows_of: Any):
    send, connect, retransmit = rows_of(
        {"type": 1, "bytes": 64, "flags": 0x80000002, "error": 11},
        {"type": 3, "duration": 5_000_000, "error": 111, "result": 2},
        {"type": 4, "new_state": 12, "segs": 3, "flags": 1},
    )
    assert send["type"] == "udp_send"
    assert (send["bytes"], send["flags"]) == (64, ["PEEK", "CORKED"])
    assert (send["errno"], send["error"]) == (11, "EAGAIN")
    assert (connect["duration_us"], connect["errno"]) == (5000, 111)
    assert (connect["error"], connect["result"]) == ("ECONNREFUSED", "failed")
    assert (retransmit["state"], retransmit["segs"]) == ("NEW_SYN_RECV", 3)
    assert retransmit["synack"] is True


def test_what_is_not_known_is_a_dash(rows_of: Any):
    (row,) = rows_of(
        {
            "known": 0,
            "owner_source": 0,
            "peer_source": 0,
            "remote_addr": v4("0.0.0.0"),
            "remote_port": 0,
            "duration": UNKNOWN_NS,
            "ns_net": 0,
            "family": 0,
        }
    )
    for name in ("comm", "pid", "tgid", "ppid", "uid", "gid", "cgroup_id", "sock", "state_us"):
        assert row[name] == "-", name
    assert set(row["ns"].values()) == {"-"}
    assert set(row["sec"].values()) == {"-"}
    assert (row["family"], row["role"], row["owner_source"]) == ("-", "-", "none")
    assert row["tuple"] == "10.0.0.1:40000 -> -"


def test_the_view_of_the_rows_is_typed(make_recording: Make):
    events = make_events(
        [
            {"type": 1, "bytes": 9, "flags": 0x42, "sock": 7},
            {"type": 2, "bytes": 3},
            {"known": 0, "duration": UNKNOWN_NS, "peer_source": 0},
        ]
    )
    with closing(load(make_recording(events), "etcd-1")) as made:
        found = made.con.execute(
            "SELECT type, comm, tgid, local, remote, measure, flags, sock, ts FROM rows ORDER BY n"
        ).fetchall()
    here, there = "10.0.0.1:40000", "10.0.0.2:443"
    assert [row[:-1] for row in found] == [
        ("udp_send", "curl", 100, here, there, 9, ["PEEK", "DONTWAIT"], 7),
        ("udp_recv", "curl", 100, here, there, 3, [], None),
        ("tcp_state", None, None, here, None, None, None, None),
    ]
    assert found[0][-1] == STARTED.replace(tzinfo=None)


def test_ipv6_stands_in_brackets(rows_of: Any):
    (row,) = rows_of(
        {
            "family": 6,
            "local_addr": b"\0" * 15 + b"\1",
            "remote_addr": b"\x20\x01" + b"\0" * 13 + b"\7",
        }
    )
    assert row["tuple"] == "[::1]:40000 -> [2001::7]:443"


def test_rows_are_in_the_order_of_time(rows_of: Any, monkeypatch: pytest.MonkeyPatch):
    for module in (encode, endpoints, insert):
        monkeypatch.setattr(module, "CHUNK", 3)
    times = [5, 1, 9, 1, 0, 7, 3, 3, 8, 2, 6]
    rows = rows_of(*({"ts": BOOT_NS + t * 10**9, "pid": n} for n, t in enumerate(times)))
    assert [row["pid"] for row in rows] == sorted(range(len(times)), key=lambda n: (times[n], n))


def test_the_accepting_process_of_the_end_inventory_owns_the_rows(rows_of: Any):
    accepted = make_events([{"type": 6, "sock": 5, "owner_source": 2, "tgid": 77}]).tobytes()
    (row,) = rows_of({"sock": 5, "owner_source": 3}, stock_end=accepted)
    assert (row["tgid"], row["owner_source"]) == (77, "accept")


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=15), min_size=1, max_size=6))
def test_any_bytes_make_a_name(rows_of: Any, names: list[bytes]):
    rows = rows_of(*({"comm": name.replace(b"\0", b"x")} for name in names))
    assert [row["comm"] for row in rows] == [
        name.replace(b"\0", b"x").decode("utf-8", "replace") or "-" for name in names
    ]


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    hnp.arrays(
        np.uint8, st.integers(1, 8).map(lambda n: n * EVENT.itemsize), elements=st.integers(0, 255)
    )
)
def test_any_record_makes_a_row_of_the_schema(make_recording: Make, raw: np.ndarray[Any, Any]):
    events = raw.view(EVENT).copy()
    events["type"] %= 5
    events["ts"] %= 2**60  # boot times of 36 years
    events["error"] &= 0x7FFFFFFF
    events["seccomp_mode"] %= 3
    for name, count in (("owner_source", 5), ("peer_source", 5), ("role", 3)):
        events[name] %= count
    with closing(load(make_recording(events), "etcd-1")) as made:
        rows = [check(line) for part in made.lines(7) for line in part]
    assert len(rows) == len(events)


POD = PodIdentity(
    pod_uid="u", namespace="shop", pod='cart-"7d9', container="app", container_id="c0ffee"
)


def test_a_cgroup_gives_its_rows_their_pod(rows_of: Any):
    named, other, none = rows_of({"cgroup_id": 5}, {"cgroup_id": 6}, {"cgroup_id": 5, "known": 3},
                                 names=Names({5: POD}))  # fmt: skip
    assert named["k8s"] == POD.model_dump()
    assert set(other["k8s"].values()) == set(none["k8s"].values()) == {"-"}


class Recorder(Conntrack):
    """Connection tracking with entries for one peer; records the endpoints that are traced."""

    def __init__(self) -> None:
        super().__init__(host=0)
        self.traced: list[Endpoint] = []

    def trace(self, endpoint: Endpoint) -> tuple[Connection, Tuple | None] | None:
        self.traced.append(endpoint)
        netns, proto, local, remote, *_ = endpoint
        if (netns, proto, remote.port) != (4026531840, "tcp", 443) or local.port == 1:
            return None
        state = "ESTABLISHED" if local.port == 40000 else None
        return Connection(state, "a -> b", "dnat", backend="a", is_originator=True), None


def test_each_endpoint_is_traced_once(make_recording: Make):
    conntrack = Recorder()
    events = make_events(
        [{"sock": 7}, {"sock": 7}, {"sock": 7, "type": 3}, {"sock": 8, "local_port": 2},
         {"sock": 9, "local_port": 1}, {"type": 1, "sock": 7}, {"peer_source": 0, "remote_port": 0}]
    )  # fmt: skip
    flows = make_flows([{"first_ts": BOOT_NS, "last_ts": BOOT_NS + 5}, {"ns_net": 1}])
    recording = make_recording(events, flows)
    with closing(load(recording, "etcd-1", Names(conntrack=conntrack))) as made:
        rows = [check(line)["conntrack"] for part in made.lines(7) for line in part]
        found = made.con.execute(
            "SELECT ct_state, ct_reply, nat, backend, flow IS NULL FROM rows ORDER BY n"
        ).fetchall()
        of_flows = made.con.execute("SELECT nat FROM flows ORDER BY net DESC").fetchall()
    known = {"state": "ESTABLISHED", "reply": "a -> b", "nat": "dnat", "backend": "a"}
    none = dict.fromkeys(known, "-")
    assert rows == [known, known, known, known | {"state": "-"}, none, none, none]
    assert found[0] == ("ESTABLISHED", "a -> b", "dnat", "a", True)
    assert found[3:5] == [(None, "a -> b", "dnat", "a", True), (None, None, None, None, False)]
    assert of_flows == [("dnat",), (None,)]
    assert len(conntrack.traced) == 5
    endpoint = (4026531840, "tcp", (v4("10.0.0.1"), 40000), (v4("10.0.0.2"), 443))
    ((*_, since, until),) = [one for one in conntrack.traced[:4] if one[:4] == endpoint]
    assert since == BOOT_NS
    assert until is not None
    assert until > BOOT_NS
    assert conntrack.traced[-1].netns == 1
    assert conntrack.traced[-1][4:] == (0, 0)


def test_a_tuple_that_two_sockets_used_has_no_connection(make_recording: Make):
    conntrack = Recorder()
    again = [{"sock": 7}, {"sock": 8}, {"sock": 9, "local_port": 40_001}]
    recording = make_recording(make_events([{**one, "new_state": 2} for one in again]))
    with closing(load(recording, "etcd-1", Names(conntrack=conntrack))) as made:
        rows = [check(line) for part in made.lines(7) for line in part]
    known = {row["sock"]: row["conntrack"]["nat"] != "-" for row in rows}
    assert known == {"0x7": False, "0x8": False, "0x9": True}
    assert len(conntrack.traced) == 1
