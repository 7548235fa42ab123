# SPDX-License-Identifier: Apache-2.0
"""The kernel's lockdown mode, which decides whether programs may read kernel memory.

Read from securityfs. Where that is not mounted, the verifier decides: under `confidentiality` it
refuses bpf_probe_read_kernel (bpf_tracing_func_proto, LOCKDOWN_BPF_READ_KERNEL). Nothing is
mounted to find out.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ktrace_agent.host.small_file import text_or_empty
from ktrace_agent.kernel.libbpf import library

LOCKDOWN = Path("/sys/kernel/security/lockdown")

_BPF_PROG_TYPE_RAW_TRACEPOINT = 17
# Two programs in struct bpf_insn (include/uapi/linux/bpf.h): `return 0`, and the same after
# bpf_probe_read_kernel(stack, 8, NULL).
_RETURN = "b700000000000000 9500000000000000"
_READ = (
    "7a0af8ff00000000 bfa1000000000000 07010000f8ffffff b702000008000000 b703000000000000"
    " 8500000071000000 "
)
NOTHING = bytes.fromhex(_RETURN)
READS_KERNEL = bytes.fromhex(_READ + _RETURN)


@dataclass(frozen=True, slots=True)
class Lockdown:
    """The lockdown mode, and what follows for reading kernel memory."""

    mode: str
    """none, integrity, confidentiality; `-` if it is not reported."""
    confidential: bool | None
    """Whether it is confidentiality; None if unknown: then treat it as if it were."""


def find(path: Path = LOCKDOWN) -> Lockdown:
    """Return the mode that securityfs reports, or else what a trial load shows."""
    mode = parse(text_or_empty(path))
    if mode != "-":
        return Lockdown(mode, mode == "confidentiality")
    confidential = _refuses_kernel_reads()
    return Lockdown("confidentiality" if confidential else "-", confidential)


def parse(text: str) -> str:
    """Parse `none [integrity] confidentiality` into integrity; `-` without brackets."""
    match = re.search(r"\[(\w{1,32})\]", text)
    return match[1] if match else "-"


def _refuses_kernel_reads() -> bool | None:
    """Load a program that reads kernel memory; None if this process may load none at all."""
    return False if _loads(READS_KERNEL) else True if _loads(NOTHING) else None


def _loads(instructions: bytes) -> bool:
    """Whether the verifier accepts a raw tracepoint program; it is unloaded again at once."""
    try:
        load = library().bpf_prog_load
    except OSError:
        return False
    count = len(instructions) // 8
    fd = int(load(_BPF_PROG_TYPE_RAW_TRACEPOINT, None, b"GPL", instructions, count, None))
    if fd < 0:
        return False
    os.close(fd)
    return True
