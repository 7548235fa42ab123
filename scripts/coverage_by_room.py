# SPDX-License-Identifier: Apache-2.0
"""Prints line and branch coverage of every room, and fails if one is below its floor.

Reads .coverage, which `pytest --cov` leaves. The floors (percent of lines and of branches) are in
pyproject.toml under [tool.ktrace.coverage-floors]. A floor is a little below the measured value.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Covered:
    """Lines and branches of one room: how many there are, and how many tests reach."""

    lines: int = 0
    lines_hit: int = 0
    branches: int = 0
    branches_hit: int = 0

    def add(self, summary: Mapping[str, int]) -> None:
        self.lines += summary["num_statements"]
        self.lines_hit += summary["covered_lines"]
        self.branches += summary["num_branches"]
        self.branches_hit += summary["covered_branches"]

    @property
    def percent(self) -> tuple[float, float]:
        return _percent(self.lines_hit, self.lines), _percent(self.branches_hit, self.branches)


def _percent(hit: int, of: int) -> float:
    return 100.0 * hit / of if of else 100.0


def room_of(path: str) -> str:
    """`agent/ktrace_agent/cli/main.py` -> `agent cli`; other files -> `agent`."""
    source, _, *inside = Path(path).parts
    return f"{source} {inside[0]}" if source != "api" and len(inside) > 1 else source


def measured() -> dict[str, Covered]:
    """Return the coverage of every room. Raises CalledProcessError without a usable .coverage."""
    with tempfile.TemporaryDirectory(prefix="ktrace-coverage-") as folder:
        path = Path(folder, "coverage.json")
        command = [sys.executable, "-m", "coverage", "json", "-q", "-o", str(path)]
        subprocess.run(command, check=True, cwd=ROOT)
        report: dict[str, Any] = json.loads(path.read_text())
    rooms: defaultdict[str, Covered] = defaultdict(Covered)
    for path, found in report["files"].items():
        rooms[room_of(path)].add(found["summary"])
    return dict(sorted(rooms.items()))


def main() -> int:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    floors: dict[str, list[float]] = settings["tool"]["ktrace"]["coverage-floors"]
    try:
        rooms = measured()
    except subprocess.CalledProcessError:  # coverage has printed the reason
        return 1
    problems = [f"{room}: has a floor but no files" for room in floors if room not in rooms]
    print(f"\n{'room':20} {'lines':>8} {'floor':>6} {'branches':>9} {'floor':>6}")
    for room, covered in rooms.items():
        if room not in floors:
            problems.append(f"{room}: has no floor in pyproject.toml")
        (lines, branches), (least_lines, least_branches) = covered.percent, floors.get(room, [0, 0])
        print(f"{room:20} {lines:7.1f}% {least_lines:6g} {branches:8.1f}% {least_branches:6g}")
        if lines < least_lines or branches < least_branches:
            problems.append(f"{room}: coverage is below its floor")
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
