# SPDX-License-Identifier: Apache-2.0

from pathlib import Path

from ktrace_agent.host import cgroups

HEADER = Path(__file__).parents[3] / "agent/bpf/events.h"


def test_sizes_are_those_of_the_header():
    header = HEADER.read_text()
    assert f"#define KT_CGROUP_LEVELS {cgroups.LEVELS}\n" in header
    assert f"#define KT_CGROUP_NAME_LEN {cgroups.NAME_LEN}\n" in header
