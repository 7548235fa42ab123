# SPDX-License-Identifier: Apache-2.0
"""All scenes, and how they are put into captures."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from types import ModuleType

from tests.lab import (
    healthy_odd,
    healthy_tcp,
    healthy_udp,
    incidents_connect,
    incidents_dns,
    incidents_flow,
    incidents_host,
    incidents_nat,
    incidents_odd,
)
from tests.lab.scene import Healthy, Scene

TOGETHER = 5
"""Healthy scenes in one capture."""


@dataclass(frozen=True)
class Showing:
    """What one capture holds."""

    names: tuple[str, ...]
    background: bool

    def __str__(self) -> str:
        return "+".join(self.names) + (" with background" if self.background else "")


def _scenes(module: ModuleType) -> Iterator[type[Scene]]:
    """Classes of this module that say what they tell; others are what scenes have in common."""
    for value in vars(module).values():
        own = isinstance(value, type) and value.__module__ == module.__name__
        if own and issubclass(value, Scene) and "about" in vars(value):
            yield value


def _all() -> dict[str, type[Scene]]:
    modules = (
        incidents_dns,
        incidents_connect,
        incidents_odd,
        incidents_host,
        incidents_flow,
        incidents_nat,
        healthy_tcp,
        healthy_odd,
        healthy_udp,
    )
    found = [scene for module in modules for scene in _scenes(module)]
    assert len({scene.name() for scene in found}) == len(found)
    return {scene.name(): scene for scene in found}


SCENES = _all()


def showings(names: frozenset[str] = frozenset()) -> list[Showing]:
    """Captures for these scenes, for all where none is named.

    An incident has two to itself, without and with background; healthy ones share.
    """
    wanted = [scene for name, scene in SCENES.items() if not names or name in names]
    single = [scene for scene in wanted if scene.expected.findings or scene.alone]
    made = [
        Showing((scene.name(),), background) for scene in single for background in (False, True)
    ]
    return made + [Showing(group, False) for group in _groups(wanted, single)]


def _groups(wanted: list[type[Scene]], single: list[type[Scene]]) -> Iterator[tuple[str, ...]]:
    """Those that take their time in run() come each with others that only go on."""
    shared = [scene for scene in wanted if scene not in single]
    acting = [scene.name() for scene in shared if not issubclass(scene, Healthy)]
    steady = [scene.name() for scene in shared if issubclass(scene, Healthy)]
    count = max(len(acting), -(-len(shared) // TOGETHER))
    ordered = acting + steady
    rounds = [ordered[start : start + count] for start in range(0, len(ordered), count or 1)]
    for group in zip_longest(*rounds):
        yield tuple(name for name in group if name)
