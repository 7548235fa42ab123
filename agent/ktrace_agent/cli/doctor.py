# SPDX-License-Identifier: Apache-2.0
"""`ktrace doctor`: what works on this kernel for this user, and how to fix the rest."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ktrace_agent.errors import KtraceError
from ktrace_agent.kernel import preflight
from ktrace_agent.kernel.preflight import Lack, Platform
from ktrace_agent.kernel.probes import Choice, unserved
from ktrace_api.capture import KIB, MIB, CaptureConfig
from ktrace_api.names import BackendName

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Examination:
    """Result of an examination; `error` is the error of a capture, None if it can run."""

    platform: Platform
    choices: tuple[Choice, ...]
    config: CaptureConfig
    error: KtraceError | None


def _survey(config: CaptureConfig, backend: BackendName) -> tuple[Choice, ...]:
    from ktrace_agent.kernel.collector import survey

    return survey(config, backend)


def examine(
    inspect: Callable[[], Platform] = preflight.inspect,
    survey: Callable[[CaptureConfig, BackendName], tuple[Choice, ...]] = _survey,
) -> Examination:
    """Inspect the node; load and unload every eBPF program once. Nothing is attached."""
    config = CaptureConfig(node="doctor")
    platform = inspect()
    try:
        preflight.require(platform)
        return Examination(platform, survey(config, platform.backend or "core"), config, None)
    except KtraceError as error:
        return Examination(platform, (), config, error)


def document(found: Examination) -> dict[str, Any]:
    """The examination as a JSON document."""
    platform = asdict(found.platform) | {"capabilities": sorted(found.platform.capabilities)}
    error = found.error and {"reason": str(found.error.reason), "message": str(found.error)}
    return {
        "ready": found.error is None,
        "error": error,
        "platform": platform,
        "hooks": [
            {
                "hook": choice.hook,
                "chosen": choice.program,
                "required": choice.required,
                "records": choice.missing,
                "absent": "" if choice.program else choice.missing,
                "refused": [asdict(refusal) for refusal in choice.refused],
            }
            for choice in found.choices
        ],
        "sizes": {
            "ring_bytes": found.config.ring_bytes,
            "max_sockets": found.config.max_sockets,
            "max_flows": found.config.max_flows,
        },
    }


def show(found: Examination) -> None:
    """Print the examination to standard output."""
    from ktrace_agent.view import console

    console.write(render(found))


def render(found: Examination) -> "Group":
    """The examination as renderables: node, hooks, what to do, verdict."""
    from rich.console import Group, RenderableType
    from rich.text import Text

    from ktrace_agent.view.style import plain

    parts: list[RenderableType] = [Group("", _node(found))]
    if found.choices:
        parts.append(Group("", _hooks(found.choices)))
    if found.platform.missing:
        parts.append(Text("\nWhat to do", "bold"))
    for missing in found.platform.missing:
        blocking = missing.what in preflight.BLOCKING
        parts.append(Text.assemble(("  ! ", "bold red" if blocking else "yellow"), missing.why))
        parts.append(Text(f"    {missing.next_step}", "dim"))
    absent = unserved(found.choices)
    if found.error is not None:
        verdict = Text.assemble(("Not ready: ", "bold red"), plain(found.error))
    elif absent:
        features = "; ".join(choice.missing for choice in absent)
        verdict = Text.assemble(("Ready, but cannot record: ", "bold yellow"), features)
    else:
        verdict = Text("Ready: every feature is available.", "bold green")
    parts.append(Group("", verdict))
    return Group(*parts)


def _node(found: Examination) -> "Table":
    from rich.table import Table

    from ktrace_agent.view.style import plain

    one = found.platform
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=2, justify="right")
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    controllers = ", ".join(one.cgroup.v1_controllers)
    tracefs = {"private": "not mounted; ktrace mounts it privately", "-": "not available"}
    rows: tuple[tuple[str, str, tuple[Lack, ...]], ...] = (
        ("kernel", f"{one.release} {one.machine}", (Lack.CLOCK,)),
        ("privileges", _privileges(one), (Lack.BPF_PERMISSION, Lack.FILES)),
        ("BTF", "available" if one.btf else "missing", (Lack.BTF,)),
        ("backend", one.backend or "none", (Lack.BCC,)),
        ("libbpf", one.libbpf, (Lack.LIBBPF,)),
        ("tracefs", tracefs.get(one.tracefs, one.tracefs), (Lack.TRACEFS,)),
        (
            "cgroup",
            one.cgroup.version + (f" (v1: {controllers})" if controllers else ""),
            (Lack.CGROUP,),
        ),
        (
            "processes",
            "some are not visible" if one.lacks(Lack.OTHER_PROCESSES) else "host PID namespace",
            (Lack.OTHER_PROCESSES, Lack.NAMESPACES),
        ),
        ("lockdown", _reported(one.lockdown), (Lack.LOCKDOWN,)),
        ("unprivileged BPF", _reported(one.unprivileged_bpf), ()),
        ("ring buffer", f"{found.config.ring_bytes // MIB} MiB (--ring-bytes)", ()),
        ("maps", _maps(found.config), ()),
    )
    for name, value, lacks in rows:
        lacking = [lack for lack in lacks if one.lacks(lack)]
        grid.add_row(_mark(lacking), name, plain(value))
    return grid


def _privileges(one: Platform) -> str:
    """User id, capabilities that ktrace uses, and those that eBPF programs need."""
    held = one.capabilities
    needed = set() if "CAP_SYS_ADMIN" in held else {"CAP_BPF", "CAP_PERFMON"} - held
    text = ", ".join((f"uid {one.euid}", *sorted(held)))
    return f"{text}; missing {', '.join(sorted(needed))}" if needed else text


def _reported(value: str) -> str:
    return "not reported" if value == "-" else value


def _maps(config: CaptureConfig) -> str:
    return (
        f"{config.max_sockets // KIB} Ki sockets (--max-sockets),"
        f" {config.max_flows // KIB} Ki flows (--max-flows)"
    )


def _mark(lacking: list[Lack]) -> Any:
    from rich.text import Text

    if any(lack in preflight.BLOCKING for lack in lacking):
        return Text("x", "bold red")
    return Text("!", "bold yellow") if lacking else Text("ok", "green")


def _hooks(choices: tuple[Choice, ...]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    from ktrace_agent.view.style import plain

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", width=2, justify="right")
    table.add_column("hook", no_wrap=True, style="bold")
    table.add_column("what it records, and the eBPF programs in use", overflow="fold")
    for choice in choices:
        text = Text(choice.missing if choice.program else f"missing: {choice.missing}")
        if choice.program:
            text.append(f"\n{choice.program}", "dim")
        for refusal in choice.refused:
            text.append(f"\nnot used: {plain(refusal.program)} ({plain(refusal.reason)})", "dim")
        mark = Text("ok", "green") if choice.program else Text("!", "bold yellow")
        table.add_row(mark, choice.hook, text)
    return table
