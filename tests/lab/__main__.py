# SPDX-License-Identifier: Apache-2.0
"""The whole lab: `python -m tests.lab [--write FILE] [--keep FOLDER] [SCENE ...]`, as root.

Prints the confusion matrix; status 1 where recall is below 0.95 or anything is false.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.lab.catalogue import SCENES, showings
from tests.lab.judge import Outcome
from tests.lab.report import document, matrix, score, sentence
from tests.lab.runner import run


def _line(one: Outcome) -> str:
    state = "skipped" if one.skipped else "FAILED" if one.failed else "ok" if one.good else "WRONG"
    where = one.scene + (" + background" if one.background else "")
    words = [one.skipped, one.failed, *one.wrong]
    return "\n      ".join(
        [f"{state:7} {where:36} {one.seconds:4.1f} s  {one.verdict:11} {' '.join(one.found)}"]
        + [word for word in words if word]
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="where the page goes")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the bundles stay")
    parser.add_argument("scenes", nargs="*", metavar="SCENE")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.scenes) - SCENES.keys():
        parser.error(f"no scene {', '.join(sorted(unknown))}; there are {', '.join(SCENES)}")
    base = asked.keep or Path(tempfile.mkdtemp(prefix="ktrace-lab-"))
    base.mkdir(parents=True, exist_ok=True)
    captures, outcomes = showings(frozenset(asked.scenes)), list[Outcome]()
    begin = time.monotonic()
    try:
        for one in run(captures, base):
            outcomes.append(one)
            print(_line(one), flush=True)
    finally:
        if not asked.keep:
            shutil.rmtree(base)
    seconds = time.monotonic() - begin
    print("", *matrix(outcomes), "", sentence(score(outcomes)), sep="\n")
    print(f"{len(captures)} captures in {seconds:.0f} s")
    if asked.write:
        asked.write.write_text(document(outcomes, seconds))
    return 0 if score(outcomes).good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
