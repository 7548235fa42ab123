# SPDX-License-Identifier: Apache-2.0
"""Runs the whole test suite in two pytest runs and prints the sum of their results last.

    unit     tests without a world, on all cores, with coverage by room
    worlds   one test at a time: most worlds capture or count on the whole host

A failed run, a run without tests and a coverage below its floor make the exit status 1; the other
run still takes place. Arguments are passed on to both runs.
"""

import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

BIN = Path(sys.executable).parent
RUNS = {
    "unit": (
        *("-m", "not world", "-n", "auto", "--dist", "worksteal"),
        *("--cov", "--cov-report="),
    ),
    "worlds": ("-m", "world"),
}
INTERRUPTED, NO_TESTS = 2, 5
"""Exit statuses of pytest."""


def counts(report: Path) -> Counter[str]:
    """Count passed, failed and skipped tests of a JUnit report; none if pytest wrote no report."""
    found = Counter[str]()
    if report.exists():
        for suite in ET.parse(report).getroot().iter("testsuite"):
            failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
            skipped = int(suite.attrib["skipped"])
            found["failed"] += failed
            found["skipped"] += skipped
            found["passed"] += int(suite.attrib["tests"]) - failed - skipped
    return found


def run(name: str, more: Sequence[str], report: Path) -> list[str]:
    """Run pytest once and return its problems, one line each."""
    print(f"\n{name}: pytest {' '.join(RUNS[name])}", flush=True)
    command = [str(BIN / "pytest"), "tests", *RUNS[name], f"--junitxml={report}", *more]
    status = subprocess.run(command, check=False).returncode
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status == NO_TESTS:
        return [f"{name}: no tests ran"]
    return [f"{name}: pytest failed with status {status}"] if status else []


def main(more: Sequence[str]) -> int:
    begun = time.monotonic()
    problems: list[str] = []
    total = Counter(passed=0, failed=0, skipped=0)
    with tempfile.TemporaryDirectory(prefix="ktrace-tests-") as folder:
        for name in RUNS:
            report = Path(folder, f"{name}.xml")
            problems += run(name, more, report)
            total.update(counts(report))
            if name == "unit":
                check = [sys.executable, str(Path(__file__).with_name("coverage_by_room.py"))]
                if subprocess.run(check, check=False).returncode:
                    problems.append("unit: coverage is below its floor")
    print("", *problems, f"{time.monotonic() - begun:.0f} s", sep="\n")
    print(", ".join(f"{total[kind]} {kind}" for kind in total), flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
