# SPDX-License-Identifier: Apache-2.0
"""Counts events for which no BPF program ran, so that missing rows are still accounted for.

The kernel does not always run a program. Some hosts exempt tasks of their own from tracing, and
softirq, which makes most TCP state changes, may interrupt any of them. Two facts reveal it:

- A socket's next state change does not begin where the last one ended (change.bpf.h counts these).
- The kernel's own counters of a namespace rose by more than the rows show. They are read while the
  programs are attached, so every count belongs to an event of the window.

The counters are PassiveOpens (LISTEN -> SYN_RECV), ActiveOpens (-> SYN_SENT) and RetransSegs minus
TCPRetransFail. UDP counters cannot be compared with rows: they count datagrams instead of calls,
and include datagrams that the kernel sends itself or takes out of a tunnel. If a filter, a limit
or a loss keeps events from becoming rows, nothing is compared.
"""

from collections.abc import Mapping

import duckdb

from ktrace_agent.host.tcp_counts import TcpCounts
from ktrace_agent.kernel.recording import Recording
from ktrace_api.capture import CaptureConfig
from ktrace_api.names import EventKind, RowType

_REPORTED_LATER_NS = 100_000_000
"""Maximum time between the count of an event and its record."""

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
    """Return the minimum number of missed events of each hook; for retransmits, of segments.

    All rows of the recording must still be in the tables.
    """
    found = {row: hook.unseen for row, hook in recording.counters.items()}
    for row, missing in _beyond_rows(con, recording, config).items():
        found[row] = found.get(row, 0) + missing
    return found


def _beyond_rows(
    con: duckdb.DuckDBPyConnection, recording: Recording, config: CaptureConfig
) -> dict[RowType, int]:
    kernel = recording.tcp_counts
    if kernel is None:
        return {}
    offset = recording.clock.offset_start_ns
    window = {
        "since": (kernel.since_ns + offset) // 1000,
        "until": (kernel.until_ns + _REPORTED_LATER_NS + offset) // 1000,
    }
    rows = {net: TcpCounts(*counts) for net, *counts in con.execute(_ROWS, window).fetchall()}
    missing: dict[RowType, int] = {}
    if EventKind.TCP in config.events and _all_are_rows(recording, RowType.TCP_STATE):
        opens = _excess(kernel.netns, rows, "active_opens")
        missing[RowType.TCP_STATE] = opens + _excess(kernel.netns, rows, "passive_opens")
        if EventKind.CONNECT in config.events:
            missing[RowType.CONNECT] = opens
    if EventKind.RETRANSMIT in config.events and _all_are_rows(recording, RowType.TCP_RETRANSMIT):
        missing[RowType.TCP_RETRANSMIT] = _excess(kernel.netns, rows, "retransmitted")
    return missing


def _all_are_rows(recording: Recording, row: RowType) -> bool:
    """Return whether every event became a row: none filtered, sampled, capped or lost."""
    hook = recording.counters[row]
    return hook.seen == hook.written and not recording.spool_lost.get(row)


def _excess(kernel: Mapping[int, TcpCounts], rows: Mapping[int, TcpCounts], name: str) -> int:
    """Sum up, over all namespaces, the events that the kernel counted beyond the rows."""
    return sum(
        max(0, getattr(counts, name) - getattr(rows.get(netns, _NOTHING), name))
        for netns, counts in kernel.items()
    )
