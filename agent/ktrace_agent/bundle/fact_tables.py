# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - tables and columns are constants of tables/contract.py
"""Facts, node.json and findings as SQL tables, beside those of rows, flows and sockets.

Findings read them while a bundle is sealed, `ktrace query` reads them in a sealed one.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import duckdb

from ktrace_agent.analyze.facts import Facts
from ktrace_agent.host.counter_changes import FileChanges, Report
from ktrace_agent.host.counters import Missing
from ktrace_agent.kernel.observed import known_loss
from ktrace_agent.tables.contract import COLUMNS
from ktrace_api.finding import Finding
from ktrace_api.names import UNKNOWN, RowType
from ktrace_api.node import CounterFiles, NodeInfo
from ktrace_api.summary import Accounting


def load(
    con: duckdb.DuckDBPyConnection,
    facts: Facts,
    node: NodeInfo,
    changes: Report | None = None,
    findings: Sequence[Finding] = (),
) -> None:
    """Fill counters, sysctls, accounting, capture, hooks and findings anew.

    The counters are those of `changes`, or those of node.json if it is None.
    """
    _fill_columns(con, "counters", [*_counters(changes or node), *_conntrack_counters(node)])
    _fill(con, "sysctls", node.sysctls.items())
    _fill(con, "accounting", itertools.starmap(_account, facts.accounting.items()))
    _fill(con, "capture", [_capture(facts, node)])
    _fill(con, "hooks", (
        (hook.hook, None if hook.chosen == UNKNOWN else hook.chosen,
         [f"{one.program}: {one.reason}" for one in hook.refused])
        for hook in node.hooks
    ))  # fmt: skip
    _fill(con, "findings", map(_finding, range(1, 1 + len(findings)), findings))


def _account(row: RowType, one: Accounting | None) -> Sequence[Any]:
    """The line of a type; NULL if no program records it."""
    _, *names = COLUMNS["accounting"]
    return (row, *(getattr(one, name) if one else None for name in names))


def _fill(con: duckdb.DuckDBPyConnection, table: str, lines: Iterable[Sequence[Any]]) -> None:
    con.execute(f"DELETE FROM {table}")
    listed = [list(line) for line in lines]
    if listed:
        places = ", ".join("?" * len(COLUMNS[table]))
        con.executemany(f"INSERT INTO {table} VALUES ({places})", listed)


def _fill_columns(
    con: duckdb.DuckDBPyConnection, table: str, lines: Sequence[Sequence[Any]]
) -> None:
    """Like _fill(), but for many lines: 25,000 take 0.1 s instead of 10 s.

    A line holds only numbers and texts.
    """
    con.execute(f"DELETE FROM {table}")
    if lines:
        columns = [list(column) for column in zip(*lines, strict=True)]
        con.execute(
            f"INSERT INTO {table} SELECT {', '.join(['unnest(?)'] * len(columns))}", columns
        )


def _counters(changes: Report | NodeInfo) -> Iterator[tuple[Any, ...]]:
    yield from _changed(None, changes.host)
    for one in changes.netns:
        # If no process lived in the namespace at the start, its counters at that time are
        # unknown. The namespace may be older than the capture, so their values are not changes.
        if one.missing != Missing.APPEARED:
            yield from _changed(one.netns, one.counters)


def _conntrack_counters(node: NodeInfo) -> Iterator[tuple[Any, ...]]:
    for table in node.conntrack.netns if node.conntrack else ():
        yield from _changed(table.netns, {"ctnetlink": table.counters})
        if table.peak:
            yield table.netns, "ctnetlink", "peak", float(table.peak), float(table.peak), 0.0


def _changed(netns: int | None, files: FileChanges | CounterFiles) -> Iterator[tuple[Any, ...]]:
    for file, names in files.items():
        for name, one in names.items():
            yield netns, file, name, float(one.before), float(one.after), float(one.delta)


def _capture(facts: Facts, node: NodeInfo) -> tuple[Any, ...]:
    config, hooks = node.config, facts.counted.values()
    lost = sum(hook.lost for hook in hooks)
    values: Mapping[str, Any] = {
        "node": facts.node,
        "started": _naive(facts.started),
        "ended": _naive(facts.ended),
        "ended_by": facts.ended_by,
        "window_s": facts.window_s,
        "sample": facts.sample,
        "complete": facts.complete,
        "dns_only": config.dns_only,
        "security": config.security,
        "conntrack": config.conntrack,
        "ports": list(config.ports),
        "pods": list(config.pods),
        "events": [str(kind) for kind in config.events],
        "rows": facts.rows,
        "lost": known_loss(lost, facts.hooks_missing),
        "gaps": [str(gap) for gap in facts.gaps],
        "capped": sum(hook.capped for hook in hooks),
        "overflow": sum(facts.overflow.model_dump().values()),
        "skipped_calls": facts.skipped_calls.tx + facts.skipped_calls.rx,
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
    """UTC without a time zone, as TIMESTAMP stores it."""
    return moment.astimezone(UTC).replace(tzinfo=None)
