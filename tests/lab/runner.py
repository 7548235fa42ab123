# SPDX-License-Identifier: Apache-2.0
"""Plays captures one after the other; while one is sealed, the next is made."""

import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tests.bpf import syscalls
from tests.lab.catalogue import SCENES, Showing
from tests.lab.impossible import Impossible
from tests.lab.judge import Outcome, foreign, judge
from tests.lab.scene import play

TRIES = 3


def _end_with_runner() -> None:
    """A killed run leaves no player behind, and so nothing of what it plays."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)


def show(showing: Showing, base: Path) -> list[Outcome]:
    """Play and judge one capture; what goes wrong with a scene is its outcome.

    Where other namespaces of this machine were in trouble meanwhile, it is played again: a
    capture sees the whole node. The last try counts as it is.
    """
    kinds = [SCENES[name] for name in showing.names]
    name = str(showing).replace(" ", "-")[:100]
    try:
        for number in range(TRIES):
            played = play(kinds, base / f"{name}.{number}", background=showing.background)
            if not foreign(played):
                break
        return judge(played)
    except Impossible as reason:
        why, failure = str(reason), ""
    except (AssertionError, OSError) as problem:
        why, failure = "", f"{type(problem).__name__}: {str(problem)[:500]}"
    return [
        Outcome(
            scene=kind.name(),
            about=kind.about,
            incident=kind.incident(),
            background=showing.background,
            expected=tuple(sorted(kind.expected.findings)),
            skipped=why,
            failed=failure,
        )
        for kind in kinds
    ]


def run(captures: Sequence[Showing], base: Path) -> Iterator[Outcome]:
    """The outcomes in the order of the captures, whose bundles go below `base`."""
    spawn = get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn, initializer=_end_with_runner) as pool:
        for future in [pool.submit(show, one, base) for one in captures]:
            yield from future.result()
