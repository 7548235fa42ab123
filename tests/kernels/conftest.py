# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the world `kernels`: the static file, the traffic, and a kernel for each test.

A test takes the fixture `kernel` and names its series: `@on("6.1", "newest")`. `KTRACE_KERNEL=6.1`
runs only the tests on that series.
"""

import os
import subprocess
from pathlib import Path

import pytest

from tests.kernels import loader, packages
from tests.kernels.packages import Kernel
from tests.static.test_static import BUILT, ROOT, sources

ONLY = os.environ.get("KTRACE_KERNEL", "")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not ONLY:
        return
    if ONLY not in packages.SERIES:
        raise pytest.UsageError(f"KTRACE_KERNEL: {ONLY} is not one of {', '.join(packages.SERIES)}")
    here = Path(__file__).parent
    others = [
        item
        for item in items
        if item.path.is_relative_to(here)
        and isinstance(item, pytest.Function)
        and getattr(item, "callspec", None) is not None
        and item.callspec.params.get("kernel", ONLY) != ONLY
    ]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


@pytest.fixture(scope="session")
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """The newest kernel of the series that the test names."""
    return packages.kernel(request.param)


@pytest.fixture(scope="session")
def ktrace() -> Path:
    """dist/ktrace-static, built if it is missing or older than its sources.

    KTRACE_STATIC names a file that was built elsewhere.
    """
    if given := os.environ.get("KTRACE_STATIC"):
        return Path(given)
    newest = max(path.stat().st_mtime for path in sources())
    if not BUILT.exists() or BUILT.stat().st_mtime < newest:
        subprocess.run(["make", "-C", ROOT, "build-static"], check=True)
    return BUILT


@pytest.fixture(scope="session")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden workload, linked statically: a guest has no libraries."""
    return loader.compiled("amd64", "traffic.c", tmp_path_factory.mktemp("traffic"))
