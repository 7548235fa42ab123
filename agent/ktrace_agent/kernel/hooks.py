# SPDX-License-Identifier: Apache-2.0
"""The BPF programs: what each attaches to, and which of them serve a hook.

A hook is a fact that rows need ("UDP sends", "the errno of connect"). It has one or more
candidates, best first. A candidate is a set of programs that must all be usable.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ktrace_agent.kernel.targets import (
    Event,
    Function,
    Iterator,
    Kprobe,
    RawTracepoint,
    Target,
)
from ktrace_api.names import EventKind, RowType


@dataclass(frozen=True)
class Candidate:
    """Programs that serve a hook together, in the order in which they are attached."""

    name: str
    programs: tuple[str, ...]
    serves: tuple[str, ...] = ()
    """Other hooks that need no programs of their own beside this candidate."""


@dataclass(frozen=True)
class Hook:
    """One fact, the programs that can record it, and what rows lack without it."""

    name: str
    missing: str
    candidates: tuple[Candidate, ...]
    kinds: frozenset[EventKind]
    required: bool = False
    needs: tuple[str, ...] = ()
    """Hooks without which this one records nothing; its programs are then not attached."""


def _enter_exit(*calls: str, row: RowType | None = None) -> dict[str, Target]:
    return {
        f"{side}_{call}": Event(f"syscalls/sys_{side}_{call}", row)
        for call in calls
        for side in ("enter", "exit")
    }


def _copies(name: str, target: Target) -> dict[str, Target]:
    """Two copies of a program and the one that counts their calls (agent/bpf/copies.bpf.h)."""
    return dict.fromkeys((f"{name}_count", name, f"{name}_nested"), target)


TARGETS: Mapping[str, Target] = {
    "tcp_state": RawTracepoint("inet_sock_set_state", 3, RowType.TCP_STATE),
    "tcp_state_nested": RawTracepoint("inet_sock_set_state", 3),
    "tcp_destroy": RawTracepoint("tcp_destroy_sock", 1),
    "tcp_destroy_nested": RawTracepoint("tcp_destroy_sock", 1),
    "tcp_set_state": Kprobe("tcp_set_state", (2,), RowType.TCP_STATE),
    "listen_begin": Kprobe("inet_csk_listen_start", (1, 2)),
    "listen_end": Kprobe("inet_csk_listen_start", (1, 2), RowType.TCP_STATE),
    "child_born": Kprobe("inet_csk_clone_lock", (3,), RowType.TCP_STATE),
    "sock_destroyed": Kprobe("tcp_v4_destroy_sock", (1,)),
    "connect_icmp": RawTracepoint("inet_sk_error_report", 1),
    "error_report": Function("sock_def_error_report", 1),
    "error_probed": Kprobe("sock_def_error_report", (1,)),
    **_copies("sock_send", RawTracepoint("sock_send_length", 3)),
    **_copies("sock_recv", RawTracepoint("sock_recv_length", 3)),
    "inet_send_begin": Function("inet_sendmsg", 3),
    "inet6_send_begin": Function("inet6_sendmsg", 3),
    **_copies("inet_send", Function("inet_sendmsg", 3)),
    **_copies("inet6_send", Function("inet6_sendmsg", 3)),
    **_copies("inet_recv", Function("inet_recvmsg", 4)),
    **_copies("inet6_recv", Function("inet6_recvmsg", 4)),
    "udp_send_begin": Kprobe("udp_sendmsg", (3,), RowType.UDP_SEND),
    "udp_send_end": Kprobe("udp_sendmsg", (3,)),
    "udpv6_send_begin": Kprobe("udpv6_sendmsg", (3,), RowType.UDP_SEND),
    "udpv6_send_end": Kprobe("udpv6_sendmsg", (3,)),
    "tcp_send_begin": Kprobe("tcp_sendmsg", (3,)),
    "tcp_send_end": Kprobe("tcp_sendmsg", (3,)),
    "udp_recv_begin": Kprobe("udp_recvmsg", (4, 5), RowType.UDP_RECV),
    "udp_recv_begin_noblock": Kprobe("udp_recvmsg", (6,), RowType.UDP_RECV),
    "udp_recv_end": Kprobe("udp_recvmsg", (4, 5, 6)),
    "udpv6_recv_begin": Kprobe("udpv6_recvmsg", (4, 5), RowType.UDP_RECV),
    "udpv6_recv_begin_noblock": Kprobe("udpv6_recvmsg", (6,), RowType.UDP_RECV),
    "udpv6_recv_end": Kprobe("udpv6_recvmsg", (4, 5, 6)),
    "tcp_recv_begin": Kprobe("tcp_recvmsg", (4, 5)),
    "tcp_recv_begin_noblock": Kprobe("tcp_recvmsg", (6,)),
    "tcp_recv_end": Kprobe("tcp_recvmsg", (4, 5, 6)),
    "tcp_retransmit_err": RawTracepoint("tcp_retransmit_skb", 3, RowType.TCP_RETRANSMIT),
    "tcp_retransmit": RawTracepoint("tcp_retransmit_skb", 2, RowType.TCP_RETRANSMIT),
    "tcp_retransmit_synack": RawTracepoint("tcp_retransmit_synack", 2, RowType.TCP_RETRANSMIT),
    "exit_accept": Event("syscalls/sys_exit_accept"),
    "exit_accept4": Event("syscalls/sys_exit_accept4"),
    **_enter_exit("connect", row=RowType.CONNECT),
    **_enter_exit("sendto", "sendmsg", "sendmmsg", "recvfrom", "recvmsg", "recvmmsg"),
    "prime_owners": Iterator("task_file"),
    "list_sockets": Iterator("tcp"),
    "list_pending": Iterator("bpf_map", helper="bpf_for_each_map_elem"),
    "list_held": Iterator("bpf_map", helper="bpf_for_each_map_elem"),
    "list_pending_elem": Iterator("bpf_map_elem", "socks"),
    "list_held_elem": Iterator("bpf_map_elem", "calls"),
}

_TCP = frozenset({EventKind.TCP, EventKind.CONNECT, EventKind.RETRANSMIT})
_UDP = frozenset({EventKind.UDP})


IPV6_ONLY = frozenset(
    name
    for name, target in TARGETS.items()
    if isinstance(target, Function | Kprobe) and target.name.startswith(("inet6_", "udpv6_"))
)
"""Programs that a kernel without IPv6 does not need."""


LEFT = ("list_pending", "list_pending_elem", "list_held", "list_held_elem")
"""Iterators that write to the ring what is left once the programs are detached."""

_RECEIVES = tuple(_enter_exit("recvfrom", "recvmsg", "recvmmsg"))


def _tracepoint(*programs: str) -> Candidate:
    return Candidate("tracepoint", programs)


def _inet(*functions: str, begin: tuple[str, ...], serves: str) -> Candidate:
    """The kernel calls the programs of one function in reverse order: that which counts is last."""
    copies = (f"{name}{part}" for name in functions for part in ("_nested", "", "_count"))
    return Candidate("fexit", (*begin, *copies), (serves,))


def _kprobe(serves: str, *programs: str) -> Candidate:
    return Candidate("kprobe", programs, (serves,))


HOOKS: tuple[Hook, ...] = (
    Hook(
        "tcp_state",
        "TCP state changes, outcomes of connection attempts and the owners of TCP sockets",
        (
            _tracepoint("tcp_state", "tcp_state_nested", "tcp_destroy", "tcp_destroy_nested"),
            Candidate(
                "kprobe",
                ("tcp_set_state", "listen_begin", "listen_end", "child_born", "sock_destroyed"),
            ),
        ),
        _TCP,
        required=True,
    ),
    Hook(
        "socket_send",
        "UDP sends, DNS queries, bytes sent",
        (
            _tracepoint("sock_send_count", "sock_send", "sock_send_nested"),
            _inet(
                "inet_send",
                "inet6_send",
                begin=("inet_send_begin", "inet6_send_begin"),
                serves="udp_send_address",
            ),
            _kprobe(
                "udp_send_address",
                *(
                    f"{name}_send_{side}"
                    for name in ("udp", "udpv6", "tcp")
                    for side in ("end", "begin")
                ),
            ),
        ),
        _TCP | _UDP,
    ),
    Hook(
        "socket_recv",
        "UDP receives, DNS answers, bytes received",
        (
            _tracepoint("sock_recv_count", "sock_recv", "sock_recv_nested"),
            _inet("inet_recv", "inet6_recv", begin=(), serves="udp_recv_address"),
            *(
                _kprobe(
                    "udp_recv_address",
                    *(
                        f"{name}_recv_{side}"
                        for name in ("udp", "udpv6", "tcp")
                        for side in ("end", begin)
                    ),
                )
                for begin in ("begin", "begin_noblock")
            ),
        ),
        _TCP | _UDP,
    ),
    Hook(
        "udp_send_address",
        "peers of sends on unconnected UDP sockets",
        (_tracepoint(*_enter_exit("sendto", "sendmsg", "sendmmsg")),),
        _UDP,
        needs=("socket_send",),
    ),
    Hook(
        "udp_recv_address",
        "peers of receives on unconnected UDP sockets",
        (
            _tracepoint(*_RECEIVES, "list_held"),
            Candidate("elements", (*_RECEIVES, "list_held_elem")),
        ),
        _UDP,
        needs=("socket_recv",),
    ),
    Hook(
        "connect",
        "connection attempts that fail at once or are denied, and the time before the SYN",
        (_tracepoint(*_enter_exit("connect")),),
        _TCP,
    ),
    Hook(
        "connect_icmp",
        "errnos of connection attempts that an ICMP message ended while no process was waiting",
        (
            _tracepoint("connect_icmp"),
            Candidate("fentry", ("error_report",)),
            Candidate("kprobe", ("error_probed",)),
        ),
        frozenset({EventKind.CONNECT}),
    ),
    Hook(
        "accept",
        "which process accepted a connection",
        (_tracepoint("exit_accept", "exit_accept4"),),
        _TCP,
    ),
    Hook(
        "tcp_retransmit",
        "retransmitted segments",
        (_tracepoint("tcp_retransmit_err"), Candidate("tracepoint2", ("tcp_retransmit",))),
        frozenset({EventKind.RETRANSMIT}),
    ),
    Hook(
        "tcp_retransmit_synack",
        "retransmitted SYN-ACKs",
        (_tracepoint("tcp_retransmit_synack"),),
        frozenset({EventKind.RETRANSMIT}),
    ),
    Hook(
        "inventory",
        "owners of sockets that existed before, the socket inventory, pending connection attempts",
        (
            Candidate("iterator", ("prime_owners", "list_sockets", "list_pending")),
            Candidate("elements", ("prime_owners", "list_sockets", "list_pending_elem")),
        ),
        _TCP,
    ),
)
