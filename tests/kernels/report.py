# SPDX-License-Identifier: Apache-2.0
"""Tables of the last run of test_programs.py, from dist/kernels/.

python -m tests.kernels.report    prints Markdown
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from ktrace_agent.kernel.hooks import HOOKS, TARGETS
from tests.kernels.packages import SERIES
from tests.kernels.results import FOLDER, MAX_INSTRUCTIONS

RUNS = ("chosen", "fexit", "kprobe")


def results() -> list[dict[str, Any]]:
    """The results of all kernels, in the order of SERIES and RUNS."""
    found = [json.loads(file.read_text()) for file in FOLDER.glob("*.json")]
    order = list(SERIES)
    return sorted(
        (one for one in found if one["run"] in RUNS),
        key=lambda one: (order.index(one["series"]), RUNS.index(one["run"])),
    )


def report() -> str:
    """The tables as Markdown."""
    every = results()
    chosen = [one for one in every if one["run"] == "chosen"]
    kernels = [_title(one) for one in chosen]
    by_series = {
        series: [one for one in every if one["series"] == series]
        for series in dict.fromkeys(one["series"] for one in every)
    }
    parts = [
        "## Candidates",
        _table(
            ("hook", *kernels),
            ((hook.name, *(one["hooks"].get(hook.name, "-") for one in chosen)) for hook in HOOKS),
        ),
        "## Refused programs",
        _table(
            ("kernel", "program", "reason"),
            (
                (_title(one), f"`{program}`", reason)
                for one in every
                for program, reason in one["refused"].items()
                if program in TARGETS and one["run"] == "chosen"
            ),
        ),
        "## Rows of the golden workload",
        _table(
            ("kernel", *RUNS),
            ((_title(runs[0]), *(_rows(runs, run) for run in RUNS)) for runs in by_series.values()),
        ),
        "## Instructions that the verifier processed",
        f"A program above {MAX_INSTRUCTIONS:,} fails the run.",
        _table(("program", *map(_title, chosen)), _instructions(by_series.values())),
    ]
    return "\n\n".join(parts) + "\n"


def _title(result: dict[str, Any]) -> str:
    version = result["version"].partition("-")[0]
    flavour = " (rt)" if result["series"].endswith("-rt") else ""
    return f"{version}{flavour} {result['arch']}"


def _rows(runs: Iterable[dict[str, Any]], run: str) -> str:
    return next((str(sum(one["rows"].values())) for one in runs if one["run"] == run), "")


def _instructions(kernels: Iterable[Iterable[dict[str, Any]]]) -> Iterable[Sequence[str]]:
    counts: list[dict[str, int]] = []
    for runs in kernels:
        counts.append({})
        for one in runs:
            counts[-1] |= one["instructions"]
    for program in TARGETS:
        if any(program in one for one in counts):
            yield f"`{program}`", *(f"{one[program]:,}" if program in one else "" for one in counts)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(report(), end="")
