# SPDX-License-Identifier: Apache-2.0
"""A short selection of the lab; `make lab` plays all scenes, without and with background."""

from pathlib import Path

import pytest

from tests.lab.catalogue import Showing
from tests.lab.runner import show

pytestmark = pytest.mark.world("bpf")

INCIDENTS = (
    "dns-silent",
    "dns-one-dead",
    "refused",
    "black-hole",
    "close-wait-leak",
    "loss-ten",
    "dnat-dead-backend",
    "udp-buffer-small",
    "denied-by-seccomp",
    "slow-application",
)
HEALTHY = ("rolling-restart", "busy-web-server", "port-scan", "dns-pairs", "syslog", "long-idle")


@pytest.mark.parametrize(
    "names", [*((name,) for name in INCIDENTS), HEALTHY], ids=[*INCIDENTS, "healthy"]
)
def test_scene(names: tuple[str, ...], tmp_path: Path):
    outcomes = show(Showing(names, background=names[0] in INCIDENTS[::3]), tmp_path)
    for one in outcomes:
        if one.skipped:
            pytest.skip(one.skipped)
    said = [f"{one.scene}: {text}" for one in outcomes for text in (one.failed, *one.wrong) if text]
    assert not said, "\n".join(said)
