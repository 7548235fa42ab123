# SPDX-License-Identifier: Apache-2.0
"""What this kernel and this node offer, with a typed reason for everything that is missing.

`inspect()` only reads and never raises. `check()` raises if a capture cannot begin. The needs of
single programs are checked later, program by program (probes.py).
"""

import ctypes
import os
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

from ktrace_agent.errors import AgentError, KtraceError, PermissionDenied, UnsupportedKernel
from ktrace_agent.host import clock
from ktrace_agent.host.netns import inode_of
from ktrace_agent.host.small_file import text_or_empty
from ktrace_agent.kernel import load_errors
from ktrace_agent.kernel import lockdown as kernel_lockdown
from ktrace_api.capture import BackendChoice
from ktrace_api.names import BackendName

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
    """What a node may lack. Only the members of BLOCKING prevent a capture."""

    BPF_PERMISSION = "bpf_permission"
    BTF = "btf"
    BCC = "bcc"
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
    Lack.BCC: UnsupportedKernel,
    Lack.LIBBPF: UnsupportedKernel,
    Lack.LOCKDOWN: UnsupportedKernel,
    Lack.CLOCK: AgentError,
    Lack.FILES: AgentError,
}
"""In the order of reporting: what a user can change comes first."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that is missing: the reason with its effect, and what to do, one line each."""

    what: Lack
    why: str
    next_step: str


@dataclass(frozen=True, slots=True)
class Cgroup:
    """How cgroups are mounted; `v1_controllers` are those of v1 hierarchies, sorted."""

    version: CgroupVersion
    v1_controllers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Platform:
    """One node as inspected."""

    release: str
    """`uname -r`."""
    version: str
    machine: str
    euid: int
    capabilities: frozenset[str]
    """The effective ones among CAPABILITIES."""
    btf: bool
    backend: BackendName | None
    """How programs are loaded; None if neither way works."""
    lockdown: str
    """none, integrity or confidentiality; `-` if the kernel does not report it."""
    unprivileged_bpf: str
    """Whether unprivileged users may load programs: allowed, disabled, locked, `-`."""
    cgroup: Cgroup
    tracefs: str
    """Mount point; `private` if only a private mount works, `-` if neither works."""
    libbpf: str
    """Version, such as 1.5; `-` if it cannot be loaded."""
    missing: tuple[Missing, ...]

    def lacks(self, what: Lack) -> Missing | None:
        """Return the reason why `what` is missing, or None if it is available."""
        return next((one for one in self.missing if one.what is what), None)


def check(
    wanted: BackendChoice = "auto",
    *,
    proc: Path = PROC,
    btf: Path = BTF,
    lockdown: Path = LOCKDOWN,
) -> Platform:
    """Return the platform if a capture with the `wanted` backend can begin.

    Raises PermissionDenied, UnsupportedKernel or AgentError with one line that includes the next
    step.
    """
    return require(inspect(wanted, proc=proc, btf=btf, lockdown=lockdown))


def require(found: Platform) -> Platform:
    """Return the same platform; raise like check() if anything in BLOCKING is missing."""
    for what, error in BLOCKING.items():
        if lack := found.lacks(what):
            raise error(f"{lack.why}; {lack.next_step}")
    return found


def inspect(
    wanted: BackendChoice = "auto",
    *,
    proc: Path = PROC,
    btf: Path = BTF,
    lockdown: Path = LOCKDOWN,
) -> Platform:
    """Return everything that a capture depends on. Changes nothing on the node."""
    uname = platform.uname()
    capabilities = _effective(text_or_empty(proc / "self/status"))
    cgroup = parse_cgroups(text_or_empty(proc / "self/mountinfo"))
    locked = kernel_lockdown.find(lockdown)
    libbpf, libbpf_why = _libbpf()
    tracefs, tracefs_why = _tracefs(lockdown)
    btf_why = _btf_problem(btf)
    backend, backend_missing = choose_backend(wanted, btf_why, _bcc_problem)
    missing = [
        _permission(proc, capabilities),
        backend_missing,
        libbpf_why and Missing(Lack.LIBBPF, libbpf_why, "install libbpf1 (version 1.0 or newer)"),
        _lockdown(locked),
        _clock(proc),
        (files := load_errors.files_problem()) and Missing(Lack.FILES, *files),
        tracefs_why and Missing(Lack.TRACEFS, tracefs_why, _tracefs_help(locked)),
        cgroup.version == "-" and Missing(Lack.CGROUP, "no cgroup is mounted", _CGROUP_HELP),
        _other_processes(proc, capabilities),
        _namespaces(capabilities),
    ]
    return Platform(
        release=uname.release,
        version=uname.version,
        machine=uname.machine,
        euid=os.geteuid(),
        capabilities=capabilities,
        btf=not btf_why,
        backend=backend,
        lockdown=locked.mode,
        unprivileged_bpf=_UNPRIVILEGED.get(
            text_or_empty(proc / "sys/kernel/unprivileged_bpf_disabled").strip(), "-"
        ),
        cgroup=cgroup,
        tracefs=tracefs,
        libbpf=libbpf,
        missing=tuple(one for one in missing if one),
    )


