# SPDX-License-Identifier: Apache-2.0
"""The object on this kernel: every program loads, knobs and maps arrive, nothing stays."""

import pytest

from ktrace_agent.errors import UnsupportedKernel
from ktrace_agent.kernel.bpf_map import BPF_F_NO_PREALLOC
from ktrace_agent.kernel.bpf_object import Object
from ktrace_agent.kernel.built_files import object_path
from ktrace_agent.kernel.collector import Collector, KernelConfig
from ktrace_agent.kernel.hooks import TARGETS
from ktrace_agent.kernel.kernel_types import KernelTypes
from ktrace_agent.kernel.libbpf import BpfError
from ktrace_agent.kernel.probes import GROWING_MAPS, OBJECTS
from ktrace_agent.kernel.recording import ROW_TYPES
from ktrace_agent.kernel.targets import Function, Iterator
from ktrace_api.capture import CaptureConfig
from ktrace_api.names import EventKind

pytestmark = pytest.mark.world("bpf")

CONFIG = CaptureConfig(node="test")
LOADABLE = sorted(
    name
    for name, target in TARGETS.items()
    if not isinstance(target, Function) and not (isinstance(target, Iterator) and target.over)
)
"""Test hosts refuse every program of type fentry, fexit and iter/bpf_map_elem (EPERM):
tests/kernels loads those."""


def loaded(collector: Collector) -> set[str]:
    programs = collector._object.programs
    return {name for name, program in programs.items() if program.fd >= 0}


@pytest.mark.parametrize("file", OBJECTS)
@pytest.mark.parametrize("name", LOADABLE)
def test_every_candidate_loads_alone(name: str, file: str):
    """Also those that this kernel does not need: tcp_retransmit is the second choice here."""
    bpf = Object(object_path(file))
    for program in bpf.programs.values():
        program.set_autoload(program.name == name)
    bpf.load()
    assert bpf.programs[name].fd >= 0
    assert bpf.programs[name].recursion_misses() == 0
    bpf.close()


@pytest.mark.parametrize("file", OBJECTS)
@pytest.mark.parametrize("cgroup_v1", [True, False])
@pytest.mark.parametrize("name", LOADABLE)
def test_every_candidate_loads_alone_with_every_filter(name: str, cgroup_v1: bool, file: str):
    config = CONFIG.model_copy(update={"ports": (53,), "dns_only": True, "pods": ("0" * 32,)})
    bpf = Object(object_path(file))
    bpf.map(".rodata.config").set_initial(KernelConfig.of(config, cgroup_v1=cgroup_v1))
    for program in bpf.programs.values():
        program.set_autoload(program.name == name)
    bpf.load()
    assert bpf.programs[name].fd >= 0
    bpf.close()


@pytest.mark.parametrize("file", OBJECTS)
def test_the_object_has_exactly_the_programs_that_the_hooks_name(file: str):
    bpf = Object(object_path(file))
    assert set(bpf.programs) == set(TARGETS)
    bpf.close()


def test_only_what_was_asked_for_is_loaded():
    collector = Collector(CONFIG.model_copy(update={"events": (EventKind.UDP,)}), cgroup_v1=False)
    try:
        chosen = {name for choice in collector.choices for name in choice.programs}
        assert "sock_send" in chosen
        assert "tcp_state" not in chosen
        assert loaded(collector) == chosen
    finally:
        collector.close()


def test_counters_and_maps_are_empty_at_first():
    collector = Collector(CONFIG, cgroup_v1=False)
    try:
        assert set(collector.counters(with_skipped=True)) == set(ROW_TYPES)
        assert all(counters.seen == 0 for counters in collector.counters().values())
        assert not collector.overflow().any()
        assert collector.flows() == (b"", b"")
        assert collector.cgroups() == {}
    finally:
        collector.close()


@pytest.mark.parametrize("old", [False, True])
def test_growing_maps_are_as_this_kernel_takes_them(old: bool, monkeypatch: pytest.MonkeyPatch):
    """The choice for a kernel before v6.1 loads here too; this one has the allocator."""
    if old:
        monkeypatch.setattr(KernelTypes, "has_struct", lambda *_: False)
    collector = Collector(CONFIG, cgroup_v1=False)
    try:
        flags = {name: collector._object.map(name).flags for name in GROWING_MAPS}
        assert flags == dict.fromkeys(GROWING_MAPS, 0 if old else BPF_F_NO_PREALLOC)
        assert collector._object.map("socks").flags == 0
    finally:
        collector.close()


def test_a_refused_program_is_named_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch):
    """A fault that this kernel cannot be made to give: the load of one program fails."""
    load, guilty = Object.load, "exit_accept"

    def refuse(self: Object) -> None:
        load(self)
        if self.programs[guilty].fd >= 0:
            raise BpfError("load", 22, "libbpf: noise\ninvalid access to packet\nprocessed 9 insns")

    monkeypatch.setattr(Object, "load", refuse)
    collector = Collector(CONFIG, cgroup_v1=False)
    collector.close()
    (accept,) = (choice for choice in collector.choices if choice.hook == "accept")
    assert accept.program is None
    assert accept.refused[0].program == guilty
    assert accept.refused[0].reason == "invalid access to packet"


def test_a_required_hook_that_is_refused_ends_the_capture(monkeypatch: pytest.MonkeyPatch):
    load = Object.load

    def refuse(self: Object) -> None:
        load(self)
        if self.programs["tcp_state"].fd >= 0:
            raise BpfError("load", 22, "unknown func")

    monkeypatch.setattr(Object, "load", refuse)
    with pytest.raises(UnsupportedKernel, match=r"cannot report TCP state changes.*ktrace doctor"):
        Collector(CONFIG, cgroup_v1=False)


def test_ports_are_bits():
    config = KernelConfig.of(
        CONFIG.model_copy(update={"ports": (1, 64, 65535), "dns_only": True}), cgroup_v1=True
    )
    assert [index for index, word in enumerate(config.ports) if word] == [0, 1, 1023]
    assert (config.ports[0], config.ports[1], config.ports[1023]) == (2, 1, 1 << 63)
    assert (config.ports_only, config.dns_only, config.cgroup_v1) == (1, 1, 1)


def test_the_kernel_tells_the_arguments_of_its_tracepoints():
    types = KernelTypes()
    assert types.tracepoint_args("inet_sock_set_state") == 3
    assert types.tracepoint_args("no_such_tracepoint") is None
    assert types.has_struct("bpf_mem_alloc")
    assert not types.has_struct("no_such_struct")
    types.close()
