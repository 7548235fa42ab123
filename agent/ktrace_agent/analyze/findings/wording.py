# SPDX-License-Identifier: Apache-2.0
"""How findings word things: a process, a command, a number, parts of SQL."""

from typing import Any

from ktrace_api.finding import NAME_CHARS, Number, Severity
from ktrace_api.thresholds import Thresholds

Row = dict[str, Any]
"""A line of a query, by column."""

LOOPBACK = "({0} = '::1' OR starts_with({0}, '127.'))"
"""SQL of whether an address is its namespace's own."""
POOL = "hash('pool', net, cgroup_id, comm, {0})"
"""SQL of what short processes are judged by together: the same program in the same container with
one peer {0}. A loop around a tool makes a process for each connect or lookup, and none of them
ever fails twice."""


def number(what: str, value: float | None, against: float | None = None, unit: str = "") -> Number:
    """A number that was compared, with four digits behind the point at most."""
    return Number(
        what=cut(what, NAME_CHARS),
        value=_tidy(value or 0),
        against=None if against is None else _tidy(against),
        unit=unit,
    )


def share(part: float, whole: float) -> float:
    """part / whole, 0 where there is nothing."""
    return part / whole if whole > 0 else 0.0


def who(row: Row) -> str:
    """The process of a line in words: `curl (4711)`."""
    comm, tgid = row.get("comm"), row.get("tgid")
    if comm is None and tgid is None:
        return "a process that is not known"
    return f"{comm or 'process'} ({tgid})" if tgid is not None else str(comm)


def names(row: Row) -> str:
    """The process in words, with how many others share its fate (column `processes`)."""
    others = row["processes"] - 1
    if others <= 0:
        return who(row)
    return f"{who(row)} and {others} other{'s' if others > 1 else ''}"


def verb(row: Row, one: str, several: str) -> str:
    """The form of a verb that goes with names()."""
    return several if row["processes"] > 1 else one


def literal(value: int | str | None) -> str:
    """A value as SQL."""
    if value is None:
        return "NULL"
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"


def inside(row: Row, *commands: str) -> str:
    """These commands, to be typed on the node, in the network namespace of the process.

    Of many processes (names()) none may be left, and sometimes none is known: then any process of
    the namespace will do. Commands hold no double quotes and no dollar.
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
    """Warning where `warn`, critical where nearly all of many failed."""
    if not warn:
        return Severity.INFO
    if failed >= limits.critical_count and share(failed, total) >= limits.critical_share:
        return Severity.CRITICAL
    return Severity.WARNING


def _tidy(value: float) -> float | int:
    return value if isinstance(value, int) else round(value, 4)


def cut(text: str, limit: int) -> str:
    """At most so many characters, the last a sign that there were more."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
