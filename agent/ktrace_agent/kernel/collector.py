# SPDX-License-Identifier: Apache-2.0
"""The BPF side as one object: choose, configure, load, attach, read its maps, detach.

The structures here mirror the parts of agent/bpf/events.h that a running capture needs.
tables/records.py mirrors the records.
"""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_char, c_uint8, c_uint32, c_uint64
from dataclasses import fields
from pathlib import Path

from ktrace_agent.errors import AgentError, UnsupportedKernel
from ktrace_agent.host import cgroups
from ktrace_agent.host.libc import libc
from ktrace_agent.kernel import load_errors
from ktrace_agent.kernel.bpf_object import Link, Object
from ktrace_agent.kernel.iterators import read_iterator
from ktrace_agent.kernel.kernel_types import KernelTypes
from ktrace_agent.kernel.libbpf import BpfError, library
from ktrace_agent.kernel.observed import KIND_OF
from ktrace_agent.kernel.probes import (
    GROWING_MAPS,
    TARGETS,
    Choice,
    Event,
    Iterator,
    choose,
    preallocates,
)
from ktrace_agent.kernel.recording import ROW_TYPES, HookCounters, Overflow
from ktrace_agent.kernel.tracefs import Tracefs
from ktrace_api.capture import CaptureConfig
from ktrace_api.names import RowType

_MISSES_OF = {
    "tcp_state": RowType.TCP_STATE,
    "sock_send": RowType.UDP_SEND,
    "sock_recv": RowType.UDP_RECV,
    "enter_connect": RowType.CONNECT,
    "exit_connect": RowType.CONNECT,
    "tcp_retransmit_err": RowType.TCP_RETRANSMIT,
    "tcp_retransmit": RowType.TCP_RETRANSMIT,
    "tcp_retransmit_synack": RowType.TCP_RETRANSMIT,
}
_IN_PODS_YES = 2
POD_UID_LEN = 36


class CgroupNames(ctypes.Structure):
    """struct kt_cgroup."""

    _fields_ = (
        ("name", (c_char * cgroups.NAME_LEN) * cgroups.LEVELS),
        ("in_pods", c_uint32),
    )


class KernelConfig(ctypes.Structure):
    """struct kt_config."""

    _fields_ = (
        ("ports", c_uint64 * 1024),
        ("max_events", c_uint64),
        ("types", c_uint32),
        ("sample", c_uint32),
        ("security", c_uint8),
        ("dns_only", c_uint8),
        ("ports_only", c_uint8),
        ("cgroup_v1", c_uint8),
        ("pods_only", c_uint8),
        ("pad", c_char * 3),
    )

    @classmethod
    def of(cls, config: CaptureConfig, *, cgroup_v1: bool) -> "KernelConfig":
        value = cls(
            max_events=config.max_events,
            types=sum(1 << i for i, row in enumerate(ROW_TYPES) if KIND_OF[row] in config.events),
            sample=config.sample,
            security=config.security,
            dns_only=config.dns_only,
            ports_only=bool(config.ports),
            cgroup_v1=cgroup_v1,
            pods_only=bool(config.pods),
        )
        for port in config.ports:
            value.ports[port >> 6] |= 1 << (port & 63)
        return value


class _Features:
    """What the running kernel offers, for probes.choose()."""

    def __init__(self) -> None:
        self._types = KernelTypes()
        self._tracefs = Tracefs()

    def tracepoint_args(self, name: str) -> int | None:
        return self._types.tracepoint_args(name)

    def event_id(self, name: str) -> int | None:
        return self._tracefs.event_id(name)

    def has_struct(self, name: str) -> bool:
        return self._types.has_struct(name)

    def close(self) -> None:
        self._types.close()
        self._tracefs.close()


def object_path(name: str) -> Path:
    """Return a built file of agent/bpf: from KTRACE_BPF_DIR, the wheel, or the checkout."""
    package = Path(__file__).resolve().parents[1]
    folders = [package / "bpf", package.parent / "bpf" / "build"]
    if chosen := os.environ.get("KTRACE_BPF_DIR"):
        folders = [Path(chosen)]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise AgentError(f"{name} is not built: run `make build`, or set KTRACE_BPF_DIR to its folder")


