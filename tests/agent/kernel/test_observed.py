# SPDX-License-Identifier: Apache-2.0
"""Which figures are known, by the hooks that programs serve."""

import pytest

from ktrace_agent.kernel import observed
from ktrace_agent.kernel.hooks import HOOKS
from ktrace_agent.kernel.observed import Observed, known_loss, observe
from ktrace_api.names import EventKind, RowType

ALL = frozenset(hook.name for hook in HOOKS)
UDP = {RowType.UDP_SEND, RowType.UDP_RECV}


def test_with_every_hook_everything_is_observed():
    assert observe(ALL, tuple(EventKind)) == Observed()


def test_without_programs_nothing_is():
    nothing = Observed(
        rows=frozenset(), sent=False, received=False, connected=False, accepted=False,
        retransmits=False, inventory=False,
    )  # fmt: skip
    assert observe((), tuple(EventKind)) == nothing


def test_without_sends_and_receives_neither_udp_nor_bytes_are():
    found = observe(ALL - {"socket_send", "socket_recv"}, tuple(EventKind))
    assert found.rows == set(RowType) - UDP
    assert (found.sent, found.received) == (False, False)
    assert found.connected
    assert found.accepted


def test_each_direction_counts_for_itself():
    found = observe(ALL - {"socket_recv"}, tuple(EventKind))
    assert found.rows == set(RowType) - {RowType.UDP_RECV}
    assert (found.sent, found.received) == (True, False)


def test_what_was_not_requested_is_not_observed():
    found = observe(ALL, (EventKind.TCP,))
    assert found.rows == {RowType.TCP_STATE}
    assert found.sent
    assert not found.retransmits


def test_syn_acks_alone_make_rows_but_no_total():
    found = observe(ALL - {"tcp_retransmit"}, tuple(EventKind))
    assert RowType.TCP_RETRANSMIT in found.rows
    assert not found.retransmits


@pytest.mark.parametrize(
    ("hook", "rows"),
    [("socket_send", True), ("connect", True), ("inventory", True), ("accept", False),
     ("connect_icmp", False), ("udp_recv_address", False)],
)  # fmt: skip
def test_some_hooks_cost_rows_and_others_only_fields(hook: str, rows: bool):
    assert known_loss(3, [hook]) == (None if rows else 3)


def test_every_hook_that_is_named_exists():
    named = {name for names in observed._RECORDED_BY.values() for name in names}
    assert named | observed._ADDS_ROWS <= ALL
    assert set(observed.KIND_OF) == set(RowType) == set(observed._RECORDED_BY)
