# SPDX-License-Identifier: Apache-2.0
"""`ktrace doctor`: what this kernel and this user can do, and what to do about the rest."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ktrace_agent.errors import KtraceError
from ktrace_agent.kernel import preflight
from ktrace_agent.kernel.preflight import Lack, Platform
from ktrace_agent.kernel.probes import Choice
from ktrace_api.capture import KIB, MIB, CaptureConfig

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found; `error` is what a capture would end with, None where it can run."""

    platform: Platform
    choices: tuple[Choice, ...]
    config: CaptureConfig
    error: KtraceError | None


def _survey(config: CaptureConfig) -> tuple[Choice, ...]:
    from ktrace_agent.kernel.collector import survey

    return survey(config)


def examine(
    inspect: Callable[[], Platform] = preflight.inspect,
    survey: Callable[[CaptureConfig], tuple[Choice, ...]] = _survey,
) -> Examination:
    """Look at the node, load every program once and unload it again; nothing is attached."""
    config = CaptureConfig(node="doctor")
    platform = inspect()
    try:
        preflight.require(platform)
        return Examination(platform, survey(config), config, None)
    except KtraceError as error:
        return Examination(platform, (), config, error)


def document(found: Examination) -> dict[str, Any]:
    """The whole examination for programs."""
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
    """The examination for people, on standard output."""
    from ktrace_agent.view.console import tell

    tell(render(found))


def render(found: Examination) -> "Group":
    """The examination as renderables: the node, the hooks, what to do, the verdict."""
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
    absent = [choice for choice in found.choices if not choice.program]
    if found.error is not None:
        verdict = Text.assemble(("A capture cannot run here: ", "bold red"), plain(found.error))
    elif absent:
        facts = "; ".join(choice.missing for choice in absent)
        verdict = Text.assemble(("A capture can run here, without: ", "bold yellow"), facts)
    else:
        verdict = Text("A capture can run here, with every fact.", "bold green")
    parts.append(Group("", verdict))
    return Group(*parts)


def _node(found: Examination) -> "Table":
    from rich.table import Table

    from ktrace_agent.view.style import plain

    one = found.platform
    rights = ", ".join(sorted(one.capabilities)) or "none of those that matter"
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=2, justify="right")
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    controllers = ", ".join(one.cgroup.v1_controllers)
    tracefs = {"private": "not mounted; a private mount works", "-": "not available"}
    rows: tuple[tuple[str, str, tuple[Lack, ...]], ...] = (
        ("kernel", f"{one.release} {one.machine}", (Lack.CLOCK,)),
        ("privileges", f"uid {one.euid}, {rights}", (Lack.BPF_PERMISSION, Lack.FILES)),
        ("BTF", "there" if one.btf else "missing", (Lack.BTF,)),
        ("libbpf", one.libbpf, (Lack.LIBBPF,)),
        ("tracefs", tracefs.get(one.tracefs, one.tracefs), (Lack.TRACEFS,)),
        (
            "cgroup",
            one.cgroup.version + (f" (v1: {controllers})" if controllers else ""),
            (Lack.CGROUP,),
        ),
        (
            "processes",
            "those of the host" if not one.lacks(Lack.OTHER_PROCESSES) else "not all are seen",
            (Lack.OTHER_PROCESSES, Lack.NAMESPACES),
        ),
        ("lockdown", _said(one.lockdown), (Lack.LOCKDOWN,)),
        ("unprivileged BPF", _said(one.unprivileged_bpf), ()),
        ("ring buffer", f"{found.config.ring_bytes // MIB} MiB (--ring-bytes)", ()),
        ("maps", _maps(found.config), ()),
    )
    for name, value, lacks in rows:
        lacking = [lack for lack in lacks if one.lacks(lack)]
        grid.add_row(_mark(lacking), name, plain(value))
    return grid


def _said(value: str) -> str:
    return "the kernel does not say" if value == "-" else value


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
    table.add_column("programs, and why others were refused", overflow="fold")
    for choice in choices:
        text = Text(choice.program or f"none: rows lack {choice.missing}")
        for refusal in choice.refused:
            text.append(f"\nnot {plain(refusal.program)}: {plain(refusal.reason)}", "dim")
        mark = Text("ok", "green") if choice.program else Text("!", "bold yellow")
        table.add_row(mark, choice.hook, text)
    return table
