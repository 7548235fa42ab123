# SPDX-License-Identifier: Apache-2.0
"""node.json: what the node was, what its kernel offered, and what its counters did meanwhile."""

from typing import Literal

from pydantic import Field

from ktrace_api.capture import CaptureConfig
from ktrace_api.model import SCHEMA_VERSION, Count, Model
from ktrace_api.names import UNKNOWN


class Kernel(Model):
    """The running kernel."""

    release: str
    """`uname -r`."""
    version: str
    arch: str
    btf: bool
    """/sys/kernel/btf/vmlinux can be read."""


class Refusal(Model):
    """A program that was not taken, and why."""

    program: str
    reason: str


class HookChoice(Model):
    """What serves a hook."""

    hook: str
    chosen: str
    """Name of the program; `-` when the hook has none or was not asked for."""
    refused: tuple[Refusal, ...] = ()

    @property
    def missing(self) -> bool:
        """It was asked for and no program serves it."""
        return self.chosen == UNKNOWN and bool(self.refused)


class Interface(Model):
    """A link of the agent's network namespace."""

    name: str
    index: Count
    mtu: Count
    state: str
    """operstate: up, down, unknown, ..."""
    addresses: tuple[str, ...] = ()
    """With prefix length."""


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
    """Why there are no figures: vanished, denied, ...; `appeared`: they are since it was made."""


class ClockOffsets(Model):
    """CLOCK_REALTIME minus CLOCK_BOOTTIME; rows are placed by the one at the start."""

    offset_start_ns: int
    offset_end_ns: int
    step_ns: int
    """End minus start: how far the wall clock moved against the boot clock meanwhile."""


class RuntimeSocket(Model):
    """What a container runtime's socket gave."""

    socket: str
    state: str
    """`answered`, or why not: missing, denied, unreachable, timeout, unimplemented, failed, ..."""
    detail: str
    api: str
    runtime: str
    version: str
    sandboxes: Count
    containers: Count
    bad: Count
    """Items that could not be read or contradict themselves."""
    left_out: Count


class IdentityFacts(Model):
    """Where the names of pods and containers come from."""

    sockets: tuple[RuntimeSocket, ...] = ()
    log_links: Count = 0
    """Of /var/log/containers."""
    kubelet_pods: Count = 0
    live_mounts: Count = 0
    """Containers whose pod and name a live process showed."""
    looks: Count = 0
    """Times that the sources were asked."""
    containers: Count = 0
    """Cgroups of containers or pods that had events; named: those whose pod is known."""
    named: Count = 0
    contradictions: Count = 0
    incomplete: tuple[str, ...] = ()
    """Limits that kept names away."""
    notes: tuple[str, ...] = ()


class Lacking(Model):
    """Why something of connection tracking is missing."""

    netns: Count
    """0: for the whole host."""
    reason: str
    """absent, denied, vanished, too_late, too_many, unreadable."""
    detail: str


class TrackedNetns(Model):
    """Connection tracking of one network namespace."""

    netns: Count
    source: str
    """ctnetlink, or the file of /proc/net."""
    entries: Count
    """That were seen."""
    peak: Count
    """The highest number that a look found."""
    counters: dict[str, Delta]
    """count, max and the statistics that conntrack -S shows."""


class ConntrackFacts(Model):
    """What connection tracking was asked, and what is missing."""

    host_netns: Count
    """0: not known."""
    entries: Count
    left_out: Count
    """Entries that found no room, at least."""
    seconds: float
    """Time that all looks took."""
    netns: tuple[TrackedNetns, ...] = ()
    problems: tuple[Lacking, ...] = ()


class NodeInfo(Model):
    """What the node was, what the kernel offered, and what its counters did meanwhile."""

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
    """Of the whole host: softnet_stat, pressure/cpu, pressure/memory, pressure/io, ..."""
    host_missing: dict[str, str] = Field(default_factory=dict)
    """Files of the host without figures, and why."""
    netns: tuple[NetnsCounters, ...]
    """netstat, snmp, snmp6, sockstat, sockstat6 of each namespace that had events."""
    netns_left_out: Count = 0
    counters_left_out: Count = 0
    """Changed counters beyond the size of this file."""
    cgroups: dict[str, str]
    """cgroup id -> path, as far as it is known."""
    cgroups_left_out: Count = 0
    identity: IdentityFacts = IdentityFacts()
    conntrack: ConntrackFacts | None = None
    """None: it was not asked for."""
