# SPDX-License-Identifier: Apache-2.0
"""node.json: facts of the node, features of its kernel, and changes of its counters."""

from typing import Literal

from pydantic import Field

from ktrace_api.capture import CaptureConfig
from ktrace_api.model import SCHEMA_VERSION, Count, Model
from ktrace_api.names import UNKNOWN, BackendName


class Kernel(Model):
    """The running kernel."""

    release: str
    """`uname -r`."""
    version: str
    arch: str
    btf: bool
    """Whether /sys/kernel/btf/vmlinux can be read."""
    backend: BackendName = "core"
    """How the eBPF programs were loaded."""


class Refusal(Model):
    """A BPF program that was not used, and the reason."""

    program: str
    reason: str


class HookChoice(Model):
    """The BPF program chosen for a hook."""

    hook: str
    chosen: str
    """Name of the program; `-` if the hook has none or was not requested."""
    refused: tuple[Refusal, ...] = ()

    @property
    def missing(self) -> bool:
        """Whether the hook was requested but no program works on this kernel."""
        return self.chosen == UNKNOWN and bool(self.refused)


class Interface(Model):
    """A network interface in the agent's network namespace."""

    name: str
    index: Count
    mtu: Count
    state: str
    """operstate: up, down, unknown, ..."""
    addresses: tuple[str, ...] = ()
    """In CIDR notation."""


class Delta(Model):
    """A counter or gauge before and after the capture."""

    before: float | int
    after: float | int
    delta: float | int


CounterFiles = dict[str, dict[str, Delta]]
"""File -> name -> values, e.g. `netstat` -> `TcpExt.ListenOverflows` -> 0, 3, 3."""


class NetnsCounters(Model):
    """Counters of one network namespace that had events."""

    netns: Count
    """Inode number."""
    counters: CounterFiles
    missing: str = UNKNOWN
    """Why counters are missing: vanished, denied, ... `appeared`: counted since its creation."""


class ClockOffsets(Model):
    """CLOCK_REALTIME minus CLOCK_BOOTTIME. Row times use the offset at the start."""

    offset_start_ns: int
    offset_end_ns: int
    step_ns: int
    """End minus start: how far the wall clock moved relative to the boot clock."""


class RuntimeSocket(Model):
    """Result of a query to the socket of a container runtime."""

    socket: str
    state: str
    """`answered`, or missing, denied, unreachable, timeout, unimplemented, failed, ..."""
    detail: str
    api: str
    runtime: str
    version: str
    sandboxes: Count
    containers: Count
    bad: Count
    """Items that were unreadable or contradictory."""
    left_out: Count


class IdentityFacts(Model):
    """Sources of the names of pods and containers."""

    sockets: tuple[RuntimeSocket, ...] = ()
    log_links: Count = 0
    """Links in /var/log/containers."""
    kubelet_pods: Count = 0
    live_mounts: Count = 0
    """Containers identified by the mounts of a live process."""
    looks: Count = 0
    """Number of times the sources were polled."""
    containers: Count = 0
    """Cgroups of containers or pods with events. `named` counts those with a known pod."""
    named: Count = 0
    contradictions: Count = 0
    incomplete: tuple[str, ...] = ()
    """Limits because of which names may be missing."""
    notes: tuple[str, ...] = ()


class Lacking(Model):
    """Why conntrack data is missing."""

    netns: Count
    """0: the whole host."""
    reason: str
    """absent, denied, vanished, too_late, too_many, unreadable."""
    detail: str


class ConntrackNetns(Model):
    """Conntrack data of one network namespace."""

    netns: Count
    source: str
    """ctnetlink, or the file in /proc/net."""
    entries: Count
    """Entries found over all dumps."""
    peak: Count
    """Highest number of entries in one dump."""
    counters: dict[str, Delta]
    """count, max and the statistics shown by conntrack -S."""


class ConntrackFacts(Model):
    """Conntrack data of the node, and what is missing."""

    host_netns: Count
    """0: unknown."""
    entries: Count
    left_out: Count
    """Minimum number of entries beyond the limit."""
    seconds: float
    """Total time of all dumps."""
    netns: tuple[ConntrackNetns, ...] = ()
    problems: tuple[Lacking, ...] = ()


class NodeInfo(Model):
    """Facts of the node, features of its kernel, and changes of its counters."""

    schema_version: Literal[1] = SCHEMA_VERSION
    node: str
    hostname: str
    boot_id: str = UNKNOWN
    uptime_s: float | None = None
    """At the end of the capture."""
    agent_version: str
    kernel: Kernel
    cgroup: Literal["v1", "v2", "hybrid", "-"]
    hooks: tuple[HookChoice, ...]
    clock: ClockOffsets
    config: CaptureConfig
    interfaces: tuple[Interface, ...]
    interfaces_left_out: Count = 0
    sysctls: dict[str, str] = Field(default_factory=dict)
    host: CounterFiles
    """Counters of the host: softnet_stat, pressure/cpu, pressure/memory, pressure/io, ..."""
    host_missing: dict[str, str] = Field(default_factory=dict)
    """Files of the host that could not be compared, and the reasons."""
    netns: tuple[NetnsCounters, ...]
    """netstat, snmp, snmp6, sockstat, sockstat6 of each namespace with events."""
    netns_left_out: Count = 0
    counters_left_out: Count = 0
    """Changed counters that did not fit into this file."""
    cgroups: dict[str, str]
    """cgroup id -> known part of its path."""
    cgroups_left_out: Count = 0
    identity: IdentityFacts = IdentityFacts()
    conntrack: ConntrackFacts | None = None
    """None: not requested."""
