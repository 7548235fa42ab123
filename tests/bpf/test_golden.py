# SPDX-License-Identifier: Apache-2.0
"""The golden workload of tests/kernels on this kernel, by each object: rows equal to its truth."""

import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from ktrace_agent.kernel.built_files import object_path
from ktrace_agent.kernel.probes import OBJECTS
from tests.bpf.conftest import Begin
from tests.bpf.namespaces import Namespace
from tests.kernels.golden import row_of, truth

pytestmark = pytest.mark.world("bpf")

TRAFFIC = Path(__file__).parents[1] / "kernels/traffic.c"
ROWS = 526
FIRST_CHOICE, _ = OBJECTS


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("traffic") / "traffic"
    flags = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")
    subprocess.run(["cc", *flags, TRAFFIC, "-o", program], check=True)
    return program


@pytest.mark.parametrize("name", OBJECTS)
def test_every_row_is_true(
    name: str, alone: Namespace, traffic: Path, capture: Begin, tmp_path: Path
):
    """The object of older kernels too: under the name of the one that this kernel gets."""
    shutil.copy(object_path(name), tmp_path / FIRST_CHOICE)
    shutil.copy(object_path("libktrace_ring.so"), tmp_path)
    with capture(env={"KTRACE_BPF_DIR": str(tmp_path)}) as one:
        wanted = truth(alone.run(str(traffic)))
    assert wanted.total() == ROWS
    found = Counter(row_of(row) for row in one.rows if row["ns"]["net"] == alone.inode)
    assert found == wanted
