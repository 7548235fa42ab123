# SPDX-License-Identifier: Apache-2.0
"""Writes the report at the top of README.md: `python -m tests.lab.readme`, as root.

A DNS server in a network namespace does not answer, a loop of short-lived processes queries it,
and `ktrace --duration=10s` captures them. Events and talkers are left out of the text.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bpf.captures import KTRACE, READY
from tests.bpf.namespaces import Namespace
from tests.bpf.workers import Crew
from tests.lab import jobs

README = Path(__file__).parents[2] / "README.md"
COMMAND = ("--duration=10s",)
HOST = "10.96.0.10"
PROCESSES = 48
_BLOCK = re.compile(r"(?<=^\$ sudo ktrace --duration=10s\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)
_LEFT_OUT = re.compile(r"^Events\n.*?(?=^Bundle )", re.DOTALL | re.MULTILINE)
_PATHS = re.compile(r"^(Bundle|Evidence) .*\n", re.MULTILINE)


def _incident(crew: Crew) -> None:
    here = Namespace(crew)
    here.ip(f"addr add {HOST}/32 dev lo")
    server = here.start(jobs.resolver(HOST, silent=True), comm="coredns")
    server.hear()
    tools = []
    for _ in range(PROCESSES):
        tools.append(here.start(jobs.stub(HOST, rate=1, seconds=0.5, timeout_s=1.0), comm="curl"))
        time.sleep(0.1)
    for tool in tools:
        tool.result()
    server.kill()


def report(folder: Path) -> str:
    """Capture the incident; returns the report without events, talkers and paths."""
    out = folder / "out"
    command = [str(KTRACE), *COMMAND, f"--out-dir={out}", "--node=node-a"]
    crew = Crew()
    try:
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as capture:
            assert capture.stderr is not None
            while READY not in capture.stderr.readline().decode():
                pass
            _incident(crew)
            capture.stderr.read()
    finally:
        crew.close()
    text = subprocess.run(
        [KTRACE, "show", out],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
    ).stdout
    return _PATHS.sub("", _LEFT_OUT.sub("...\n\n", text)).strip("\n")


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        text = report(Path(folder))
    if "CPU_PRESSURE" in text:
        raise SystemExit(f"{text}\n\nThis machine is busy; run it again when it is not.")
    before = README.read_text()
    after, times = _BLOCK.subn(lambda _: f"\n{text}\n", before)
    if times != 1:
        raise SystemExit(f"{README} has {times} blocks to write, not 1")
    README.write_text(after)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
