# SPDX-License-Identifier: Apache-2.0
"""What tests of the operator share."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.operator.kube.http_server import Server
from tests.operator.serve.model import ApiModel, Operator, Run


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def model() -> ApiModel:
    model = ApiModel()
    for name in ("node-a", "node-b", "node-c"):
        model.node(name, zone="one" if name == "node-a" else "two")
    return model


@pytest.fixture
def run(model: ApiModel) -> Iterator[Run]:
    made: list[Operator] = []

    def make(**changes: Any) -> Operator:
        made.append(Operator(model, f"operator-{len(made)}", **changes))
        return made[-1]

    yield make
    for operator in made:
        operator.close()
