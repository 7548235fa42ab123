# SPDX-License-Identifier: Apache-2.0
"""What tests of the operator share."""

from collections.abc import Iterator

import pytest

from tests.operator.http_server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()
