# SPDX-License-Identifier: Apache-2.0
"""The summary of a capture for people: models in, rich renderables out, no side effects."""

from collections.abc import Callable, Iterable, Mapping

from rich.console import Group, RenderableType
from rich.text import Text

from ktrace_agent.analyze.titles import fill
from ktrace_agent.kernel.probes import roots
from ktrace_agent.view.findings import findings, resolvers, verdict
from ktrace_agent.view.style import (
    BAD,
    DIM,
    GOOD,
    HEAD,
    alarming,
    number,
    plain,
    quantiles,
    size,
    spaced,
    table_of,
    top,
)
from ktrace_api.names import UNKNOWN, ConnectResult, Gap, RowType
from ktrace_api.summary import Accounting, Destination, FlowPeer, Process, Summary, Talker


def report(summary: Summary) -> Group:
    """The report of a capture, the most important parts first."""
    parts: list[RenderableType | None] = [
        Group("", _headline(summary)),
        *(Text.assemble("  ", plain(note)) for note in summary.notes),
        _advice(summary),
        verdict(summary),
        findings(summary),
        resolvers(summary),
        _events(summary),
        _connects(summary),
        _talkers(summary),
        _flows(summary),
        _retransmits(summary),
        _sockets(summary),
    ]
    return Group(*(part for part in parts if part is not None))


def _headline(summary: Summary) -> Text:
    line = Text.assemble(
        (plain(summary.node).plain, HEAD),
        fill("  {seconds} s  {rows:event}", seconds=f"{summary.window_s:.1f}", rows=summary.rows),
    )
    if summary.ended_by == "signal":
        line.append("  stopped early", DIM)
    if summary.sample > 1:
        line.append(f"  sampled 1 in {summary.sample:,}", DIM)
    if summary.complete:
        line.append("  complete: no events lost", GOOD)
    else:
        line.append(f"  INCOMPLETE: {_incomplete(summary)}", BAD)
    return line


def _incomplete(summary: Summary) -> str:
    """What is missing, the worst reason first."""
    lost, capped = summary.lost, sum(one.capped for one in summary.counted.values())
    if lost:
        return fill("{lost:event} {lost:was|were} lost", lost=lost)
    if capped:
        return fill("{capped:event} {capped:was|were} over the capture limit", capped=capped)
    if hooks := roots(summary.hooks_missing):
        return f"not traced: {plain(', '.join(hooks))}"
    if Gap.ENDED_EARLY in summary.gaps:
        return "the capture ended early"
    return "a map was full, see `overflow` in the summary"


def _advice(summary: Summary) -> Text | None:
    if not any(one.lost_ring for one in summary.counted.values()):
        return None
    change = (
        "free space in --out-dir, or use" if summary.disk_full else "use a larger --ring-bytes,"
    )
    return Text(f"  To lose fewer events: {change} --ports or --sample.", DIM)


def _process(process: Process) -> Text:
    return Text.assemble(plain(process.comm), (f" {process.tgid}", DIM))


def _traffic(one: Talker | FlowPeer) -> tuple[Text, Text, Text, Text]:
    """Bytes sent and received, connections opened and failed."""
    return size(one.tx_bytes), size(one.rx_bytes), number(one.opened), alarming(one.failed)


def _events(summary: Summary) -> Group:
    """Events by type; a column for each reason why some were not recorded."""
    causes: list[tuple[str, Callable[[Accounting], int]]] = [
        ("filtered", lambda one: one.filtered),
        ("sampled out", lambda one: one.sampled),
        ("over limit", lambda one: one.capped),
        ("lost", lambda one: one.lost),
    ]
    accounts = summary.counted
    shown = [cause for cause in causes if any(cause[1](one) for one in accounts.values())]
    names = [name for name, _ in shown]
    spare = [name for name in names if name != "lost"]
    table = table_of("Events", 0, "type", "recorded", *names, spare=spare)
    for row in RowType:
        if row not in summary.accounting:
            continue
        cells = [number(summary.rows_by_type.get(row, 0))]
        for name, count in shown:
            value = count(accounts[row]) if row in accounts else None
            cells.append((alarming if name == "lost" else number)(value))
        table.add_row(Text(row), *cells)
    return spaced(table)


