# SPDX-License-Identifier: Apache-2.0
"""One containerd for all tests of real containers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.runtime import Runtime
from tests.kernels.conftest import ktrace

__all__ = ["ktrace", "runtime"]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    base: Path = tmp_path_factory.mktemp("containerd")
    one = Runtime(base / "node")
    yield one
    one.close()