def _ring_size(wanted: int) -> int:
    """Return the smallest power of two that holds `wanted` bytes and whole pages."""
    page = os.sysconf("SC_PAGESIZE")
    return 1 << (max(wanted, page) - 1).bit_length()


class Collector:
    """The loaded object. close() removes its links, programs and maps; so does the process exit."""

    def __init__(self, config: CaptureConfig, *, cgroup_v1: bool) -> None:
        try:
            library()
        except OSError as error:
            raise UnsupportedKernel(
                f"libbpf cannot be used ({error}): install libbpf 1.0 or newer"
            ) from error
        self._config = config
        self._cgroup_v1 = cgroup_v1
        self._path = object_path("ktrace.bpf.o")
        self._links: list[Link] = []
        self._iterators: dict[str, Link] = {}
        self._features = _Features()
        try:
            self.choices, self._object = self._load()
        except BaseException:
            self._features.close()
            raise

    def _load(self) -> tuple[tuple[Choice, ...], Object]:
        """Load the chosen programs. If the kernel refuses some, choose again without them."""
        refused: dict[str, str] = {}
        while True:
            choices = choose(self._features, self._config.events, refused)
            for choice in choices:
                if choice.required and not choice.programs:
                    raise UnsupportedKernel(_refusal(choice))
            names = {name for choice in choices for name in choice.programs}
            try:
                return choices, self._open(names)
            except BpfError as error:
                load_errors.raise_if_scarce(error)
                guilty = self._find_guilty(names)
                load_errors.raise_if_denied(guilty.values(), tried=len(names))
                if not guilty:
                    raise AgentError(
                        f"the programs load one by one, but not together: {error}"
                    ) from error
                refused |= {name: load_errors.reason(one) for name, one in guilty.items()}

    def _open(self, names: set[str]) -> Object:
        bpf = Object(self._path)
        try:
            for name, program in bpf.programs.items():
                program.set_autoload(name in names)
            bpf.map(".rodata.config").set_initial(
                KernelConfig.of(self._config, cgroup_v1=self._cgroup_v1)
            )
            if preallocates(self._features):
                for name in GROWING_MAPS:
                    bpf.map(name).preallocate()
            bpf.map("ring").set_max_entries(_ring_size(self._config.ring_bytes))
            bpf.map("socks").set_max_entries(self._config.max_sockets)
            bpf.map("flows").set_max_entries(self._config.max_flows)
            bpf.load()
            for uid in self._config.pods:
                bpf.map("pods").put(uid.encode().ljust(POD_UID_LEN, b"\0"), b"\1")
        except BaseException:
            bpf.close()
            raise
        return bpf

    def _find_guilty(self, names: set[str]) -> dict[str, BpfError]:
        """Load each program alone; return the refused ones with their errors."""
        guilty = {}
        for name in sorted(names):
            try:
                self._open({name}).close()
            except BpfError as error:
                load_errors.raise_if_scarce(error)
                guilty[name] = error
        return guilty

    def attach(self) -> None:
        """Attach all programs. From now on events are recorded; iterators run in iterate()."""
        for choice in self.choices:
            for name in choice.programs:
                program, target = self._object.programs[name], TARGETS[name]
                if isinstance(target, Iterator):
                    over = self._object.map(target.over) if target.over else None
                    self._iterators[name] = program.attach_iter(over)
                elif isinstance(target, Event):
                    event = self._features.event_id(target.name)
                    if event is None:
                        raise AgentError(f"event {target.name} disappeared while attaching")
                    self._links.append(program.attach_tracepoint(event))
                else:
                    self._links.append(program.attach())
        self._features.close()  # the kernel's BTF is 6 MB of memory

    def iterate(self, name: str) -> bytes:
        """Run iterator `name` once in this thread's network namespace; b"" if it was not loaded."""
        link = self._iterators.get(name)
        return read_iterator(link) if link else b""

    def detach(self) -> None:
        """Detach the programs that record events. Afterwards the kernel writes no record.

        Each link waits for its own RCU grace period. Closed in parallel, they share one.
        """
        if self._links:
            with ThreadPoolExecutor(max_workers=len(self._links)) as pool:
                list(pool.map(Link.close, self._links))
        self._links.clear()
        _synchronize_rcu()

    @property
    def ring_fd(self) -> int:
        return self._object.map("ring").fd

    def counters(self, *, with_misses: bool = False) -> dict[RowType, HookCounters]:
        """Return the accounting of every hook, summed over CPUs.

        `with_misses` adds, as lost_map, the events whose program the kernel skipped because it was
        already running on that CPU (interrupted by a softirq), unless the program's second copy
        recorded them.
        """
        names = [field.name for field in fields(HookCounters)]
        array = self._object.map("counters")
        sums = {}
        for index, row in enumerate(ROW_TYPES):
            total = _sum(array.lookup_percpu(index), len(names))
            sums[row] = dict(zip(names, total, strict=True))
        if with_misses:
            for row, misses in self._misses().items():
                sums[row]["seen"] += misses
                sums[row]["lost_map"] += misses
                # The next state of the socket also reveals a skipped change.
                sums[row]["unseen"] = max(0, sums[row]["unseen"] - misses)
        return {row: HookCounters(**values) for row, values in sums.items()}

    def _misses(self) -> dict[RowType, int]:
        missed: dict[RowType, int] = {}
        for choice in self.choices:
            for name in choice.programs:
                if row := _MISSES_OF.get(name):
                    misses = self._object.programs[name].recursion_misses()
                    missed[row] = missed.get(row, 0) + misses
        if RowType.TCP_STATE in missed:
            (recorded,) = _sum(self._object.map("rescued").lookup_percpu(0), 1)
            missed[RowType.TCP_STATE] = max(0, missed[RowType.TCP_STATE] - recorded)
        return missed

    def overflow(self) -> Overflow:
        values = self._object.map("overflow").lookup_percpu(0)
        return Overflow(*_sum(values, len(fields(Overflow))))

    def flows(self) -> tuple[bytes, bytes]:
        """Return the arrays of kt_flow_key and kt_flow."""
        return self._object.map("flows").items()

    def cgroups(self) -> dict[int, str]:
        """Return cgroup id -> path, with as many levels as the kernel side kept.

        With a pod filter only the cgroups of these pods: the author of the snapshot must not get
        the names of others.
        """
        keys, values = self._object.map("cgroups").items()
        found = (CgroupNames * (len(keys) // 8)).from_buffer_copy(values)
        return {
            int.from_bytes(keys[i * 8 : i * 8 + 8], "little"): _cgroup_path(one)
            for i, one in enumerate(found)
            if not self._config.pods or one.in_pods == _IN_PODS_YES
        }

    def close(self) -> None:
        for link in (*self._links, *self._iterators.values()):
            link.close()
        self._object.close()
        self._features.close()


def survey(config: CaptureConfig) -> tuple[Choice, ...]:
    """Return the choices of a capture with this configuration. Loads programs, attaches none."""
    collector = Collector(config, cgroup_v1=False)
    collector.close()
    return collector.choices


def _sum(per_cpu: list[bytes], count: int) -> list[int]:
    values = [(c_uint64 * count).from_buffer_copy(value) for value in per_cpu]
    return [sum(column) for column in zip(*values, strict=True)]


def _cgroup_path(names: CgroupNames) -> str:
    levels = [level.value.decode(errors="replace") for level in names.name]
    return "/" + "/".join(level for level in reversed(levels) if level)


def _refusal(choice: Choice) -> str:
    reasons = "; ".join(f"{refusal.program}: {refusal.reason}" for refusal in choice.refused)
    return f"this kernel cannot report {choice.missing} ({reasons}): see `ktrace doctor`"


def _synchronize_rcu() -> None:
    """Wait until no detached program still runs: membarrier(2) with MEMBARRIER_CMD_GLOBAL."""
    membarrier = {"x86_64": 324, "aarch64": 283}[os.uname().machine]
    libc().syscall(ctypes.c_long(membarrier), ctypes.c_long(1), ctypes.c_long(0), ctypes.c_long(0))
