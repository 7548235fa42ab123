# SPDX-License-Identifier: Apache-2.0
import time
from pathlib import Path

import pytest

from ktrace_agent.errors import AgentError
from ktrace_agent.host import boot


def test_the_boot_of_this_machine():
    found = boot.read()
    assert found.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert found.uptime_s == pytest.approx(time.clock_gettime(time.CLOCK_BOOTTIME), abs=5)


def test_an_unknown_boot_is_a_dash_and_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def unknown() -> int:
        raise AgentError("unknown offset")

    monkeypatch.setattr(boot, "boot_ns", unknown)
    assert boot.read(tmp_path) == boot.Boot("-", None)