_BTF_HELP = "use a kernel built with CONFIG_DEBUG_INFO_BTF=y (most distributions since 2021)"
_TRACEFS_HELP = (
    "run as root, or `mount -t tracefs nodev /sys/kernel/tracing`; without it the peers of"
    " unconnected UDP sockets and the errnos of connect() are unknown"
)
_TRACEFS_UNSAFE_HELP = "do not mount it: unmounting it can crash the kernel under this lockdown"
_LOCKDOWN_UNKNOWN_HELP = "run as root, so that the lockdown can be determined"
_CGROUP_HELP = "mount /sys/fs/cgroup into the container; without it rows have no cgroup name"
_UNPRIVILEGED = {"0": "allowed", "1": "locked", "2": "disabled"}


def parse_capabilities(status: str) -> int:
    """Return CapEff of /proc/PID/status as a bit set; 0 if the line is missing."""
    match = re.search(r"^CapEff:\s*([0-9a-fA-F]{1,16})$", status, re.MULTILINE)
    return int(match[1], 16) if match else 0


def _effective(status: str) -> frozenset[str]:
    bits = parse_capabilities(status)
    return frozenset(name for name, bit in CAPABILITIES.items() if bits >> bit & 1)


def parse_cgroups(mountinfo: str) -> Cgroup:
    """Parse /proc/PID/mountinfo (proc_pid_mountinfo(5)) for the mounted cgroup hierarchies.

    v2: only the unified hierarchy, apart from named v1 hierarchies without a controller. v1: only
    v1 hierarchies. hybrid: v1 controllers and the unified hierarchy.
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
    """Return why the kernel's BTF cannot be used; empty if it can."""
    try:
        with path.open("rb") as file:
            magic = int.from_bytes(file.read(2), "little")
    except FileNotFoundError:
        return f"this kernel has no BTF ({path} is missing)"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    return "" if magic == _BTF_MAGIC else f"{path} does not contain BTF"


def choose_backend(
    wanted: BackendChoice, btf_why: str, bcc_problem: Callable[[], tuple[str, str] | None]
) -> tuple[BackendName | None, Missing | None]:
    """Return the backend of a capture, or what is missing for it.

    `btf_why` is why BTF cannot be used, empty if it can; `bcc_problem` returns why bcc cannot be
    used and what to do. `auto` is bcc only where the kernel has no BTF and bcc can be used.
    """
    if wanted == "bcc":
        problem = bcc_problem()
        return (None, Missing(Lack.BCC, *problem)) if problem else ("bcc", None)
    if not btf_why:
        return "core", None
    if wanted == "core":
        return None, Missing(Lack.BTF, btf_why, _BTF_HELP)
    if problem := bcc_problem():
        why, next_step = problem
        return None, Missing(Lack.BTF, f"{btf_why}, and {why}", f"{next_step}; or {_BTF_HELP}")
    return "bcc", None


def _bcc_problem() -> tuple[str, str] | None:
    from ktrace_agent.kernel.bcc import compiler

    return compiler.problem()


def _libbpf() -> tuple[str, str]:
    """Return the version of libbpf and, if it cannot be used, the reason."""
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
    """Return the mount point of tracefs and, if it is not available, the reason."""
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
    """Check the right to load programs: capabilities in the initial user namespace."""
    if not _is_initial(proc / "self/ns", "user", _INITIAL_USER_NAMESPACE):
        return Missing(
            Lack.BPF_PERMISSION,
            "this process is in a user namespace, where its capabilities are not valid for BPF",
            "run outside of it: as root of the host, or in a container without user namespace",
        )
    if "CAP_SYS_ADMIN" in capabilities or {"CAP_BPF", "CAP_PERFMON"} <= capabilities:
        return None
    lacking = " and ".join(sorted({"CAP_BPF", "CAP_PERFMON"} - capabilities))
    return Missing(
        Lack.BPF_PERMISSION,
        f"root (or {lacking}) is required to load eBPF programs",
        "try `sudo ktrace`, or run it in a privileged container",
    )


def _lockdown(locked: kernel_lockdown.Lockdown) -> Missing | None:
    if not locked.confidential:
        return None
    return Missing(
        Lack.LOCKDOWN,
        "kernel lockdown is `confidentiality`: eBPF programs cannot read kernel memory",
        "boot with lockdown=integrity or less",
    )


def _clock(proc: Path) -> Missing | None:
    try:
        clock.shift_ns(proc)
    except clock.UnknownTimeNamespace as error:
        return Missing(Lack.CLOCK, error.why, error.next_step)
    return None


def _other_processes(proc: Path, capabilities: frozenset[str]) -> Missing | None:
    """Check for a separate PID namespace, and for access to other users' processes."""
    if not _is_initial(proc / "self/ns", "pid", _INITIAL_PID_NAMESPACE):
        return Missing(
            Lack.OTHER_PROCESSES,
            "the agent is not in the host PID namespace",
            "run with hostPID; without it namespaces of other processes are not found",
        )
    if "CAP_SYS_PTRACE" in capabilities:
        return None
    return Missing(
        Lack.OTHER_PROCESSES,
        "CAP_SYS_PTRACE is missing: namespaces of other users' processes cannot be read",
        "add CAP_SYS_PTRACE; without it their counters and sockets are left out",
    )


_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h


def _is_initial(namespaces: Path, kind: str, inode: int) -> bool:
    """Return whether this is the initial namespace; True if that is unknown."""
    return inode_of(namespaces / kind, kind) in (inode, None)


def _namespaces(capabilities: frozenset[str]) -> Missing | None:
    if "CAP_SYS_ADMIN" in capabilities:
        return None
    return Missing(
        Lack.NAMESPACES,
        "CAP_SYS_ADMIN is missing: other network namespaces cannot be entered",
        "add CAP_SYS_ADMIN; without it the socket inventory covers only the agent's namespace",
    )
