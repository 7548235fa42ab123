# SPDX-License-Identifier: Apache-2.0
"""The choice of programs: best usable candidate, every refusal with its reason."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrace_agent.errors import UsageError
from ktrace_agent.kernel.hooks import HOOKS, TARGETS, Hook
from ktrace_agent.kernel.probes import (
    NONE,
    choose,
    forced_candidates,
    object_name,
    preallocates,
    roots,
    unserved,
)
from ktrace_agent.kernel.targets import Event, Function, Kprobe, RawTracepoint
from ktrace_api.names import EventKind

TRACEPOINTS = {t.name: t.args for t in TARGETS.values() if isinstance(t, RawTracepoint)} | {
    "tcp_retransmit_skb": 3
}
FUNCTIONS = {t.name: t.args for t in TARGETS.values() if isinstance(t, Function)} | {
    t.name: t.args[-1] for t in TARGETS.values() if isinstance(t, Kprobe)
}
VISIT = "bpf_for_each_map_elem"
FUNCTIONS[VISIT] = 4
EVENTS = {t.name for t in TARGETS.values() if isinstance(t, Event)}


@dataclass
class Kernel:
    """A kernel by what it offers."""

    tracepoints: dict[str, int] = field(default_factory=lambda: dict(TRACEPOINTS))
    events: set[str] = field(default_factory=lambda: set(EVENTS))
    structs: set[str] = field(default_factory=lambda: {"bpf_mem_alloc"})
    functions: dict[str, int] = field(default_factory=lambda: dict(FUNCTIONS))
    kprobes: bool = True
    ipv6: bool = True

    def tracepoint_args(self, name: str) -> int | None:
        return self.tracepoints.get(name)

    def function_args(self, name: str) -> int | None:
        return self.functions.get(name)

    def has_ipv6(self) -> bool:
        return self.ipv6

    def has_kprobes(self) -> bool:
        return self.kprobes

    def event_id(self, name: str) -> int | None:
        return 1 if name in self.events else None

    def has_struct(self, name: str) -> bool:
        return name in self.structs


def programs(kernel: Kernel, **options: Any) -> dict[str, tuple[str, ...]]:
    return {choice.hook: choice.programs for choice in choose(kernel, **options)}


def test_a_kernel_with_everything_gets_the_first_candidates():
    assert programs(Kernel()) == {hook.name: hook.candidates[0].programs for hook in HOOKS}


def test_the_retransmit_hook_falls_back_where_the_tracepoint_tells_no_error():
    kernel = Kernel()
    kernel.tracepoints["tcp_retransmit_skb"] = 2
    (choice,) = (c for c in choose(kernel) if c.hook == "tcp_retransmit")
    assert choice.programs == ("tcp_retransmit",)
    assert [r.program for r in choice.refused] == ["tcp_retransmit_err"]
    assert choice.refused[0].reason == (
        "tracepoint tcp_retransmit_skb passes 2 arguments, 3 are needed"
    )


def test_before_the_helper_that_visits_maps_iterators_over_elements_serve():
    kernel = Kernel()
    del kernel.functions[VISIT]
    found = programs(kernel)
    assert found["inventory"] == ("prime_owners", "list_sockets", "list_pending_elem")
    assert found["udp_recv_address"][-1] == "list_held_elem"
    refused = {one.program: one.reason for c in choose(kernel) for one in c.refused}
    assert refused["list_pending"] == f"the kernel has no helper {VISIT}"


def test_a_program_that_the_kernel_did_not_load_is_refused_with_its_words():
    kernel = Kernel(functions={}, kprobes=False)
    (choice,) = (
        c for c in choose(kernel, refused={"sock_send": "unknown func"}) if c.hook == "socket_send"
    )
    assert choice.program is None
    assert choice.refused[0].reason == "unknown func"
    assert choice.missing == "UDP sends, DNS queries, bytes sent"


def test_addresses_of_datagrams_that_nothing_records_have_no_programs():
    """The system calls have events, but nothing reports a send or a receive."""
    kernel = Kernel(functions={}, kprobes=False)
    del kernel.tracepoints["sock_send_length"], kernel.tracepoints["sock_recv_length"]
    found = {choice.hook: choice for choice in choose(kernel)}
    for name, needed in (("udp_send_address", "socket_send"), ("udp_recv_address", "socket_recv")):
        assert found[name].programs == ()
        assert [one.reason for one in found[name].refused] == [f"useless without {needed}"]
    assert [choice.hook for choice in unserved(found.values())] == ["socket_send", "socket_recv"]
    assert found["connect"].programs == ("enter_connect", "exit_connect")


def test_one_direction_keeps_its_addresses():
    kernel = Kernel(functions={}, kprobes=False)
    del kernel.tracepoints["sock_send_length"]
    found = programs(kernel)
    assert found["udp_send_address"] == ()
    assert "enter_recvfrom" in found["udp_recv_address"]


def test_a_hook_that_lacks_only_itself_is_its_own_root():
    assert roots(["udp_send_address", "accept"]) == ("udp_send_address", "accept")
    assert roots(["socket_send", "udp_send_address", "unheard-of"]) == ("socket_send", "unheard-of")


def test_a_hook_comes_after_those_that_it_needs():
    names = [hook.name for hook in HOOKS]
    for place, hook in enumerate(HOOKS):
        assert set(hook.needs) <= set(names[:place])


OLD = {name: args for name, args in TRACEPOINTS.items() if not name.endswith("_length")}
"""Before v6.3."""


def chosen(kernel: Kernel, hook: str, **options: Any) -> str:
    """The candidate that serves a hook, by name."""
    found = programs(kernel, **options)[hook]
    (one,) = (c for c in next(h for h in HOOKS if h.name == hook).candidates
              if c.programs == found)  # fmt: skip
    return one.name


@pytest.mark.parametrize(("side", "socket"), [("send", "socket_send"), ("recv", "socket_recv")])
def test_without_the_tracepoints_of_sockets_functions_serve(side: str, socket: str):
    """Their programs read the peers too, so those of the system calls are not attached."""
    kernel = Kernel(tracepoints=dict(OLD))
    assert chosen(kernel, socket) == "fexit"
    assert programs(kernel)[f"udp_{side}_address"] == programs(kernel)[socket]
    refused = {f"inet_{side}": "Unknown error 524"}
    assert chosen(kernel, socket, refused=refused) == "kprobe"
    assert chosen(Kernel(), socket) == "tracepoint"


@pytest.mark.parametrize(("args", "program"), [(4, "udp_recv_begin"), (5, "udp_recv_begin"),
                                               (6, "udp_recv_begin_noblock")])  # fmt: skip
def test_flags_are_read_where_the_function_has_them(args: int, program: str):
    names = ("udp_recvmsg", "udpv6_recvmsg", "tcp_recvmsg")
    kernel = Kernel(tracepoints=dict(OLD), functions=FUNCTIONS | dict.fromkeys(names, args))
    found = programs(kernel, forced={"socket_recv": "kprobe"})["socket_recv"]
    assert program in found
    assert len(found) == 6


def test_a_function_with_other_arguments_is_refused():
    kernel = Kernel(tracepoints=dict(OLD), functions=FUNCTIONS | {"inet_recvmsg": 5}, kprobes=False)
    (choice,) = (c for c in choose(kernel) if c.hook == "socket_recv")
    assert choice.program is None
    reasons = {refusal.reason for refusal in choice.refused}
    assert "function inet_recvmsg has 5 arguments, 4 are needed" in reasons
    assert "the kernel has no kprobes (CONFIG_KPROBE_EVENTS)" in reasons


@pytest.mark.parametrize("candidate", ["fexit", "kprobe"])
def test_a_kernel_without_ipv6_does_not_need_its_functions(candidate: str):
    functions = {
        name: n for name, n in FUNCTIONS.items() if not name.startswith(("inet6", "udpv6"))
    }
    forced = {"socket_send": candidate, "socket_recv": candidate}
    found = programs(Kernel(functions=functions, ipv6=False), forced=forced)
    assert found["socket_send"]
    assert found["socket_recv"]
    assert programs(Kernel(functions=functions), forced=forced)["socket_send"] == ()


def test_a_candidate_can_be_forced():
    forced = forced_candidates("socket_send=kprobe, tcp_state=kprobe,accept=none")
    assert chosen(Kernel(), "socket_send", forced=forced) == "kprobe"
    assert chosen(Kernel(), "tcp_state", forced=forced) == "kprobe"
    (accept,) = (c for c in choose(Kernel(), forced=forced) if c.hook == "accept")
    assert accept.program is None
    assert [refusal.reason for refusal in accept.refused] == ["excluded by KTRACE_HOOKS"]
    assert not accept.forced
    kernel = Kernel(kprobes=False)
    (choice,) = (c for c in choose(kernel, forced=forced) if c.hook == "socket_send")
    assert choice.forced
    assert choice.program is None


@pytest.mark.parametrize("text", ["udp=fexit", "socket_send=fentry", "socket_send", "=", "accept="])
def test_forced_candidates_name_what_is_accepted(text: str, snapshot: Any):
    with pytest.raises(UsageError) as error:
        forced_candidates(text)
    assert str(error.value) == snapshot


def test_nothing_is_forced_by_default():
    assert forced_candidates("") == {}
    assert NONE not in {one.name for hook in HOOKS for one in hook.candidates}


def test_only_hooks_of_the_wanted_events_are_chosen():
    assert set(programs(Kernel(), events=[EventKind.UDP])) == {
        "socket_send",
        "socket_recv",
        "udp_send_address",
        "udp_recv_address",
    }
    assert "tcp_retransmit" not in programs(Kernel(), events=[EventKind.TCP, EventKind.CONNECT])


@pytest.mark.parametrize("kind", [EventKind.TCP, EventKind.CONNECT, EventKind.RETRANSMIT])
def test_what_flows_count_is_served_whatever_rows_are_wanted(kind: EventKind):
    assert {"connect", "accept", "socket_send", "socket_recv"} <= set(
        programs(Kernel(), events=[kind])
    )


def test_the_object_is_chosen_by_the_newest_helper_that_it_needs():
    assert object_name(Kernel(functions={"bpf_task_pt_regs": 5})) == "ktrace.bpf.o"
    assert object_name(Kernel(functions={})) == "ktrace_basic.bpf.o"


def test_maps_take_their_memory_at_once_where_programs_may_not_allocate():
    assert not preallocates(Kernel())
    assert preallocates(Kernel(structs={"bpf_htab"}))


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_every_program_of_a_hook_has_a_target(hook: Hook):
    assert {name for one in hook.candidates for name in one.programs} <= set(TARGETS)
    assert {name for one in hook.candidates for name in one.serves} <= {h.name for h in HOOKS}


@given(
    st.dictionaries(st.sampled_from(sorted(TRACEPOINTS)), st.integers(0, 4)),
    st.sets(st.sampled_from(sorted(EVENTS))),
    st.dictionaries(st.sampled_from(sorted(FUNCTIONS)), st.integers(0, 6)),
    st.dictionaries(st.sampled_from(sorted(TARGETS)), st.just("no")),
    st.sets(st.sampled_from(list(EventKind)), min_size=1),
)
def test_what_is_chosen_is_usable_and_what_is_not_has_a_reason(
    tracepoints: dict[str, int],
    events: set[str],
    functions: dict[str, int],
    refused: dict[str, str],
    kinds: set[EventKind],
):
    kernel = Kernel(tracepoints, events, functions=functions)
    for choice in choose(kernel, kinds, refused):
        for name in choice.programs:
            assert name not in refused
            assert not TARGETS[name].missing(kernel)
        assert choice.programs or choice.refused
        assert all(refusal.reason for refusal in choice.refused)
