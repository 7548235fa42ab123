# SPDX-License-Identifier: Apache-2.0
"""Which boot of the machine this is."""

from dataclasses import dataclass
from pathlib import Path

from ktrace_agent.errors import AgentError
from ktrace_agent.host.clock import boot_ns
from ktrace_agent.host.counters import read_file
from ktrace_agent.host.netns import PROC


@dataclass(frozen=True, slots=True)
class Boot:
    """Which boot of the machine this is; `-` and None where /proc does not say."""

    boot_id: str
    uptime_s: float | None


def read(proc: Path = PROC) -> Boot:
    """The kernel's boot id and the seconds since then."""
    raw = read_file(proc / "sys/kernel/random/boot_id")
    text = raw[:64].decode("ascii", "replace").strip() if isinstance(raw, bytes) else ""
    try:
        uptime: float | None = boot_ns() / 1e9
    except (OSError, AgentError):
        uptime = None
    return Boot(text or "-", uptime)
