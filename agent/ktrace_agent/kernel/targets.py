# SPDX-License-Identifier: Apache-2.0
"""What a BPF program attaches to: one class per attach type.

Each says whether the running kernel offers it (missing), attaches a loaded program (attach), and
counts the calls for which the kernel did not run the program (misses).
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from ktrace_agent.errors import AgentError
from ktrace_agent.kernel.bpf_object import Link, Object, Program
from ktrace_api.names import RowType


class Features(Protocol):
    """What the running kernel offers."""

    def tracepoint_args(self, name: str) -> int | None:
        """Return the number of arguments of a raw tracepoint; None if it does not exist."""

    def function_args(self, name: str) -> int | None:
        """Return the number of arguments of a kernel function; None if BTF does not contain it."""

    def event_id(self, name: str) -> int | None:
        """Return the id of a classic tracepoint `group/event`; None if it does not exist."""

    def has_struct(self, name: str) -> bool:
        """Return whether the kernel's BTF contains `struct name`."""

    def has_ipv6(self) -> bool:
        """Return whether the kernel can have IPv6 sockets."""

    def has_kprobes(self) -> bool:
        """Return whether the kernel was built with kprobes (CONFIG_KPROBE_EVENTS)."""


class Target(Protocol):
    """One attach type."""

    proven_by_load: ClassVar[bool]
    """Whether a program that loads can also be attached."""

    @property
    def row(self) -> RowType | None:
        """The rows that a skipped run of the program costs; None if other programs account."""

    def missing(self, features: Features) -> str:
        """Return why this kernel does not offer the target; empty if it does."""

    def attach(self, program: Program, bpf: Object, features: Features) -> Link:
        """Attach a loaded program. Raises BpfError."""

    def misses(self, program: Program) -> int:
        """Return how often the kernel did not run the attached program."""


@dataclass(frozen=True)
class _BySection:
    """Attached by the section of the program, which names the target."""

    def attach(self, program: Program, bpf: Object, features: Features) -> Link:  # noqa: ARG002
        return program.attach()

    def misses(self, program: Program) -> int:
        return program.recursion_misses()


@dataclass(frozen=True)
class RawTracepoint(_BySection):
    """A program of type tp_btf. The tracepoint needs at least `args` arguments in BTF."""

    name: str
    args: int
    row: RowType | None = None
    proven_by_load: ClassVar[bool] = True

    def missing(self, features: Features) -> str:
        found = features.tracepoint_args(self.name)
        if found is None:
            return f"the kernel's BTF does not contain tracepoint {self.name}"
        if found < self.args:
            return f"tracepoint {self.name} passes {found} arguments, {self.args} are needed"
        return ""


@dataclass(frozen=True)
class Function(_BySection):
    """A program at the entry or the return of a kernel function, by trampoline (fentry, fexit).

    Only attaching it shows whether the architecture has trampolines: arm64 before v6.4 loads the
    program and refuses the attachment (ENOTSUPP).
    """

    name: str
    args: int
    row: RowType | None = None
    proven_by_load: ClassVar[bool] = False

    def missing(self, features: Features) -> str:
        return _function_missing(features, self.name, (self.args,))


@dataclass(frozen=True)
class Kprobe(_BySection):
    """A program at the entry or the return of a kernel function, by kprobe or kretprobe."""

    name: str
    args: tuple[int, ...]
    """The numbers of arguments that the program can read."""
    row: RowType | None = None
    proven_by_load: ClassVar[bool] = False

    def missing(self, features: Features) -> str:
        if not features.has_kprobes():
            return "the kernel has no kprobes (CONFIG_KPROBE_EVENTS)"
        return _function_missing(features, self.name, self.args)


@dataclass(frozen=True)
class Event:
    """A program on a classic tracepoint, by its id in tracefs."""

    name: str
    row: RowType | None = None
    proven_by_load: ClassVar[bool] = True

    def missing(self, features: Features) -> str:
        if features.event_id(self.name) is None:
            return f"tracefs does not contain event {self.name}"
        return ""

    def attach(self, program: Program, bpf: Object, features: Features) -> Link:  # noqa: ARG002
        event = features.event_id(self.name)
        if event is None:
            raise AgentError(f"event {self.name} disappeared while attaching")
        return program.attach_tracepoint(event)

    def misses(self, program: Program) -> int:
        return program.recursion_misses()


@dataclass(frozen=True)
class Iterator:
    """An iterator program. Its helper apart, only loading it shows whether the kernel has it."""

    name: str
    over: str = ""
    """The map whose elements it visits; empty for other iterators."""
    helper: str = ""
    """A helper function that not every kernel with the iterator has."""
    row: RowType | None = None
    proven_by_load: ClassVar[bool] = True

    def missing(self, features: Features) -> str:
        if self.helper and features.function_args(self.helper) is None:
            return f"the kernel has no helper {self.helper}"
        return ""

    def attach(self, program: Program, bpf: Object, features: Features) -> Link:  # noqa: ARG002
        return program.attach_iter(bpf.map(self.over) if self.over else None)

    def misses(self, program: Program) -> int:  # noqa: ARG002  # iterators run on demand
        return 0


def _function_missing(features: Features, name: str, accepted: tuple[int, ...]) -> str:
    found = features.function_args(name)
    if found is None:
        return f"the kernel's BTF does not contain function {name}"
    if found not in accepted:
        wanted = " or ".join(map(str, accepted))
        return f"function {name} has {found} arguments, {wanted} are needed"
    return ""
