# SPDX-License-Identifier: Apache-2.0
"""A summary for people: models in, rich renderables out, no other effect.

Names of processes are whatever their owners chose, so every text from the outside goes
through `plain()`: no control character and no markup of it reaches the terminal.
"""

import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ktrace_agent.bundle import Sealed
from ktrace_agent.result import lost
from ktrace_api.bundle import Accounting, Destination, Process, Quantiles, Summary
from ktrace_api.names import ConnectResult, RowType

TOP = 8
"""Lines of a table; the summary holds more."""

_GOOD, _BAD, _DIM, _HEAD = "green", "bold red", "dim", "bold"
_KIB = 1024


def plain(text: object) -> Text:
    """A text from the outside, harmless on a terminal."""
    return Text("".join(char if char.isprintable() else "�" for char in str(text)))


def number(value: int | str) -> Text:
    """With thousands' separators; zero and unknown in the background."""
    if isinstance(value, str):
        return Text(value, _DIM)
    return Text(f"{value:,}", "" if value else _DIM)


def _alarming(value: int) -> Text:
    return Text(f"{value:,}", _BAD if value else _DIM)


def size(value: int | str) -> Text:
    """Bytes with a unit of 1024."""
    if isinstance(value, str) or value == 0:
        return Text(str(value), _DIM)
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < _KIB:
            return Text(f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}")
        amount /= _KIB
    return Text(f"{amount:.1f} TiB")


def span(microseconds: int) -> str:
    """A duration with three digits: 412 us, 1.2 ms, 3.05 s, 120 s."""
    if microseconds < 1_000:
        return f"{microseconds} us"
    if microseconds < 999_500:  # what would be rounded to 1000 ms is a second
        return f"{microseconds / 1e3:.3g} ms"
    return f"{microseconds / 1e6:.3g} s" if microseconds < 1e8 else f"{microseconds / 1e6:,.0f} s"


def report(summary: Summary) -> Group:
    """What a capture found, the most telling things first."""
    parts: list[RenderableType | None] = [
        Group("", _headline(summary)),
        *(Text.assemble("  ", plain(note)) for note in summary.notes),
        _advice(summary),
        _events(summary),
        _connects(summary),
        _talkers(summary),
        _flows(summary),
        _retransmits(summary),
        _sockets(summary),
    ]
    return Group(*(part for part in parts if part is not None))


def whereabouts(sealed: Sealed) -> tuple[str, ...]:
    """Where the bundle is and what to type next, as lines that may be copied whole."""
    events = sealed.paths[0]
    return (
        "",
        f"Bundle       {plain(sealed.bundle)} ({size(sealed.bytes)})",
        f"Rows         {plain(events)}",
        f"Look closer  {plain(next_command(sealed.summary, events))}",
    )


def next_command(summary: Summary, events: Path) -> str:
    """A jq line that shows what this capture makes one want to see."""
    path = shlex.quote(str(events))
    if any(result != ConnectResult.ESTABLISHED for result in summary.connects.results):
        return f"""jq -c 'select(.type=="connect" and .result!="established")' {path}"""
    if summary.retransmits.segs:
        return f"""jq -c 'select(.type=="tcp_retransmit")' {path}"""
    return f"jq -r '[.ts,.type,.comm,.tuple]|@tsv' {path} | head"


def _headline(summary: Summary) -> Text:
    line = Text.assemble(
        (plain(summary.node).plain, _HEAD),
        f"  {summary.window_s:.1f} s  {summary.rows:,} rows",
    )
    if summary.ended_by == "signal":
        line.append("  ended early", _DIM)
    if summary.sample > 1:
        line.append(f"  1 in {summary.sample:,}", _DIM)
    missing = lost(summary)
    if summary.complete:
        line.append("  complete: nothing was lost", _GOOD)
    elif missing:
        line.append(f"  INCOMPLETE: {missing:,} events were lost", _BAD)
    elif capped := sum(one.capped for one in summary.accounting.values()):
        line.append(f"  INCOMPLETE: {capped:,} events were beyond the limit", _BAD)
    else:
        line.append("  INCOMPLETE: some facts were lost, see `overflow` in the summary", _BAD)
    return line


def _advice(summary: Summary) -> Text | None:
    if not any(one.lost_ring for one in summary.accounting.values()):
        return None
    return Text("  To lose less: a larger --ring-bytes, or --ports, --sample.", _DIM)


def _table(title: str, left_out: int, *columns: str, words: int = 1) -> Table:
    """An airy table: the first `words` columns are text, the others numbers."""
    more = f"  (+{left_out:,} in the summary)" if left_out > 0 else ""
    table = Table(
        title=Text.assemble((title, _HEAD), (more, _DIM)),
        title_justify="left",
        title_style="",
        box=None,
        padding=(0, 2, 0, 0),
        header_style=_DIM,
    )
    for position, column in enumerate(columns):
        if position < words:
            table.add_column(column, overflow="ellipsis", no_wrap=True, max_width=46)
        else:
            table.add_column(column, justify="right", no_wrap=True)
    return table


def _spaced(part: RenderableType) -> Group:
    return Group("", part)


