# SPDX-License-Identifier: Apache-2.0
"""What this kernel and this node offer, with a typed reason for what they do not.

`inspect()` only looks and never raises; `check()` raises where a capture cannot begin. What
single programs need is decided later, program by program (probes.py).
"""

import ctypes
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

from ktrace_agent.errors import AgentError, KtraceError, PermissionDenied, UnsupportedKernel
from ktrace_agent.host import clock
from ktrace_agent.host.netns import inode_of
from ktrace_agent.kernel import load_errors
from ktrace_agent.kernel import lockdown as kernel_lockdown

PROC = Path("/proc")
BTF = Path("/sys/kernel/btf/vmlinux")
LOCKDOWN = kernel_lockdown.LOCKDOWN

_BTF_MAGIC = 0xEB9F
_LIBBPF_MIN = (1, 0)

# include/uapi/linux/capability.h
CAPABILITIES = {
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}

CgroupVersion = Literal["v1", "v2", "hybrid", "-"]


class Lack(StrEnum):
    """What a node may lack; only what is BLOCKING keeps a capture from running."""

    BPF_PERMISSION = "bpf_permission"
    BTF = "btf"
    LIBBPF = "libbpf"
    LOCKDOWN = "lockdown"
    CLOCK = "clock"
    FILES = "files"
    TRACEFS = "tracefs"
    CGROUP = "cgroup"
    OTHER_PROCESSES = "other_processes"
    NAMESPACES = "namespaces"


BLOCKING: Mapping[Lack, type[KtraceError]] = {
    Lack.BPF_PERMISSION: PermissionDenied,
    Lack.BTF: UnsupportedKernel,
    Lack.LIBBPF: UnsupportedKernel,
    Lack.LOCKDOWN: UnsupportedKernel,
    Lack.CLOCK: AgentError,
    Lack.FILES: AgentError,
}
"""In the order in which they are told: what a user can change comes first."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that is not there: why, what it costs and what to do, a line each."""

    what: Lack
    why: str
    next_step: str


@dataclass(frozen=True, slots=True)
class Cgroup:
    """How control groups are mounted; controllers are those of v1 hierarchies, sorted."""

    version: CgroupVersion
    v1_controllers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Platform:
    """One node as it was found."""

    release: str
    """`uname -r`."""
    version: str
    machine: str
    euid: int
    capabilities: frozenset[str]
    """Effective ones, of those in CAPABILITIES."""
    btf: bool
    lockdown: str
    """none, integrity, confidentiality; `-` where the kernel does not say."""
    unprivileged_bpf: str
    """Whether users without rights may load programs: allowed, disabled, locked, `-`."""
    cgroup: Cgroup
    tracefs: str
    """Where it is mounted, `private` where a mount of our own works, `-` where neither does."""
    libbpf: str
    """Version, such as 1.5; `-` where it cannot be loaded."""
    missing: tuple[Missing, ...]

    def lacks(self, what: Lack) -> Missing | None:
        """The reason why `what` is not there, None where it is."""
        return next((one for one in self.missing if one.what is what), None)


def check(*, proc: Path = PROC, btf: Path = BTF, lockdown: Path = LOCKDOWN) -> Platform:
    """The platform, where a capture can begin.

    Raises PermissionDenied or UnsupportedKernel with one line that says what to do next.
    """
    return require(inspect(proc=proc, btf=btf, lockdown=lockdown))


def require(found: Platform) -> Platform:
    """The same platform, where nothing that is BLOCKING is missing; raises like check()."""
    for what, error in BLOCKING.items():
        if lack := found.lacks(what):
            raise error(f"{lack.why}; {lack.next_step}")
    return found


