# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 - a line of a Markdown table
"""docs/kernels.md from the last run of tests/kernels, whose results are in dist/kernels/.

python -m tests.kernels.report                  prints the page
python -m tests.kernels.report --write FILE     writes it; fails if a series of kernels is missing
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ktrace_agent.kernel.hooks import HOOKS, TARGETS
from tests.kernels.packages import SERIES
from tests.kernels.results import FOLDER, MAX_INSTRUCTIONS

RUNS = ("chosen", "fexit", "kprobe")
RETRANSMITS = "retransmits"

INTRODUCTION = """\
# Kernels

ktrace needs Linux 5.10 or later with BTF (`/sys/kernel/btf/vmlinux`) on x86-64. Its programs are \
also built and tested for arm64, for which there are no images and no static file yet. It chooses the programs of each hook by what the kernel offers and never by its version. \
`ktrace doctor` prints the choice for a node, and node.json of a bundle has it (`hooks`). \
`KTRACE_HOOKS=socket_send=kprobe,socket_recv=kprobe` forces another candidate, for a diagnosis.

This page is written by `make test-kernels`. It boots Debian's kernels in QEMU (2 CPUs, \
`panic_on_warn=1`), makes traffic of known truth and compares the records: 23 TCP connections, 17 \
refused ones, 110 datagrams sent and 110 received by every form of the calls, 18 DNS queries of \
which 7 are answered. These are 526 rows; types, processes, ports, peers, errno and bytes must be \
equal. Whole captures by the command line run on 5.10, 6.1, 6.12-rt and the newest kernel. Further \
guests have lockdown, full preemption, hardened slabs, cgroup v1 or hidden BTF.
"""
DISTRIBUTIONS = """\
## Distributions

Only Debian's kernels were booted. The other lines are reasoned from the versions that the \
distributions publish.

| kernel | distributions | what ktrace records |
|---|---|---|
| before 5.10, or without BTF | Ubuntu 20.04 (5.4), RHEL 7, Amazon Linux 2 (4.14, 5.4) | nothing by CO-RE. `--backend=bcc` can serve a kernel with headers (measured only on 6.1 with its BTF hidden) |
| 5.10 | Debian 11, Amazon Linux 2 (5.10), older EKS nodes | everything, by functions (fexit) |
| 5.14 to 6.2 | Ubuntu 22.04 (5.15, also on Azure), Bottlerocket (5.15, 6.1), Amazon Linux 2023 (6.1), COS 109 and 113 (6.1), Debian 12, RHEL 9 (5.14 with backports) | everything, by functions (fexit); on arm64 before 6.4 by kprobes |
| 6.3 to 6.19 | COS 117 and later, Amazon Linux 2023 (6.12), Bottlerocket (6.12), Ubuntu 24.04, RHEL 10, Debian 13, Talos 1.7 and later | everything, by tracepoints |
| 7.0 and later | Ubuntu 26.04, Debian backports, Fedora | everything; a program that the kernel did not run is counted as `skipped` |
| any, with lockdown=confidentiality | some hardened images | nothing: the kernel forbids programs that read its memory (exit status 4) |

5.15 is not measured: Debian has no package of it. It has all that 6.1 uses here: fexit on the four \
functions (5.5), task storage (5.11) and `bpf_task_pt_regs` (5.15).
"""
LIMITS = """\
## Differences between candidates

- A receive by fexit or kretprobe is seen only if it began after the programs were attached: the \
first datagram of a process that waited before is missed. The tracepoints have no such gap.
- With `kprobe/tcp_set_state` before 6.15, the first row of an accepted connection has the port of \
its peer without the address.
- A kretprobe misses calls when all its instances are in use. They are counted as `skipped`.
"""


def results() -> list[dict[str, Any]]:
    """The results of all kernels, in the order of SERIES and RUNS."""
    found = [json.loads(file.read_text()) for file in FOLDER.glob("*.json")]
    order, runs = list(SERIES), [*RUNS, RETRANSMITS]
    return sorted(
        (one for one in found if one["run"] in runs),
        key=lambda one: (order.index(one["series"]), runs.index(one["run"])),
    )


def report(every: Sequence[dict[str, Any]]) -> str:
    """The page as Markdown, from results()."""
    chosen = [one for one in every if one["run"] == "chosen"]
    kernels = [_title(one) for one in chosen]
    by_series = {
        series: [one for one in every if one["series"] == series]
        for series in dict.fromkeys(one["series"] for one in every)
    }
    parts = [
        INTRODUCTION.rstrip(),
        "## Rows of the golden workload",
        (
            "`chosen` is what ktrace takes by itself, the others were forced; empty: not forced there, "
            "because it is the choice or cannot be attached. Retransmits: segments in rows, of those "
            "that the kernel counted (`RetransSegs`)."
        ),
        _table(
            ("kernel", *RUNS, RETRANSMITS),
            (
                (_title(runs[0]), *(_rows(runs, run) for run in RUNS), _retransmits(runs))
                for runs in by_series.values()
            ),
        ),
        "## Candidates",
        "The candidate that serves each hook; `-`: none.",
        _table(
            ("hook", *kernels),
            ((hook.name, *(one["hooks"].get(hook.name, "-") for one in chosen)) for hook in HOOKS),
        ),
        "## Refused programs",
        _table(("kernel", "program", "reason"), _refused(chosen)),
        LIMITS.rstrip(),
        DISTRIBUTIONS.rstrip(),
        "## Instructions that the verifier processed",
        f"A program above {MAX_INSTRUCTIONS:,}, half of the verifier's limit, fails the run.",
        _table(("program", *kernels), _instructions(by_series.values())),
    ]
    return "\n\n".join(parts) + "\n"


def _title(result: dict[str, Any]) -> str:
    version = result["version"].partition("-")[0]
    flavour = " (rt)" if result["series"].endswith("-rt") else ""
    return f"{version}{flavour} {result['arch']}"


def _refused(chosen: Iterable[dict[str, Any]]) -> Iterable[Sequence[str]]:
    for one in chosen:
        for program, reason in one["refused"].items():
            if program in TARGETS:
                yield _title(one), f"`{program}`", reason


def _rows(runs: Iterable[dict[str, Any]], run: str) -> str:
    return next((str(sum(one["rows"].values())) for one in runs if one["run"] == run), "")


def _retransmits(runs: Iterable[dict[str, Any]]) -> str:
    for one in runs:
        if one["run"] == RETRANSMITS:
            return f"{one['figures']['found']} of {one['figures']['counted']}"
    return ""


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


def main(arguments: Sequence[str]) -> int:
    """Print or write the page; 1 if a result of a series is missing."""
    every = results()
    found = {(one["series"], one["run"]) for one in every}
    missing = [
        series for series in SERIES if not {(series, RUNS[0]), (series, RETRANSMITS)} <= found
    ]
    match arguments:
        case []:
            print(report(every), end="")
        case ["--write", path] if not missing:
            Path(path).write_text(report(every))
            print(f"{path} is written")
        case ["--write", path]:
            print(f"{path} stays as it is: no result of {', '.join(missing)}")
            return 1
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
