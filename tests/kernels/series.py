# SPDX-License-Identifier: Apache-2.0
"""The marks of a test that boots kernels."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.kernels.packages import SERIES

LIMIT_S = 900
"""Of a test: a guest takes a minute on an idle host and several on a loaded one."""


def on(*series: str, quick: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """Run a test once for each series of kernels; without names for all of them.

    On the `quick` ones it belongs to the world `kernels`, on the others to the world `matrix`.
    """
    params = [
        pytest.param(
            name, id=name, marks=pytest.mark.world("kernels" if name in quick else "matrix")
        )
        for name in series or tuple(SERIES)
    ]
    mark = pytest.mark.parametrize("kernel", params, indirect=True, scope="session")

    def decorate(test: Any) -> Any:
        return pytest.mark.timeout(LIMIT_S)(mark(test))

    return decorate
