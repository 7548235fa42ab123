# SPDX-License-Identifier: Apache-2.0
"""Every reason that a person can meet is explained, in the order of the closed lists."""

import re
from enum import StrEnum
from pathlib import Path

import pytest

from ktrace_api.names import ConditionReason, NodeReason

PAGE = Path(__file__).parents[2] / "docs/troubleshooting.md"


@pytest.mark.parametrize(
    ("heading", "reasons"),
    [
        ("Reasons of a snapshot", ConditionReason),
        ("Reasons of a node", NodeReason),
    ],
)
def test_each_reason_says_what_happened_and_what_to_do(heading: str, reasons: type[StrEnum]):
    section = PAGE.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\w+) \| ([^|]+) \| ([^|]+) \|$", section, re.MULTILINE)
    assert [name for name, _, _ in rows if name != "reason"] == list(reasons)
