# SPDX-License-Identifier: Apache-2.0
"""Parts that findings share: a process, a command, a number, fragments of SQL."""

from typing import Any

from ktrace_api.finding import NAME_CHARS, Number, Severity
from ktrace_api.thresholds import Thresholds

Row = dict[str, Any]
"""A row of a query result, by column."""

LOOPBACK = "({0} = '::1' OR starts_with({0}, '127.'))"
"""SQL condition: {0} is a loopback address."""
POOL = "hash('pool', net, cgroup_id, comm, {0})"
"""SQL key that groups short-lived processes: same program, container and peer {0}.

A loop around a tool starts a process for each connection or lookup, and none of them fails twice.
"""


def number(what: str, value: float | None, against: float | None = None, unit: str = "") -> Number:
    """A number that was compared, rounded to four decimal places."""
    return Number(
        what=cut(what, NAME_CHARS),
        value=_tidy(value or 0),
        against=None if against is None else _tidy(against),
        unit=unit,
    )


def share(part: float, whole: float) -> float:
    """part / whole, or 0 if the whole is 0."""
    return part / whole if whole > 0 else 0.0


def who(row: Row) -> str:
    """The process in a sentence: `curl (4711)`, or `curl (12 processes)` by column `processes`."""
    comm, tgid, processes = row.get("comm"), row.get("tgid"), row.get("processes", 1)
    if comm is None and tgid is None:
        return "an unknown process"
    if processes > 1:
        return f"{comm or 'process'} ({processes} processes)"
    return f"{comm or 'process'} ({tgid})" if tgid is not None else str(comm)


def by(row: Row) -> str:
    """The same within parentheses: `curl, pid 4711`, or `curl, 12 processes`."""
    comm, tgid, processes = row.get("comm"), row.get("tgid"), row.get("processes", 1)
    if comm is None and tgid is None:
        return "unknown process"
    if processes > 1:
        return f"{comm or 'unknown name'}, {processes} processes"
    return f"{comm or 'unknown name'}, pid {tgid}" if tgid is not None else str(comm)


def literal(value: int | str | None) -> str:
    """A value as an SQL literal."""
    if value is None:
        return "NULL"
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"


def inside(row: Row, *commands: str) -> str:
    """Wrap commands so that they run in the network namespace of the process.

    If there are several processes (column `processes`), they may all have exited, and sometimes
    no process is known: then any process of the namespace is used. Commands must not contain
    double quotes or dollar signs.
    """
    tgid, net = row.get("tgid"), row.get("net")
    if net is not None and (tgid is None or row.get("processes", 1) > 1):
        pid = f"$(lsns -nt net -o NS,PID | awk '/{net}/{{print $2}}')"
    elif tgid is not None:
        pid = str(tgid)
    else:
        return "; ".join(commands)
    every = commands[0] if len(commands) == 1 else f'sh -c "{"; ".join(commands)}"'
    return f"nsenter -t {pid} -n {every}"


def grade(limits: Thresholds, failed: int, total: int, *, warn: bool) -> Severity:
    """Warning if `warn`, critical if nearly all of many attempts failed, otherwise info."""
    if not warn:
        return Severity.INFO
    if failed >= limits.critical_count and share(failed, total) >= limits.critical_share:
        return Severity.CRITICAL
    return Severity.WARNING


def _tidy(value: float) -> float | int:
    return value if isinstance(value, int) else round(value, 4)


def cut(text: str, limit: int) -> str:
    """Shorten a text to `limit` characters; an ellipsis marks the cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