def _connects(summary: Summary) -> Group | None:
    found = summary.connects
    if found is None or not found.top:
        return None
    shown, left_out = top(found.top, found.left_out)
    columns = ("peer", "result", "attempts", "p50", "p99", "max")
    spare = ("p50", "max", "p99")
    table = table_of("Connection attempts", left_out, *columns, words=2, spare=spare)
    for one in shown:
        table.add_row(
            plain(one.peer), _outcome(one), number(one.connects), *quantiles(one.latency_us)
        )
    return spaced(table)


def _outcome(destination: Destination) -> Text:
    """`12 established, 3 ECONNREFUSED`: failures by name of errno if it is known."""
    parts: list[tuple[str, str]] = []
    established = destination.results.get(ConnectResult.ESTABLISHED, 0)
    if established:
        parts.append((f"{established:,} established", GOOD))
    named = sum(destination.errors.values())
    parts += [(f"{count:,} {plain(name)}", BAD) for name, count in _most(destination.errors)]
    others = {
        result: count
        for result, count in destination.results.items()
        if result not in (ConnectResult.ESTABLISHED, ConnectResult.FAILED)
    }
    if named and ConnectResult.DENIED in others:
        others.pop(ConnectResult.DENIED)  # counted under its errno
    parts += [(f"{count:,} {plain(result)}", "yellow") for result, count in _most(others)]
    line = Text()
    for position, (text, style) in enumerate(parts):
        line.append(", " if position else "")
        line.append(text, style)
    return line


def _most(counts: Mapping[str, int]) -> Iterable[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _talkers(summary: Summary) -> Group | None:
    found = summary.talkers
    if not found.by_bytes:
        return None
    shown, left_out = top(found.by_bytes, found.left_out)
    pods = any(one.pod != UNKNOWN for one in shown)
    numbers = ("sent", "received", "opened", "failed", "flows")
    columns = ("process", *(["pod"] if pods else []), *numbers)
    spare = ("flows", "opened", "failed")
    title = _title("Top talkers", summary)
    table = table_of(title, left_out, *columns, words=2 if pods else 1, spare=spare)
    for one in shown:
        table.add_row(
            _process(one),
            *([_pod(one)] if pods else []),
            *_traffic(one),
            number(one.flows),
        )
    return spaced(table)


def _title(title: str, summary: Summary) -> str:
    """Skipped calls are in no flow, unlike events that were lost later."""
    return f"{title} (minimum: calls were skipped)" if Gap.SKIPPED in summary.gaps else title


def _pod(talker: Talker) -> Text:
    if talker.pod == UNKNOWN:
        return Text("-", DIM)
    return plain(f"{talker.namespace}/{talker.pod}")


def _flows(summary: Summary) -> Group | None:
    found = summary.flows
    if not found.top:
        return None
    shown, left_out = top(found.top, found.left_out)
    columns = ("process", "peer", "", "sent", "received", "opened", "failed")
    spare = ("opened", "", "failed")
    title = _title("Largest flows", summary)
    table = table_of(title, left_out, *columns, words=3, spare=spare)
    for one in shown:
        table.add_row(
            _process(one),
            plain(one.peer),
            Text(one.proto, DIM),
            *_traffic(one),
        )
    return spaced(table)


def _retransmits(summary: Summary) -> Group | None:
    found = summary.retransmits
    segments = max(
        found.segs or 0, found.flow_segs or 0
    )  # rows may be sampled, flows may be left out
    if not segments:
        return None
    shown, left_out = top(found.top, found.left_out)
    title = fill("Retransmits: {segments:segment}", segments=segments)
    table = table_of(title, left_out, "process", "peer", "segments", words=2)
    for one in shown:
        table.add_row(_process(one), plain(one.peer), number(one.segs))
    return spaced(table)


def _sockets(summary: Summary) -> Group | None:
    """TCP sockets by state at the start and at the end; growth of bad states is red."""
    if summary.stock_start is None or summary.stock_end is None:
        return None
    first, last = summary.stock_start.states, summary.stock_end.states
    if not first and not last:
        return None
    line = Text.assemble(("TCP sockets ", HEAD), ("start -> end  ", DIM))
    for state in sorted(first.keys() | last.keys(), key=lambda name: -last.get(name, 0)):
        before, after = first.get(state, 0), last.get(state, 0)
        grew = state in ("CLOSE_WAIT", "SYN_SENT") and after > before
        line.append(f" {plain(state)} ", DIM)
        line.append(f"{before:,} -> {after:,} ", BAD if grew else "")
    return spaced(line)
