# SPDX-License-Identifier: Apache-2.0
"""What the kernel skipped: counted once, and charged to the rows that it cost."""

from dataclasses import astuple, replace
from typing import Any

import pytest

from ktrace_agent.kernel import hook_counters
from ktrace_agent.kernel.hooks import TARGETS
from ktrace_agent.kernel.recording import ROW_TYPES, HookCounters, Overflow
from ktrace_api.names import RowType

CPUS = 2


def packed(values: tuple[int, ...]) -> list[bytes]:
    """The values of a per-CPU map whose sums are `values`: all on the last CPU but one each."""
    first = tuple(min(value, 1) for value in values)
    parts = first, tuple(value - one for value, one in zip(values, first, strict=True))
    return [b"".join(value.to_bytes(8, "little") for value in part) for part in parts]


class Array:
    def __init__(self, *entries: tuple[int, ...]) -> None:
        self.entries = entries

    def lookup_percpu(self, index: int) -> list[bytes]:
        return packed(self.entries[index])


class Program:
    def __init__(self, misses: int) -> None:
        self.misses = misses

    def recursion_misses(self) -> int:
        return self.misses


class Loaded:
    """A loaded object by its counters, the misses of its programs, and its data calls."""

    def __init__(
        self,
        counted: tuple[int, int, int, int] = (0, 0, 0, 0),
        handled: tuple[int, int, int, int] = (0, 0, 0, 0),
        rescued: int = 0,
        excluded: tuple[int, int] = (0, 0),
        counters: dict[RowType, HookCounters] | None = None,
        overflow: Overflow | None = None,
        **misses: int,
    ) -> None:
        hooks = counters or {}
        self.maps = {
            "counters": Array(*(astuple(hooks.get(row, HookCounters())) for row in ROW_TYPES)),
            "data_calls": Array((*counted, *handled)),
            "state_copies": Array((rescued, *excluded)),
            "overflow": Array(astuple(overflow or Overflow())),
        }
        self.programs = {name: Program(misses.get(name, 0)) for name in TARGETS}

    def map(self, name: str) -> Array:
        return self.maps[name]


def read(bpf: Any, *programs: str) -> dict[RowType, HookCounters]:
    return hook_counters.read(bpf, programs or tuple(TARGETS))


def test_nothing_is_skipped_where_every_call_was_handled():
    seen = {RowType.UDP_SEND: HookCounters(seen=5, written=5)}
    bpf = Loaded((5, 0, 7, 0), (5, 0, 7, 0), counters=seen, sock_send=3, sock_send_nested=2)
    assert read(bpf)[RowType.UDP_SEND] == seen[RowType.UDP_SEND]
    assert not hook_counters.overflow(bpf).any()  # type: ignore[arg-type]


def test_a_skipped_tcp_call_is_no_udp_row():
    bpf: Any = Loaded((0, 0, 9, 4), (0, 0, 7, 3))
    assert all(hook == HookCounters() for hook in read(bpf).values())
    assert hook_counters.overflow(bpf) == Overflow(skipped_tx_calls=2, skipped_rx_calls=1)


@pytest.mark.parametrize(("row", "kind"), [(RowType.UDP_SEND, 0), (RowType.UDP_RECV, 1)])
def test_a_skipped_datagram_is_seen_and_skipped(row: RowType, kind: int):
    counted, handled = [0, 0, 0, 0], [0, 0, 0, 0]
    counted[kind], handled[kind] = 12, 10
    one = HookCounters(seen=10, written=4, filtered=6)
    bpf: Any = Loaded(tuple(counted), tuple(handled), counters={row: one})  # type: ignore[arg-type]
    assert read(bpf)[row] == replace(one, seen=12, skipped=2)
    assert hook_counters.read(bpf, ())[row] == one
    assert not hook_counters.overflow(bpf).any()


def test_a_change_that_the_second_copy_recorded_is_not_skipped():
    one = HookCounters(seen=100, written=100, unseen=3)
    bpf: Any = Loaded(rescued=6, counters={RowType.TCP_STATE: one}, tcp_state=8)
    assert read(bpf)[RowType.TCP_STATE] == replace(one, seen=102, skipped=2, unseen=1)


def test_an_excluded_change_is_not_skipped_if_one_copy_excluded_it():
    """Of 1,000 excluded changes the first copy missed 10, the second one 4."""
    bpf: Any = Loaded(excluded=(990, 996), tcp_state=10, tcp_state_nested=4)
    assert read(bpf)[RowType.TCP_STATE] == HookCounters()
    bpf = Loaded(excluded=(990, 996), tcp_state=13, tcp_state_nested=4)
    assert read(bpf)[RowType.TCP_STATE].skipped == 3


def test_a_missed_return_is_counted_once():
    """By the thread's next call, or by the kernel, whichever knows of more."""
    one = HookCounters(seen=9, written=6, skipped=3)
    bpf: Any = Loaded(counters={RowType.UDP_RECV: one}, udp_recv_begin=2)
    assert read(bpf)[RowType.UDP_RECV] == one
    bpf = Loaded(counters={RowType.UDP_RECV: one}, udp_recv_begin=5)
    assert read(bpf)[RowType.UDP_RECV] == replace(one, seen=11, skipped=5)


def test_only_attached_programs_are_asked():
    bpf: Any = Loaded(tcp_retransmit=4, tcp_retransmit_err=1)
    assert read(bpf, "tcp_retransmit_err")[RowType.TCP_RETRANSMIT].skipped == 1
