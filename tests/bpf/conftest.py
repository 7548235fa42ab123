# SPDX-License-Identifier: Apache-2.0
"""Namespaces, processes and captures for the tests on this machine's own kernel."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.bpf.captures import Capture
from tests.bpf.namespaces import Namespace, Pair
from tests.bpf.tcp_jobs import discard
from tests.bpf.workers import Crew

Begin = Callable[..., Capture]


@pytest.fixture(scope="module")
def pair(crew: Crew) -> Pair:
    """Client and server, each in a namespace, a veth between them."""
    return Pair(crew)


@pytest.fixture(scope="module")
def alone(crew: Crew) -> Namespace:
    """A namespace with only loopback."""
    return Namespace(crew)


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Begin]:
    """Makes captures, each in its own folder: capture(*flags, **how)."""
    base: Path = tmp_path_factory.mktemp("captures")
    numbers, made = count(), list[Capture]()

    def begin(*flags: str, **how: Any) -> Capture:
        made.append(Capture(base / str(next(numbers)), *flags, **how))
        return made[-1]

    yield begin
    for one in made:
        if hasattr(one, "process"):
            one.kill()


@pytest.fixture
def sink(pair: Pair, request: pytest.FixtureRequest) -> Iterator[None]:
    """A server on the module's PORT that accepts connections and reads to their end."""
    worker = pair.server.start(discard(request.module.PORT))
    worker.hear()
    yield
    worker.kill()
