# SPDX-License-Identifier: Apache-2.0
"""Identifies the current boot of the machine."""

from dataclasses import dataclass
from pathlib import Path

from ktrace_agent.errors import AgentError
from ktrace_agent.host.clock import boot_ns
from ktrace_agent.host.counters import read_file
from ktrace_agent.host.netns import PROC


@dataclass(frozen=True, slots=True)
class Boot:
    """The current boot of the machine; `-` and None if /proc does not report it."""

    boot_id: str
    uptime_s: float | None


def read(proc: Path = PROC) -> Boot:
    """Read the kernel's boot id and the seconds since boot."""
    raw = read_file(proc / "sys/kernel/random/boot_id")
    text = raw[:64].decode("ascii", "replace").strip() if isinstance(raw, bytes) else ""
    try:
        uptime: float | None = boot_ns() / 1e9
    except (OSError, AgentError):
        uptime = None
    return Boot(text or "-", uptime)
