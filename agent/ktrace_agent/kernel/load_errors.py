# SPDX-License-Identifier: Apache-2.0
"""Classifies load errors: the kernel lacks a feature, or the error has another cause.

Without free file descriptors, memory or the right to call bpf(2), every program fails on every
kernel.
"""

import errno
import os
import resource
from collections.abc import Collection

from ktrace_agent.errors import AgentError, PermissionDenied
from ktrace_agent.kernel.libbpf import BpfError

MIN_FILES = 192
"""Maximum number of open files of a capture: 128 for programs, maps and links, the rest for
reading the host's namespaces and container runtimes."""


def files_problem() -> tuple[str, str] | None:
    """Return why a capture would run out of files and what to do; None if the limit suffices."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= MIN_FILES:
        return None
    return (
        f"this process may open {soft} files, a capture needs {MIN_FILES}",
        "raise the limit: `ulimit -n 1024`, or LimitNOFILE= of its service",
    )


def raise_if_scarce(error: BpfError) -> None:
    """Raise AgentError if files or memory ran out: the error does not depend on the kernel then."""
    if remedy := _REMEDIES.get(error.errno or 0):
        raise AgentError(f"the programs cannot be loaded: {remedy}") from error


_REMEDIES = {
    errno.EMFILE: "this process has too many files open; raise its limit: `ulimit -n 1024`",
    errno.ENFILE: "this node has too many files open; raise the sysctl fs.file-max",
    errno.ENOMEM: (
        "not enough memory for programs and maps; raise the memory limit of the cgroup or the"
        " container to 512 MiB, or lower --ring-bytes, --max-sockets and --max-flows"
    ),
}


def raise_if_denied(refused: Collection[BpfError], tried: int) -> None:
    """Raise PermissionDenied if the kernel denied every program before verifying it."""
    denied = [one for one in refused if one.errno in _DENIALS and not _verifier_message(one)]
    if denied and len(denied) == tried:
        raise PermissionDenied(
            f"the kernel does not allow this process to use BPF"
            f" ({os.strerror(denied[0].errno or 0)}): run as root of the host, or with CAP_BPF and"
            " CAP_PERFMON (before Linux 5.11 also CAP_SYS_RESOURCE). In a container run privileged,"
            " because seccomp or an LSM may deny it too"
        ) from denied[0]


_DENIALS = (errno.EPERM, errno.EACCES)


def reason(error: BpfError) -> str:
    """Return the last message of the verifier, or else the text of the errno."""
    return _verifier_message(error) or os.strerror(error.errno or 0)


def _verifier_message(error: BpfError) -> str:
    """Return the last message of the verifier; empty if it did not run."""
    lines = [line.strip() for line in error.log.splitlines()]
    messages = [
        line
        for line in lines
        if line and not line.startswith(("libbpf:", "processed ", "-- ")) and "; " not in line[:2]
    ]
    return messages[-1][:200] if messages else ""
