# SPDX-License-Identifier: Apache-2.0
"""What a failure to load means: a program that this kernel cannot run, or no word on the kernel.

Without files, memory or the right to bpf(2) every program fails, whatever the kernel offers.
"""

import errno
import os
import resource
from collections.abc import Collection

from ktrace_agent.errors import AgentError, PermissionDenied
from ktrace_agent.kernel.libbpf import BpfError

MIN_FILES = 128
"""Files that a capture has open at most: 96 for programs, maps and links, the rest for looks at
the host's namespaces and runtimes."""


def files_problem() -> tuple[str, str] | None:
    """Why a capture would run out of files, and what to do; None where the limit is enough."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= MIN_FILES:
        return None
    return (
        f"this process may have {soft} files open, a capture needs {MIN_FILES}",
        "raise the limit: `ulimit -n 1024`, or LimitNOFILE= of its service",
    )


def raise_if_scarce(error: BpfError) -> None:
    """AgentError where files or memory are short: then the refusal is none of the kernel's."""
    if remedy := _REMEDIES.get(error.errno or 0):
        raise AgentError(f"the programs cannot be loaded: {remedy}") from error


_REMEDIES = {
    errno.EMFILE: "this process has too many files open; raise its limit: `ulimit -n 1024`",
    errno.ENFILE: "this node has too many files open; raise the sysctl fs.file-max",
    errno.ENOMEM: (
        "there is no memory for programs and maps; raise the memory limit of the cgroup or the"
        " container to 512 MiB, or lower --ring-bytes, --max-sockets and --max-flows"
    ),
}


def raise_if_denied(refused: Collection[BpfError], tried: int) -> None:
    """PermissionDenied where all that was tried was refused without a look at the program."""
    denied = [one for one in refused if one.errno in _DENIALS and not _spoken(one)]
    if denied and len(denied) == tried:
        raise PermissionDenied(
            f"the kernel refuses BPF to this process ({os.strerror(denied[0].errno or 0)}): run as"
            " root of the host, or with CAP_BPF and CAP_PERFMON; in a container privileged, for"
            " seccomp or an LSM may forbid it, too"
        ) from denied[0]


_DENIALS = (errno.EPERM, errno.EACCES)


def reason(error: BpfError) -> str:
    """The verifier's last words, else the errno."""
    return _spoken(error) or os.strerror(error.errno or 0)


def _spoken(error: BpfError) -> str:
    """The verifier's last words; empty where it did not get to see the program."""
    lines = [line.strip() for line in error.log.splitlines()]
    spoken = [
        line
        for line in lines
        if line and not line.startswith(("libbpf:", "processed ", "-- ")) and "; " not in line[:2]
    ]
    return spoken[-1][:200] if spoken else ""