def inspect(*, proc: Path = PROC, btf: Path = BTF, lockdown: Path = LOCKDOWN) -> Platform:
    """Everything that a capture depends on, without changing anything."""
    uname = platform.uname()
    capabilities = _effective(_read(proc / "self/status"))
    cgroup = parse_cgroups(_read(proc / "self/mountinfo"))
    locked = kernel_lockdown.find(lockdown)
    libbpf, libbpf_why = _libbpf()
    tracefs, tracefs_why = _tracefs(lockdown)
    btf_why = _btf_problem(btf)
    missing = [
        _permission(proc, capabilities),
        btf_why and Missing(Lack.BTF, btf_why, _BTF_HELP),
        libbpf_why and Missing(Lack.LIBBPF, libbpf_why, "install libbpf1 (version 1.0 or newer)"),
        _lockdown(locked),
        _clock(proc),
        (files := load_errors.files_problem()) and Missing(Lack.FILES, *files),
        tracefs_why and Missing(Lack.TRACEFS, tracefs_why, _tracefs_help(locked)),
        cgroup.version == "-" and Missing(Lack.CGROUP, "no cgroup is mounted", _CGROUP_HELP),
        _unseen_processes(proc, capabilities),
        _namespaces(capabilities),
    ]
    return Platform(
        release=uname.release,
        version=uname.version,
        machine=uname.machine,
        euid=os.geteuid(),
        capabilities=capabilities,
        btf=not btf_why,
        lockdown=locked.mode,
        unprivileged_bpf=_UNPRIVILEGED.get(
            _read(proc / "sys/kernel/unprivileged_bpf_disabled").strip(), "-"
        ),
        cgroup=cgroup,
        tracefs=tracefs,
        libbpf=libbpf,
        missing=tuple(one for one in missing if one),
    )


_BTF_HELP = "use a kernel built with CONFIG_DEBUG_INFO_BTF=y (most distributions since 2021)"
_TRACEFS_HELP = (
    "run as root, or `mount -t tracefs nodev /sys/kernel/tracing`; without it peers of"
    " unconnected UDP sockets and errnos of connect() are unknown"
)
_TRACEFS_UNSAFE_HELP = "do not mount it: unmounting it can crash the kernel under this lockdown"
_LOCKDOWN_UNKNOWN_HELP = "run as root, so that the lockdown can be determined"
_CGROUP_HELP = "mount /sys/fs/cgroup into the container; without it rows have no cgroup name"
_UNPRIVILEGED = {"0": "allowed", "1": "locked", "2": "disabled"}


def _read(path: Path) -> str:
    """The text of a small file, empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(1 << 20).decode("utf-8", "replace")
    except OSError:
        return ""


def parse_capabilities(status: str) -> int:
    """CapEff of /proc/PID/status as a bit set; 0 where the line is missing."""
    match = re.search(r"^CapEff:\s*([0-9a-fA-F]{1,16})$", status, re.MULTILINE)
    return int(match[1], 16) if match else 0


def _effective(status: str) -> frozenset[str]:
    bits = parse_capabilities(status)
    return frozenset(name for name, bit in CAPABILITIES.items() if bits >> bit & 1)


def parse_cgroups(mountinfo: str) -> Cgroup:
    """How cgroups are mounted, from /proc/PID/mountinfo (proc_pid_mountinfo(5)).

    v2: only the unified hierarchy, or beside it only named ones; v1: only v1 hierarchies;
    hybrid: v1 controllers with a cgroup2 beside them.
    """
    unified = legacy = False
    controllers: set[str] = set()
    for line in mountinfo.splitlines():
        match line.partition(" - ")[2].split():
            case ["cgroup2", *_]:
                unified = True
            case ["cgroup", _, options, *_]:
                legacy = True
                names = set(options.split(",")) - {"rw", "ro", "xattr", "clone_children"}
                controllers |= {name for name in names if re.fullmatch(r"[a-z_]{2,32}", name)}
    found = tuple(sorted(controllers))
    if unified:
        return Cgroup("hybrid" if found else "v2", found)
    return Cgroup("v1" if legacy else "-", found)


def _btf_problem(path: Path) -> str:
    """Why the kernel's BTF cannot be used; empty where it can."""
    try:
        with path.open("rb") as file:
            magic = int.from_bytes(file.read(2), "little")
    except FileNotFoundError:
        return f"this kernel has no type information ({path} is missing)"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    return "" if magic == _BTF_MAGIC else f"{path} is not BTF"


