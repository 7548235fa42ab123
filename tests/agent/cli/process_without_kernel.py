# SPDX-License-Identifier: Apache-2.0
"""`ktrace` as a process of its own, whose session writes a bundle without a kernel.

`python -m tests.agent.cli.process_without_kernel ARGUMENTS`: the caller chooses its file
descriptors. Imports that only a capture needs come late, since most runs are no capture.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ktrace_agent import session
from ktrace_agent.cli import main
from ktrace_api.capture import CaptureConfig

if TYPE_CHECKING:
    from ktrace_agent.bundle.seal import Sealed

KINDS = ("events.jsonl", "events.parquet", "summary.json", "node.json", "bundle.tgz")


def run(config: CaptureConfig, folder: Path, observer: session.Observer, *_: Any) -> "Sealed":
    """Call the observer as session.run() does, then write files with the names of a bundle."""
    from ktrace_agent.bundle.seal import Sealed
    from tests.agent.view.test_report import quiet

    observer.ready()
    for second in range(1, 31):
        observer.tick(session.Live(float(second), 30.0 - second, second, 1.0, 0))
    observer.sealing("writing 0 rows")
    paths = tuple(folder / f"ktrace.n1.20260124T215754Z.{kind}" for kind in KINDS)
    for path in paths:
        path.write_text("sealed")  # not a real archive: no test opens it
    return Sealed(paths, cast("Any", None), quiet(node=config.node), 6, "0" * 64)


if __name__ == "__main__":
    session.run = cast("Any", run)
    main.entry()
