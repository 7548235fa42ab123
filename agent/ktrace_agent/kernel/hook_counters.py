# SPDX-License-Identifier: Apache-2.0
"""Reads the accounting of the BPF programs: counters, skipped programs, facts lost in full maps."""

import ctypes
from collections.abc import Collection, Iterable
from ctypes import c_uint64
from dataclasses import fields, replace

from ktrace_agent.kernel.bpf_object import Object
from ktrace_agent.kernel.hooks import TARGETS
from ktrace_agent.kernel.recording import ROW_TYPES, HookCounters, Overflow
from ktrace_api.names import RowType

_DATA_KINDS = 4
_UDP_SEND, _UDP_RECV, _TCP_SEND, _TCP_RECV = range(_DATA_KINDS)


class DataCalls(ctypes.Structure):
    """struct kt_data_calls."""

    _fields_ = (
        ("counted", c_uint64 * _DATA_KINDS),
        ("handled", c_uint64 * _DATA_KINDS),
    )


def read(bpf: Object, programs: Iterable[str]) -> dict[RowType, HookCounters]:
    """Return the accounting of every hook, summed over CPUs.

    `programs` are the attached ones whose skipped runs are added; empty while they are attached.
    """
    names = [field.name for field in fields(HookCounters)]
    array = bpf.map("counters")
    sums = {}
    for index, row in enumerate(ROW_TYPES):
        total = _sum(array.lookup_percpu(index), len(names))
        sums[row] = HookCounters(**dict(zip(names, total, strict=True)))
    if programs := tuple(programs):
        for row, skipped in _skipped(bpf, programs, sums).items():
            sums[row] = _with_skipped(sums[row], skipped)
    return sums


def overflow(bpf: Object) -> Overflow:
    """Return the facts that are missing in rows and flows, summed over CPUs."""
    found = Overflow(*_sum(bpf.map("overflow").lookup_percpu(0), len(fields(Overflow))))
    skipped = _skipped_data(bpf)
    return replace(
        found,
        skipped_tx_calls=found.skipped_tx_calls + skipped[_TCP_SEND],
        skipped_rx_calls=found.skipped_rx_calls + skipped[_TCP_RECV],
    )


def _with_skipped(hook: HookCounters, skipped: int) -> HookCounters:
    """Add skipped events. The next state of a socket also shows a skipped change (`unseen`)."""
    return replace(
        hook,
        seen=hook.seen + skipped,
        skipped=hook.skipped + skipped,
        unseen=max(0, hook.unseen - skipped),
    )


def _skipped(
    bpf: Object, programs: Collection[str], counters: dict[RowType, HookCounters]
) -> dict[RowType, int]:
    """Return the events whose program the kernel did not run, beyond those already counted."""
    found = dict.fromkeys(ROW_TYPES, 0)
    for name in programs:
        if row := TARGETS[name].row:
            found[row] += TARGETS[name].misses(bpf.programs[name])
    if "tcp_state_nested" in programs:
        found[RowType.TCP_STATE] -= _handled_by_second_copy(bpf)
        found[RowType.TCP_STATE] = max(0, found[RowType.TCP_STATE])
    data = _skipped_data(bpf)
    for row, kind in ((RowType.UDP_SEND, _UDP_SEND), (RowType.UDP_RECV, _UDP_RECV)):
        # The programs of kprobes count a missed return themselves, at the thread's next call.
        found[row] = max(0, found[row] - counters[row].skipped) + data[kind]
    return found


def _handled_by_second_copy(bpf: Object) -> int:
    """Return the state changes that tcp_state missed and tcp_state_nested recorded or excluded.

    The copies count what they exclude apart, and each misses some.
    """
    rescued, *excluded = _sum(bpf.map("state_copies").lookup_percpu(0), 3)
    missed_too = TARGETS["tcp_state_nested"].misses(bpf.programs["tcp_state_nested"])
    return rescued + max(0, excluded[1] + missed_too - excluded[0]) * bool(excluded[0])


def _skipped_data(bpf: Object) -> list[int]:
    """Return the calls, by kind, that neither copy of a program handled."""
    sums = _sum(bpf.map("data_calls").lookup_percpu(0), 2 * _DATA_KINDS)
    return [max(0, sums[kind] - sums[_DATA_KINDS + kind]) for kind in range(_DATA_KINDS)]


def _sum(per_cpu: list[bytes], count: int) -> list[int]:
    values = [(c_uint64 * count).from_buffer_copy(value) for value in per_cpu]
    return [sum(column) for column in zip(*values, strict=True)]