def _libbpf() -> tuple[str, str]:
    """Version of libbpf and, where it cannot be used, the reason."""
    from ktrace_agent.kernel.libbpf import library

    try:
        text = ctypes.string_at(library().libbpf_version_string()).decode("ascii", "replace")
    except OSError as error:
        return "-", f"libbpf cannot be loaded ({error})"
    version = text.removeprefix("v")
    match = re.match(r"(\d{1,4})\.(\d{1,4})", version)
    if not match or (int(match[1]), int(match[2])) < _LIBBPF_MIN:
        return version, f"libbpf {version} is too old"
    return version, ""


def _tracefs(locked: Path) -> tuple[str, str]:
    """Where tracefs is and, where it is nowhere, the reason."""
    from ktrace_agent.kernel.tracefs import Tracefs, mount_point

    point = mount_point()
    tracefs = Tracefs(locked)
    tracefs.close()
    if tracefs.unavailable:
        return "-", tracefs.unavailable
    return (str(point) if point else "private"), ""


def _tracefs_help(locked: kernel_lockdown.Lockdown) -> str:
    if locked.confidential is None:
        return _LOCKDOWN_UNKNOWN_HELP
    return _TRACEFS_UNSAFE_HELP if locked.confidential else _TRACEFS_HELP


_INITIAL_USER_NAMESPACE = 0xEFFFFFFD  # PROC_USER_INIT_INO, include/linux/proc_ns.h


def _permission(proc: Path, capabilities: frozenset[str]) -> Missing | None:
    """Whether programs may be loaded: bpf(2) asks for capabilities of the initial namespace."""
    if not _is_initial(proc / "self/ns", "user", _INITIAL_USER_NAMESPACE):
        return Missing(
            Lack.BPF_PERMISSION,
            "this process is in a user namespace: the capabilities that it has there do not count"
            " for BPF",
            "run outside of it: as root of the host, or in a container of the host's users",
        )
    if "CAP_SYS_ADMIN" in capabilities or {"CAP_BPF", "CAP_PERFMON"} <= capabilities:
        return None
    lacking = " and ".join(sorted({"CAP_BPF", "CAP_PERFMON"} - capabilities))
    return Missing(
        Lack.BPF_PERMISSION,
        f"loading BPF programs needs root or {lacking}",
        "run with sudo, or as a privileged container",
    )


def _lockdown(locked: kernel_lockdown.Lockdown) -> Missing | None:
    if not locked.confidential:
        return None
    return Missing(
        Lack.LOCKDOWN,
        "kernel lockdown is `confidentiality`: programs may not read kernel memory",
        "boot with lockdown=integrity or less",
    )


def _clock(proc: Path) -> Missing | None:
    try:
        clock.shift_ns(proc)
    except AgentError as error:
        why, _, next_step = str(error).partition("; ")
        return Missing(Lack.CLOCK, why, next_step)
    return None


def _unseen_processes(proc: Path, capabilities: frozenset[str]) -> Missing | None:
    """Whether this is a pid namespace of its own, or other users' processes are closed."""
    if not _is_initial(proc / "self/ns", "pid", _INITIAL_PID_NAMESPACE):
        return Missing(
            Lack.OTHER_PROCESSES,
            "the agent is in a pid namespace of its own",
            "run with hostPID: without it namespaces of other processes are not found",
        )
    if "CAP_SYS_PTRACE" in capabilities:
        return None
    return Missing(
        Lack.OTHER_PROCESSES,
        "CAP_SYS_PTRACE is missing: namespaces of other users' processes are not seen",
        "add CAP_SYS_PTRACE; without it their counters and sockets are left out",
    )


_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h


def _is_initial(namespaces: Path, kind: str, inode: int) -> bool:
    """Whether that is the namespace that the kernel began with; yes where it cannot be told."""
    return inode_of(namespaces / kind, kind) in (inode, None)


def _namespaces(capabilities: frozenset[str]) -> Missing | None:
    if "CAP_SYS_ADMIN" in capabilities:
        return None
    return Missing(
        Lack.NAMESPACES,
        "CAP_SYS_ADMIN is missing: other network namespaces cannot be entered",
        "add CAP_SYS_ADMIN; without it the socket inventory is that of the own namespace",
    )
