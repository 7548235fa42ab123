# SPDX-License-Identifier: Apache-2.0
"""Events that the kernel ran no program for: a row that nobody could write is counted, too.

A program can be kept from running: some hosts exempt tasks of their own from tracing, and
softirq, which moves most states of TCP, works upon any task. Two things tell of it all the same:

- a socket's next change does not begin where the last one ended (change.bpf.h counts these);
- the kernel's own counters of a namespace rose by more than the rows show. They are read while
  the programs are attached, so every count belongs to an event of the window.

Compared are PassiveOpens (LISTEN -> SYN_RECV), ActiveOpens (-> SYN_SENT) and RetransSegs without
TCPRetransFail. The counters of UDP are not comparable: they count datagrams, not calls, and those
that the kernel itself sends or takes out of a tunnel. Where a filter, a limit or a loss keeps
events from being rows there is nothing to compare.
"""

from collections.abc import Mapping

import duckdb

from ktrace_agent.host.tcp_counts import TcpCounts
from ktrace_agent.kernel.recording import Recording
from ktrace_api.capture import CaptureConfig
from ktrace_api.names import EventKind, RowType

_TOLD_LATER_NS = 100_000_000
"""An event may be told a moment after it is counted."""

_ROWS = """
SELECT net,
  count(*) FILTER (WHERE type = 'tcp_state' AND old_state = 'LISTEN' AND new_state = 'SYN_RECV'),
  count(*) FILTER (WHERE type = 'tcp_state' AND new_state = 'SYN_SENT'),
  coalesce(sum(measure) FILTER (WHERE type = 'tcp_retransmit'), 0)::BIGINT
FROM events JOIN kinds USING (kind)
WHERE ts BETWEEN make_timestamp($since) AND make_timestamp($until) GROUP BY net
"""
_NOTHING = TcpCounts(0, 0, 0)


def count(
    con: duckdb.DuckDBPyConnection, recording: Recording, config: CaptureConfig
) -> dict[RowType, int]:
    """Events of each hook that passed unseen, at least; of retransmits: segments.

    All rows of the recording must still be in the tables.
    """
    found = {row: hook.unseen for row, hook in recording.counters.items()}
    for row, missing in _against_counters(con, recording, config).items():
        found[row] = found.get(row, 0) + missing
    return found


def _against_counters(
    con: duckdb.DuckDBPyConnection, recording: Recording, config: CaptureConfig
) -> dict[RowType, int]:
    witness = recording.witness
    if witness is None:
        return {}
    offset = recording.clock.offset_start_ns
    window = {
        "since": (witness.since_ns + offset) // 1000,
        "until": (witness.until_ns + _TOLD_LATER_NS + offset) // 1000,
    }
    rows = {net: TcpCounts(*counts) for net, *counts in con.execute(_ROWS, window).fetchall()}
    missing: dict[RowType, int] = {}
    if EventKind.TCP in config.events and _all_are_rows(recording, RowType.TCP_STATE):
        opens = _excess(witness.netns, rows, "active_opens")
        missing[RowType.TCP_STATE] = opens + _excess(witness.netns, rows, "passive_opens")
        if EventKind.CONNECT in config.events:
            missing[RowType.CONNECT] = opens
    if EventKind.RETRANSMIT in config.events and _all_are_rows(recording, RowType.TCP_RETRANSMIT):
        missing[RowType.TCP_RETRANSMIT] = _excess(witness.netns, rows, "retransmitted")
    return missing


def _all_are_rows(recording: Recording, row: RowType) -> bool:
    """Nothing was filtered, sampled, capped or lost, and every record is in the spool."""
    hook = recording.counters[row]
    return hook.seen == hook.written and not recording.spool_lost.get(row)


def _excess(kernel: Mapping[int, TcpCounts], rows: Mapping[int, TcpCounts], name: str) -> int:
    """What the kernel counted beyond the rows, over all namespaces."""
    return sum(
        max(0, getattr(counts, name) - getattr(rows.get(netns, _NOTHING), name))
        for netns, counts in kernel.items()
    )
