# SPDX-License-Identifier: Apache-2.0
"""Cost of a capture: connections per second with and without it, and its memory.

    sudo .venv/bin/python bench/bench_capture.py [--connections=20000] [--pairs=5] [TOOL ...]

Each pair runs the same load without and with a tool attached, one after the other. The result is
the median of the ratios. TOOL is a command that traces until it is interrupted and prints a line
on stderr once it is attached, such as the default `ktrace --duration=60s --json --out-dir=...`.
"""

import argparse
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
KTRACE = f"{sys.executable} -m ktrace_agent.cli.main --duration=60s --json"
PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


def build(folder: Path) -> Path:
    """Compile the load."""
    target = folder / "connects"
    source = HERE / "connects.c"
    subprocess.run(["cc", "-O2", "-pthread", source, "-o", target], check=True)
    return target


def load(binary: Path, connections: int) -> float:
    """Connections per second of one run."""
    done = subprocess.run([binary, str(connections)], check=True, stdout=subprocess.PIPE)
    return float(done.stdout)


def traced(tool: list[str], binary: Path, connections: int) -> tuple[float, float]:
    """The rate with `tool` attached, and the tool's peak memory in MiB during that run."""
    with subprocess.Popen(
        tool, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            first = process.stderr.readline()
            if process.poll() is not None:
                raise SystemExit(f"{tool[0]} ended at once: {first}")
            rate = load(binary, connections)
            peak = PEAK.search(Path(f"/proc/{process.pid}/status").read_text())
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate()
    return rate, int(peak[1]) / 1024 if peak else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=20_000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("tools", nargs="*", metavar="TOOL")
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("needs root")
    folder = Path(tempfile.mkdtemp())
    try:
        binary = build(folder)
        load(binary, options.connections)  # warm up
        for tool in options.tools or [f"{KTRACE} --out-dir={folder}"]:
            ratios, peaks = [], []
            for _ in range(options.pairs):
                alone = load(binary, options.connections)
                rate, peak = traced(shlex.split(tool), binary, options.connections)
                ratios.append(rate / alone)
                peaks.append(peak)
                print(
                    f"{alone:9.0f}/s alone {rate:9.0f}/s traced {rate / alone:6.2f} {peak:6.0f} MiB"
                )
            print(
                f"median ratio {statistics.median(ratios):.2f}, peak {max(peaks):.0f} MiB: {tool}"
            )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
