# SPDX-License-Identifier: Apache-2.0
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ktrace_agent.tables.backfill import backfill
from ktrace_agent.tables.records import OWNER, PEER_SOURCES, ROW, STATE, TYPE
from ktrace_api.names import OwnerSource, RowType

STATE_ROW, CONNECT, UDP = (TYPE[t] for t in (RowType.TCP_STATE, RowType.CONNECT, RowType.UDP_SEND))
SYN_SENT, SYN_RECV, ESTABLISHED = STATE["SYN_SENT"], STATE["SYN_RECV"], STATE["ESTABLISHED"]
CLOSE, LISTEN = STATE["CLOSE"], STATE["LISTEN"]
NONE, PROCESS, ACCEPT, LISTENER = (OWNER[s] for s in list(OwnerSource)[:4])


def rows_of(*rows: dict[str, Any]) -> np.ndarray[Any, Any]:
    made = np.zeros(len(rows), ROW)
    for number, row in enumerate(rows):
        usual = {"ts": number, "sock": 7, "local": 1, "local_port": 4000, "remote": 2,
                 "remote_port": 443, "net": 5, "type": STATE_ROW, "new_state": ESTABLISHED,
                 "owner_source": PROCESS, "owner": 1, "peer_source": 1}  # fmt: skip
        for name, value in {**usual, **row}.items():
            made[name][number] = value
    return made


def opening(**changes: Any) -> dict[str, Any]:
    return {"new_state": SYN_SENT, "local": 9, "local_port": 0, **changes}


def tuples(rows: np.ndarray[Any, Any]) -> list[tuple[int, ...]]:
    return rows[["local", "local_port", "remote", "remote_port"]].tolist()


def test_syn_sent_takes_the_port_that_came_later():
    rows = rows_of(opening(), {})
    backfill(rows, [9], {})
    assert tuples(rows) == [(1, 4000, 2, 443)] * 2


def test_a_child_takes_its_peer_and_says_where_it_is_from():
    child = {"new_state": SYN_RECV, "remote": 9, "remote_port": 0, "peer_source": 0}
    for listens_at, family in ((1, 4), (9, 6)):
        rows = rows_of({**child, "local": listens_at, "family": family}, {"family": 4})
        backfill(rows, [9], {})
        assert tuples(rows) == [(1, 4000, 2, 443)] * 2
        assert rows["family"].tolist() == [4, 4]
    assert PEER_SOURCES[rows["peer_source"][0]] == "socket"


def test_the_order_is_that_of_time_not_of_the_ring():
    rows = rows_of({"ts": 5}, opening(ts=1))
    backfill(rows, [9], {})
    assert tuples(rows) == [(1, 4000, 2, 443)] * 2


def test_nothing_comes_from_another_socket_namespace_peer_or_connection():
    for change in ({"sock": 8}, {"net": 6}, {"remote": 3}, {"remote_port": 80}, {"local": 3}):
        rows = rows_of(opening(local=1), change)
        backfill(rows, [9], {})
        assert rows["local_port"][0] == 0, change
    failed = {"new_state": CLOSE, "local": 9, "local_port": 0}
    rows = rows_of(opening(), failed, opening(), {})
    backfill(rows, [9], {})
    assert rows["local_port"].tolist() == [0, 0, 4000, 4000]


def test_a_listener_has_no_peer_and_gets_none():
    rows = rows_of({"new_state": LISTEN, "remote": 9, "remote_port": 0}, {})
    backfill(rows, [9], {})
    assert rows["remote_port"][0] == 0


def test_sockets_without_a_cookie_and_udp_stay_as_they_are():
    for change in ({"sock": 0}, {"type": UDP}):
        rows = rows_of({**opening(), **change}, change)
        backfill(rows, [9], {})
        assert rows["local_port"][0] == 0


def test_accept_owns_what_came_before_it():
    rows = rows_of(
        {"owner_source": NONE, "owner": 0},
        {"owner_source": LISTENER, "owner": 2},
        {"owner_source": PROCESS, "owner": 3},
        {"owner_source": ACCEPT, "owner": 4},
        {"owner_source": NONE, "owner": 0},
    )
    backfill(rows, [9], {})
    assert rows["owner"].tolist() == [4, 4, 3, 4, 0]
    assert rows["owner_source"].tolist() == [ACCEPT, ACCEPT, PROCESS, ACCEPT, NONE]


def test_accept_owns_nothing_of_another_connection():
    for change in ({"net": 6}, {"local_port": 4001}, {"remote_port": 80}):
        rows = rows_of(
            {"owner_source": NONE, "owner": 0}, {"owner_source": ACCEPT, "owner": 4, **change}
        )
        backfill(rows, [9], {})
        assert rows["owner"].tolist() == [0, 4], change


def test_the_inventory_at_the_end_knows_who_accepted():
    rows = rows_of(
        {"owner_source": NONE, "owner": 0},
        {"owner_source": LISTENER, "owner": 2, "sock": 8},
        {"owner_source": NONE, "owner": 0, "sock": 2**64 - 1},
    )
    backfill(rows, [9], {7: 6, 2**64 - 1: 9})
    assert rows["owner"].tolist() == [6, 2, 9]
    assert rows["owner_source"].tolist() == [ACCEPT, LISTENER, ACCEPT]


ANY_ROW = st.fixed_dictionaries(
    {
        "ts": st.integers(0, 9),
        "sock": st.integers(0, 2),
        "type": st.sampled_from([STATE_ROW, CONNECT, UDP]),
        "new_state": st.sampled_from([SYN_SENT, SYN_RECV, ESTABLISHED, CLOSE, LISTEN]),
        "local_port": st.sampled_from([0, 4000, 4001]),
        "remote": st.integers(1, 2),
        "remote_port": st.sampled_from([0, 443]),
        "owner_source": st.sampled_from([NONE, PROCESS, ACCEPT, LISTENER]),
        "owner": st.integers(0, 3),
    }
)


@given(st.lists(ANY_ROW, max_size=12))
def test_known_facts_are_never_overwritten(rows: list[dict[str, Any]]):
    before = rows_of(*rows)
    after = before.copy()
    backfill(after, [9], {1: 5})
    for name in ("local_port", "remote_port"):
        known = before[name] > 0
        assert (after[name][known] == before[name][known]).all()
    owned = np.isin(before["owner_source"], (PROCESS, ACCEPT))
    assert (after["owner"][owned] == before["owner"][owned]).all()
    still = (before["sock"] == 0) | (before["type"] == UDP)
    assert (after[still] == before[still]).all()
