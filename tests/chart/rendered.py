# SPDX-License-Identifier: Apache-2.0
"""The scenarios as the chart renders them."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from ktrace_operator.settings import Settings, load
from tests.chart.helm import CHART, Thing, of_kind, render
from tests.chart.scenarios import SCENARIOS

DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
each_scenario = pytest.mark.parametrize("name", SCENARIOS)


@cache
def rendered(name: str) -> list[Thing]:
    """The objects of a scenario. They are shared: do not change them."""
    return render(SCENARIOS[name])


def settings_of(things: list[Thing], folder: Path) -> Settings:
    """The settings as the operator reads them."""
    [config] = of_kind(things, "ConfigMap")
    path = folder / "settings.yaml"
    path.write_text(config["data"]["settings.yaml"])
    return load(path)


def value(name: str, *path: str) -> Any:
    """A value of a scenario, or the chart's own."""
    found: Any = SCENARIOS[name]
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    default: Any = DEFAULTS
    for key in path:
        default = default[key]
    return default if found is None else found
