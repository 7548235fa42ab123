# SPDX-License-Identifier: Apache-2.0
"""`ktrace` as a process of its own, whose session writes a bundle without a kernel.

`python -m tests.agent.cli.process_without_kernel ARGUMENTS`: the caller chooses its file
descriptors.
"""

from pathlib import Path
from typing import Any, cast

from ktrace_agent import session
from ktrace_agent.bundle.seal import Sealed
from ktrace_agent.cli import main
from ktrace_api.capture import CaptureConfig
from ktrace_api.summary import Summary
from tests.agent.view.test_report import quiet

KINDS = ("events.jsonl", "events.parquet", "summary.json", "node.json", "bundle.tgz")


class _Stub(Sealed):
    """Its archive is no real one: nobody reads it here."""

    def __init__(self, folder: Path, summary: Summary) -> None:
        paths = tuple(folder / f"ktrace.n1.20260124T215754Z.{kind}" for kind in KINDS)
        for path in paths:
            path.write_text("sealed")
        super().__init__(paths, cast("Any", None), summary, 6, "0" * 64)


def run(config: CaptureConfig, folder: Path, observer: session.Observer, *_: Any) -> Sealed:
    """What session.run() tells its observer, then files with the names of a bundle."""
    observer.ready()
    for second in range(1, 31):
        observer.tick(session.Live(float(second), 30.0 - second, second, 1.0, 0))
    observer.sealing("writing 0 rows")
    return _Stub(folder, quiet(node=config.node))


if __name__ == "__main__":
    session.run = cast("Any", run)
    main.entry()
