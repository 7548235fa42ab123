# SPDX-License-Identifier: Apache-2.0
"""The BPF side as one object: choose, configure, load, attach, read its maps, detach.

The structures here mirror the parts of agent/bpf/events.h that a running capture needs.
tables/records.py mirrors the records.
"""

import ctypes
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_char, c_uint8, c_uint32, c_uint64

from ktrace_agent.errors import AgentError, UnsupportedKernel
from ktrace_agent.host import cgroups
from ktrace_agent.host.libc import libc
from ktrace_agent.kernel import hook_counters, load_errors
from ktrace_agent.kernel.backends import open_backend
from ktrace_agent.kernel.bpf_object import Link, Object
from ktrace_agent.kernel.hooks import TARGETS
from ktrace_agent.kernel.iterators import read_iterator
from ktrace_agent.kernel.libbpf import BpfError, library
from ktrace_agent.kernel.observed import KIND_OF
from ktrace_agent.kernel.probes import (
    GROWING_MAPS,
    HOOKS_VARIABLE,
    Choice,
    choose,
    forced_candidates,
    preallocates,
)
from ktrace_agent.kernel.recording import ROW_TYPES, HookCounters, Overflow
from ktrace_agent.kernel.targets import Iterator
from ktrace_api.capture import CaptureConfig
from ktrace_api.names import BackendName, RowType

_IN_PODS_YES = 2
_ZERO = bytes(4)
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


def _ring_size(wanted: int) -> int:
    """Return the smallest power of two that holds `wanted` bytes and whole pages."""
    page = os.sysconf("SC_PAGESIZE")
    return 1 << (max(wanted, page) - 1).bit_length()


class Collector:
    """The loaded object. close() removes its links, programs and maps; so does the process exit."""

    def __init__(
        self, config: CaptureConfig, *, cgroup_v1: bool, backend: BackendName = "core"
    ) -> None:
        try:
            library()
        except OSError as error:
            raise UnsupportedKernel(
                f"libbpf cannot be used ({error}): install libbpf 1.0 or newer"
            ) from error
        self._config = config
        self._cgroup_v1 = cgroup_v1
        self._links: list[Link] = []
        self._iterators: dict[str, Link] = {}
        self._backend = open_backend(backend)
        self._features = self._backend.features
        try:
            self.choices, self._object = self._load()
        except BaseException:
            self._features.close()
            raise

    def _load(self) -> tuple[tuple[Choice, ...], Object]:
        """Load the chosen programs. If the kernel refuses some, choose again without them."""
        forced = forced_candidates(os.environ.get(HOOKS_VARIABLE, ""))
        refused = dict(self._backend.refused)
        while True:
            choices = choose(self._features, self._config.events, refused, forced)
            for choice in choices:
                if (choice.required or choice.forced) and not choice.programs:
                    raise UnsupportedKernel(_refusal(choice))
            names = {name for choice in choices for name in choice.programs}
            try:
                bpf = self._open(names)
            except BpfError as error:
                refused |= self._refused_at_load(names, error)
                continue
            try:
                unattachable = self._refused_at_attach(names)
            except BaseException:
                bpf.close()
                raise
            if not unattachable:
                return choices, bpf
            bpf.close()
            refused |= unattachable

    def _refused_at_load(self, names: set[str], error: BpfError) -> dict[str, str]:
        """Return the programs that do not load, with the reasons. Raises if that is not why."""
        load_errors.raise_if_scarce(error)
        guilty = self._find_guilty(names)
        load_errors.raise_if_denied(guilty.values(), tried=len(names))
        if not guilty:
            raise AgentError(f"the programs load one by one, but not together: {error}") from error
        return {name: load_errors.reason(one) for name, one in guilty.items()}

    def _refused_at_attach(self, names: set[str]) -> dict[str, str]:
        """Attach each program whose load proves nothing; return those refused, with the reasons.

        In an object of their own: before v5.13 (f3a95075549e) a program that was detached cannot be
        attached again.
        """
        unproven = {name for name in names if not TARGETS[name].proven_by_load}
        if not unproven:
            return {}
        refused = {}
        bpf = self._open(unproven)
        try:
            for name in sorted(unproven):
                try:
                    TARGETS[name].attach(bpf.programs[name], bpf, self._features).close()
                except BpfError as error:
                    refused[name] = load_errors.reason(error)
        finally:
            bpf.close()
        return refused

    def _open(self, names: set[str]) -> Object:
        bpf = self._backend.open()
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

    def _programs(self) -> tuple[str, ...]:
        """Return the chosen programs in the order of attaching; some serve several hooks."""
        return tuple(dict.fromkeys(name for choice in self.choices for name in choice.programs))

    def attach(self) -> None:
        """Attach all programs. From now on events are recorded; iterators run in iterate()."""
        for name in self._programs():
            link = TARGETS[name].attach(self._object.programs[name], self._object, self._features)
            if isinstance(TARGETS[name], Iterator):
                self._iterators[name] = link
            else:
                self._links.append(link)
        self._features.close()  # the kernel's BTF is 6 MB of memory
        _synchronize_rcu()  # calls that began with only some of the programs
        self._count_calls(on=True)

    def _count_calls(self, *, on: bool) -> None:
        """Set kt_counting (agent/bpf/copies.bpf.h)."""
        self._object.map(".data.counting").put(_ZERO, int(on).to_bytes(4, sys.byteorder))

    def iterate(self, name: str) -> bytes:
        """Run iterator `name` once in this thread's network namespace; b"" if it was not loaded."""
        link = self._iterators.get(name)
        return read_iterator(link) if link else b""

    def detach(self) -> None:
        """Detach the programs that record events. Afterwards the kernel writes no record.

        Each link waits for its own RCU grace period. Closed in parallel, they share one.
        """
        if self._links:
            self._count_calls(on=False)
            _synchronize_rcu()
            with ThreadPoolExecutor(max_workers=len(self._links)) as pool:
                list(pool.map(lambda link: link.close(), self._links))
        self._links.clear()
        _synchronize_rcu()

    @property
    def ring_fd(self) -> int:
        return self._object.map("ring").fd

    def counters(self, *, with_skipped: bool = False) -> dict[RowType, HookCounters]:
        """Return the accounting of every hook; `with_skipped` once the programs are detached.

        Skipped events are those whose program the kernel did not run, because it was already
        running on that CPU, unless the program's second copy recorded them.
        """
        return hook_counters.read(self._object, self._programs() if with_skipped else ())

    def overflow(self) -> Overflow:
        return hook_counters.overflow(self._object)

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


def survey(config: CaptureConfig, backend: BackendName = "core") -> tuple[Choice, ...]:
    """Return the choices of a capture with this configuration. Loads programs, attaches none."""
    collector = Collector(config, cgroup_v1=False, backend=backend)
    collector.close()
    return collector.choices


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
