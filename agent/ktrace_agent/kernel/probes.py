# SPDX-License-Identifier: Apache-2.0
"""Assigns programs to hooks: candidates best first, chosen by feature, never by version.

The choice, and the reason for every refused candidate, go to node.json and to `ktrace doctor`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from ktrace_agent.errors import UsageError
from ktrace_agent.kernel.hooks import HOOKS, IPV6_ONLY, TARGETS, Candidate, Hook
from ktrace_agent.kernel.targets import Features
from ktrace_api.names import EventKind

HOOKS_VARIABLE = "KTRACE_HOOKS"
"""Environment variable that forces candidates, for diagnosis: `hook=candidate,...`."""
NONE = "none"
"""The candidate of a hook that must not be served."""


@dataclass(frozen=True)
class Refusal:
    """A program that cannot be used on this kernel, and the reason."""

    program: str
    reason: str


@dataclass(frozen=True)
class Choice:
    """The programs that serve a hook; empty if every candidate was refused."""

    hook: str
    programs: tuple[str, ...]
    refused: tuple[Refusal, ...] = ()
    missing: str = ""
    required: bool = field(default=False)
    forced: bool = field(default=False)

    @property
    def program(self) -> str | None:
        return " + ".join(self.programs) or None


OBJECTS = ("ktrace.bpf.o", "ktrace_basic.bpf.o")
"""The programs for kernels since v5.15, and those with what v5.10 has (agent/bpf/era.bpf.h)."""


def object_name(features: Features) -> str:
    """Return the object file for this kernel.

    bpf_task_pt_regs() is the newest helper of the first one (dd6e10fbd9fb, v5.15).
    """
    modern, basic = OBJECTS
    return modern if features.function_args("bpf_task_pt_regs") is not None else basic


GROWING_MAPS = ("listeners", "flows", "cgroups", "pods")
"""Hash maps that allocate each entry when it is added (BPF_F_NO_PREALLOC)."""


def preallocates(features: Features) -> bool:
    """Return whether the growing maps must allocate all their memory at load time.

    Before v6.1 (34dd3bad1a6f) programs of classic tracepoints must not allocate: loading them
    prints a warning, which is a panic under panic_on_warn, and PREEMPT_RT refuses them. The
    allocator of struct bpf_mem_alloc made it safe. Preallocation costs 29 MiB of kernel memory at
    the default limits: 131,072 flows of 192 bytes, 8,192 cgroups of 448, 16,384 listeners of 88.
    """
    return not features.has_struct("bpf_mem_alloc")


def forced_candidates(text: str) -> dict[str, str]:
    """Parse KTRACE_HOOKS. Raises UsageError that names the accepted hooks and candidates."""
    accepted = {hook.name: (*dict.fromkeys(one.name for one in hook.candidates), NONE)
                for hook in HOOKS}  # fmt: skip
    forced = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, candidate = part.partition("=")
        if name not in accepted:
            raise UsageError(
                f"{HOOKS_VARIABLE}: unknown hook `{name}`; the hooks are {', '.join(accepted)}"
            )
        if candidate not in accepted[name]:
            raise UsageError(
                f"{HOOKS_VARIABLE}: hook {name} has no candidate `{candidate}`;"
                f" the candidates are {', '.join(accepted[name])}"
            )
        forced[name] = candidate
    return forced


def choose(
    features: Features,
    events: Iterable[EventKind] = tuple(EventKind),
    refused: Mapping[str, str] | None = None,
    forced: Mapping[str, str] | None = None,
) -> tuple[Choice, ...]:
    """Return the best usable candidate of every hook that `events` need.

    `refused` maps programs that the kernel did not load or attach to the reason. `forced` maps
    hooks to the only candidate that may serve them.
    """
    wanted, refused, forced = frozenset(events), refused or {}, forced or {}
    found: dict[str, Choice] = {}
    served: dict[str, Candidate] = {}
    for hook in HOOKS:
        if not hook.kinds & wanted:
            continue
        only = forced.get(hook.name, "")
        absent = [name for name in hook.needs if name in found and not found[name].programs]
        if absent:
            found[hook.name] = _useless(hook, absent)
        elif hook.name in served and not only:
            found[hook.name] = Choice(hook.name, served[hook.name].programs, (), hook.missing)
        else:
            found[hook.name], candidate = _choose_one(hook, features, refused, only)
            if candidate:
                served |= dict.fromkeys(candidate.serves, candidate)
    return tuple(found.values())


def unserved(choices: Iterable[Choice]) -> tuple[Choice, ...]:
    """Return the hooks without a program, except those that only lack another hook."""
    absent = {choice.hook: choice for choice in choices if not choice.programs}
    return tuple(absent[name] for name in roots(absent))


def roots(hooks: Iterable[str]) -> tuple[str, ...]:
    """Return those of the missing `hooks` that are not missing because of another one."""
    names = tuple(hooks)
    needs = {hook.name: hook.needs for hook in HOOKS}
    return tuple(name for name in names if not set(needs.get(name, ())) & set(names))


def _useless(hook: Hook, absent: Iterable[str]) -> Choice:
    """A hook that would record nothing, although the kernel may offer its programs."""
    programs = " + ".join(hook.candidates[0].programs)
    refusal = Refusal(programs, f"useless without {', '.join(absent)}")
    return Choice(hook.name, (), (refusal,), hook.missing, hook.required)


def _choose_one(
    hook: Hook, features: Features, refused: Mapping[str, str], only: str
) -> tuple[Choice, Candidate | None]:
    refusals: list[Refusal] = []
    chosen: Candidate | None = None
    for listed in hook.candidates:
        candidate = listed
        if only and candidate.name != only:
            continue
        if not features.has_ipv6():
            needed = tuple(name for name in candidate.programs if name not in IPV6_ONLY)
            candidate = replace(candidate, programs=needed)
        reasons = [
            Refusal(program, reason)
            for program in candidate.programs
            if (reason := refused.get(program) or TARGETS[program].missing(features))
        ]
        if not reasons:
            chosen = candidate
            break
        refusals += reasons
    if only == NONE:
        refusals = [Refusal(hook.name, f"excluded by {HOOKS_VARIABLE}")]
    programs = chosen.programs if chosen else ()
    choice = Choice(
        hook.name, programs, tuple(refusals), hook.missing, hook.required, only not in ("", NONE)
    )
    return choice, chosen
