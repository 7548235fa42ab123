# SPDX-License-Identifier: Apache-2.0
"""A short selection of the lab; `make lab` plays all scenes, without and with background."""

from pathlib import Path

import pytest

from tests.lab.catalogue import SCENES
from tests.lab.impossible import Impossible
from tests.lab.judge import judge
from tests.lab.scene import play

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
    background = names[0] in INCIDENTS[::3]
    try:
        played = play([SCENES[name] for name in names], tmp_path, background=background)
    except Impossible as reason:
        pytest.skip(str(reason))
    wrong = [f"{one.scene}: {text}" for one in judge(played) for text in one.wrong]
    assert not wrong, "\n".join(wrong)
