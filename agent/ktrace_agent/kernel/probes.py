# SPDX-License-Identifier: Apache-2.0
"""Assigns programs to hooks: candidates best first, chosen by feature, never by version.

A hook is a fact that rows need ("UDP sends", "the errno of connect"). It has one or more
candidates. A candidate is a set of programs that must all be usable. The choice, and the reason
for every refused candidate, go to node.json and to `ktrace doctor`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ktrace_api.names import EventKind


class Features(Protocol):
    """What the running kernel offers."""

    def tracepoint_args(self, name: str) -> int | None:
        """Return the number of arguments of a raw tracepoint; None if it does not exist."""

    def event_id(self, name: str) -> int | None:
        """Return the id of a classic tracepoint `group/event`; None if it does not exist."""

    def has_struct(self, name: str) -> bool:
        """Return whether the kernel's BTF contains `struct name`."""


@dataclass(frozen=True)
class RawTracepoint:
    """A program of type tp_btf. The tracepoint needs at least `args` arguments in BTF."""

    name: str
    args: int

    def missing(self, features: Features) -> str:
        found = features.tracepoint_args(self.name)
        if found is None:
            return f"the kernel's BTF does not contain tracepoint {self.name}"
        if found < self.args:
            return f"tracepoint {self.name} passes {found} arguments, {self.args} are needed"
        return ""


@dataclass(frozen=True)
class Event:
    """A program on a classic tracepoint, by its id in tracefs."""

    name: str

    def missing(self, features: Features) -> str:
        if features.event_id(self.name) is None:
            return f"tracefs does not contain event {self.name}"
        return ""


@dataclass(frozen=True)
class Iterator:
    """An iterator program. Only loading it shows whether the kernel supports it."""

    name: str
    over: str = ""
    """The map whose elements it visits; empty for other iterators."""

    def missing(self, features: Features) -> str:  # noqa: ARG002  # interface of all targets
        return ""


Target = RawTracepoint | Event | Iterator


@dataclass(frozen=True)
class Hook:
    """One fact, the programs that can record it, and what rows lack without it."""

    name: str
    missing: str
    candidates: tuple[tuple[str, ...], ...]
    kinds: frozenset[EventKind]
    required: bool = False
    needs: tuple[str, ...] = ()
    """Hooks without which this one records nothing; its programs are then not attached."""


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

    @property
    def program(self) -> str | None:
        return " + ".join(self.programs) or None


def _enter_exit(*calls: str) -> dict[str, Target]:
    return {
        f"{side}_{call}": Event(f"syscalls/sys_{side}_{call}")
        for call in calls
        for side in ("enter", "exit")
    }


TARGETS: Mapping[str, Target] = {
    "tcp_state": RawTracepoint("inet_sock_set_state", 3),
    "tcp_state_nested": RawTracepoint("inet_sock_set_state", 3),
    "tcp_destroy": RawTracepoint("tcp_destroy_sock", 1),
    "tcp_destroy_nested": RawTracepoint("tcp_destroy_sock", 1),
    "connect_icmp": RawTracepoint("inet_sk_error_report", 1),
    "sock_send": RawTracepoint("sock_send_length", 3),
    "sock_recv": RawTracepoint("sock_recv_length", 3),
    "tcp_retransmit_err": RawTracepoint("tcp_retransmit_skb", 3),
    "tcp_retransmit": RawTracepoint("tcp_retransmit_skb", 2),
    "tcp_retransmit_synack": RawTracepoint("tcp_retransmit_synack", 2),
    "exit_accept": Event("syscalls/sys_exit_accept"),
    "exit_accept4": Event("syscalls/sys_exit_accept4"),
    **_enter_exit("connect", "sendto", "sendmsg", "sendmmsg", "recvfrom", "recvmsg", "recvmmsg"),
    "prime_owners": Iterator("task_file"),
    "list_sockets": Iterator("tcp"),
    "list_pending": Iterator("bpf_map_elem", "socks"),
    "list_held": Iterator("bpf_map_elem", "calls"),
}

