# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - tables and columns are constants of sql.py
"""What summary and node.json say, as the tables that SQL asks beside rows, flows and sockets."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import duckdb

from ktrace_agent.host.counter_changes import FileChanges, Report
from ktrace_agent.host.counters import Missing
from ktrace_agent.tables.contract import COLUMNS
from ktrace_api.finding import Finding
from ktrace_api.names import UNKNOWN
from ktrace_api.node import CounterFiles, NodeInfo
from ktrace_api.summary import Summary

Changes = Report | NodeInfo
"""What the counters did: a Report has all of it, NodeInfo what found room there."""


def load(
    con: duckdb.DuckDBPyConnection,
    summary: Summary,
    node: NodeInfo,
    changes: Changes | None = None,
) -> None:
    """Fill counters, sysctls, accounting, capture, hooks and findings anew.

    Counters are those of `changes`; without it those of node.json.
    """
    _fill_columns(con, "counters", [*_counters(changes or node), *_tracked(node)])
    _fill(con, "sysctls", node.sysctls.items())
    _fill(con, "accounting", ((name, *one.model_dump().values()) for name, one in
                              summary.accounting.items()))  # fmt: skip
    _fill(con, "capture", [_capture(summary, node)])
    _fill(con, "hooks", (
        (hook.hook, None if hook.chosen == UNKNOWN else hook.chosen,
         [f"{one.program}: {one.reason}" for one in hook.refused])
        for hook in node.hooks
    ))  # fmt: skip
    _fill(con, "findings", map(_finding, range(1, 1 + len(summary.findings)), summary.findings))


def _fill(con: duckdb.DuckDBPyConnection, table: str, lines: Iterable[Sequence[Any]]) -> None:
    con.execute(f"DELETE FROM {table}")
    listed = [list(line) for line in lines]
    if listed:
        places = ", ".join("?" * len(COLUMNS[table]))
        con.executemany(f"INSERT INTO {table} VALUES ({places})", listed)


def _fill_columns(
    con: duckdb.DuckDBPyConnection, table: str, lines: Sequence[Sequence[Any]]
) -> None:
    """The same for many lines of numbers and words: a tenth of a second for 25,000, not ten."""
    con.execute(f"DELETE FROM {table}")
    if lines:
        columns = [list(column) for column in zip(*lines, strict=True)]
        con.execute(
            f"INSERT INTO {table} SELECT {', '.join(['unnest(?)'] * len(columns))}", columns
        )


def _counters(changes: Changes) -> Iterator[tuple[Any, ...]]:
    yield from _changed(None, changes.host)
    for one in changes.netns:
        # Where no process lived at the start nobody knows what the counters were then: the
        # namespace may be older than the capture, and what they say is no change in it.
        if one.missing != Missing.APPEARED:
            yield from _changed(one.netns, one.counters)


def _tracked(node: NodeInfo) -> Iterator[tuple[Any, ...]]:
    for tracked in node.conntrack.netns if node.conntrack else ():
        yield from _changed(tracked.netns, {"ctnetlink": tracked.counters})
        if tracked.peak:
            yield tracked.netns, "ctnetlink", "peak", float(tracked.peak), float(tracked.peak), 0.0


def _changed(netns: int | None, files: FileChanges | CounterFiles) -> Iterator[tuple[Any, ...]]:
    for file, names in files.items():
        for name, one in names.items():
            yield netns, file, name, float(one.before), float(one.after), float(one.delta)


def _capture(summary: Summary, node: NodeInfo) -> tuple[Any, ...]:
    config, hooks = node.config, summary.accounting.values()
    values: Mapping[str, Any] = {
        "node": summary.node,
        "started": _naive(summary.started),
        "ended": _naive(summary.ended),
        "ended_by": summary.ended_by,
        "window_s": summary.window_s,
        "sample": summary.sample,
        "complete": summary.complete,
        "dns_only": config.dns_only,
        "security": config.security,
        "conntrack": config.conntrack,
        "ports": list(config.ports),
        "pods": list(config.pods),
        "events": [str(kind) for kind in config.events],
        "rows": summary.rows,
        "lost": sum(hook.lost_ring + hook.lost_map + hook.unseen for hook in hooks),
        "capped": sum(hook.capped for hook in hooks),
        "overflow": sum(summary.overflow.model_dump().values()),
    }
    return tuple(values[name] for name in COLUMNS["capture"])


def _finding(rank: int, found: Finding) -> tuple[Any, ...]:
    subject = {name: None if value == UNKNOWN else value
               for name, value in found.subject.model_dump().items()}  # fmt: skip
    values: Mapping[str, Any] = {
        **found.model_dump(mode="json", exclude={"subject", "evidence", "coverage"}),
        **subject,
        "rank": rank,
        "rows": list(found.evidence.rows),
    }
    return tuple(values[name] for name in COLUMNS["findings"])


def _naive(moment: datetime) -> datetime:
    """As TIMESTAMP has it: UTC without saying so."""
    return moment.astimezone(UTC).replace(tzinfo=None)