def _process(process: Process) -> Text:
    return Text.assemble(plain(process.comm), (f" {process.tgid}", _DIM))


def _events(summary: Summary) -> Group:
    """Rows by type; why others are not there, as far as there are such."""
    causes: list[tuple[str, Callable[[Accounting], int]]] = [
        ("filtered", lambda one: one.filtered),
        ("sampled out", lambda one: one.sampled),
        ("over limit", lambda one: one.capped),
        ("lost", lambda one: one.lost_ring + one.lost_map),
    ]
    accounts = summary.accounting
    shown = [cause for cause in causes if any(cause[1](one) for one in accounts.values())]
    table = _table("Events", 0, "type", "rows", *(name for name, _ in shown))
    for row in RowType:
        if row not in accounts:
            continue
        cells = [number(summary.rows_by_type.get(row, 0))]
        for name, count in shown:
            cells.append((_alarming if name == "lost" else number)(count(accounts[row])))
        table.add_row(Text(row), *cells)
    return _spaced(table)


def _connects(summary: Summary) -> Group | None:
    found = summary.connects
    if not found.top:
        return None
    left_out = found.left_out + max(0, len(found.top) - TOP)
    table = _table(
        "Connects", left_out, "to", "how they ended", "all", "p50", "p99", "max", words=2
    )
    for one in found.top[:TOP]:
        table.add_row(
            plain(one.peer), _outcome(one), number(one.connects), *_quantiles(one.latency_us)
        )
    return _spaced(table)


def _outcome(destination: Destination) -> Text:
    """`12 established, 3 ECONNREFUSED`: errors by name where there is one."""
    parts: list[tuple[str, str]] = []
    established = destination.results.get(ConnectResult.ESTABLISHED, 0)
    if established:
        parts.append((f"{established:,} established", _GOOD))
    named = sum(destination.errors.values())
    parts += [(f"{count:,} {plain(name)}", _BAD) for name, count in _most(destination.errors)]
    others = {
        result: count
        for result, count in destination.results.items()
        if result not in (ConnectResult.ESTABLISHED, ConnectResult.FAILED)
    }
    if named and ConnectResult.DENIED in others:
        others.pop(ConnectResult.DENIED)  # its errno is among the errors
    parts += [(f"{count:,} {plain(result)}", "yellow") for result, count in _most(others)]
    line = Text()
    for position, (text, style) in enumerate(parts):
        line.append(", " if position else "")
        line.append(text, style)
    return line


def _most(counts: Mapping[str, int]) -> Iterable[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _quantiles(found: Quantiles | None) -> list[Text]:
    if found is None or not found.count:
        return [Text("-", _DIM)] * 3
    return [Text(span(found.p50)), Text(span(found.p99)), Text(span(found.max))]


def _talkers(summary: Summary) -> Group | None:
    found = summary.talkers
    if not found.by_bytes:
        return None
    left_out = found.left_out + max(0, len(found.by_bytes) - TOP)
    columns = ("process", "sent", "received", "opened", "failed", "flows")
    table = _table("Top talkers", left_out, *columns)
    for one in found.by_bytes[:TOP]:
        table.add_row(
            _process(one),
            size(one.tx_bytes),
            size(one.rx_bytes),
            number(one.opened),
            _alarming(one.failed),
            number(one.flows),
        )
    return _spaced(table)


def _flows(summary: Summary) -> Group | None:
    found = summary.flows
    if not found.top:
        return None
    left_out = found.left_out + max(0, len(found.top) - TOP)
    columns = ("process", "peer", "", "sent", "received", "opened", "failed")
    table = _table("Biggest conversations", left_out, *columns, words=3)
    for one in found.top[:TOP]:
        table.add_row(
            _process(one),
            plain(one.peer),
            Text(one.proto, _DIM),
            size(one.tx_bytes),
            size(one.rx_bytes),
            number(one.opened),
            _alarming(one.failed),
        )
    return _spaced(table)


def _retransmits(summary: Summary) -> Group | None:
    found = summary.retransmits
    segments = max(found.segs, found.flow_segs)  # rows may be sampled, flows left out
    if not segments:
        return None
    left_out = found.left_out + max(0, len(found.top) - TOP)
    title = f"Retransmits: {segments:,} segments sent again"
    table = _table(title, left_out, "process", "peer", "segments", words=2)
    for one in found.top[:TOP]:
        table.add_row(_process(one), plain(one.peer), number(one.segs))
    return _spaced(table)


def _sockets(summary: Summary) -> Group | None:
    """The stock of TCP sockets at the start and at the end, and whose CLOSE_WAITs they are."""
    first, last = summary.stock_start.states, summary.stock_end.states
    if not first and not last:
        return None
    line = Text.assemble(("TCP sockets ", _HEAD), ("start -> end  ", _DIM))
    for state in sorted(first.keys() | last.keys(), key=lambda name: -last.get(name, 0)):
        before, after = first.get(state, 0), last.get(state, 0)
        grew = state in ("CLOSE_WAIT", "SYN_SENT") and after > before
        line.append(f" {plain(state)} ", _DIM)
        line.append(f"{before:,} -> {after:,} ", _BAD if grew else "")
    return _spaced(line)