_TCP = frozenset({EventKind.TCP, EventKind.CONNECT, EventKind.RETRANSMIT})
_UDP = frozenset({EventKind.UDP})

HOOKS: tuple[Hook, ...] = (
    Hook(
        "tcp_state",
        "TCP state changes, outcomes of connection attempts and the owners of TCP sockets",
        (("tcp_state", "tcp_state_nested", "tcp_destroy", "tcp_destroy_nested"),),
        _TCP,
        required=True,
    ),
    Hook("socket_send", "UDP sends, DNS queries, bytes sent", (("sock_send",),), _TCP | _UDP),
    Hook(
        "socket_recv", "UDP receives, DNS answers, bytes received", (("sock_recv",),), _TCP | _UDP
    ),
    Hook(
        "udp_send_address",
        "peers of sends on unconnected UDP sockets",
        (tuple(_enter_exit("sendto", "sendmsg", "sendmmsg")),),
        _UDP,
        needs=("socket_send",),
    ),
    Hook(
        "udp_recv_address",
        "peers of receives on unconnected UDP sockets",
        ((*_enter_exit("recvfrom", "recvmsg", "recvmmsg"), "list_held"),),
        _UDP,
        needs=("socket_recv",),
    ),
    Hook(
        "connect",
        "connection attempts that fail at once or are denied, and the time before the SYN",
        (tuple(_enter_exit("connect")),),
        _TCP,
    ),
    Hook(
        "connect_icmp",
        "errnos of connection attempts that an ICMP message ended while no process was waiting",
        (("connect_icmp",),),
        frozenset({EventKind.CONNECT}),
    ),
    Hook(
        "accept",
        "which process accepted a connection",
        (("exit_accept", "exit_accept4"),),
        _TCP,
    ),
    Hook(
        "tcp_retransmit",
        "retransmitted segments",
        (("tcp_retransmit_err",), ("tcp_retransmit",)),
        frozenset({EventKind.RETRANSMIT}),
    ),
    Hook(
        "tcp_retransmit_synack",
        "retransmitted SYN-ACKs",
        (("tcp_retransmit_synack",),),
        frozenset({EventKind.RETRANSMIT}),
    ),
    Hook(
        "inventory",
        "owners of sockets that existed before, the socket inventory, pending connection attempts",
        (("prime_owners", "list_sockets", "list_pending"),),
        _TCP,
    ),
)


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


def choose(
    features: Features,
    events: Iterable[EventKind] = tuple(EventKind),
    refused: Mapping[str, str] | None = None,
) -> tuple[Choice, ...]:
    """Return the best usable candidate of every hook that `events` need.

    `refused` maps programs that the kernel did not load to the reason.
    """
    wanted, refused = frozenset(events), refused or {}
    found: dict[str, Choice] = {}
    for hook in HOOKS:
        if hook.kinds & wanted:
            absent = [name for name in hook.needs if name in found and not found[name].programs]
            found[hook.name] = (
                _useless(hook, absent) if absent else _choose_one(hook, features, refused)
            )
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
    refusal = Refusal(" + ".join(hook.candidates[0]), f"useless without {', '.join(absent)}")
    return Choice(hook.name, (), (refusal,), hook.missing, hook.required)


def _choose_one(hook: Hook, features: Features, refused: Mapping[str, str]) -> Choice:
    refusals: list[Refusal] = []
    for programs in hook.candidates:
        reasons = [
            Refusal(program, reason)
            for program in programs
            if (reason := refused.get(program) or TARGETS[program].missing(features))
        ]
        if not reasons:
            return Choice(hook.name, programs, tuple(refusals), hook.missing, hook.required)
        refusals += reasons
    return Choice(hook.name, (), tuple(refusals), hook.missing, hook.required)
