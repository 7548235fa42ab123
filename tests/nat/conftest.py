# SPDX-License-Identifier: Apache-2.0
"""A client, a router that translates, three backends: the fixtures of the NAT tests."""

from collections.abc import Iterator

import pytest

from tests.bpf.workers import Crew
from tests.nat.cluster import Cluster


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    one = Crew()
    yield one
    one.close()


@pytest.fixture(scope="module")
def cluster(crew: Crew) -> Cluster:
    return Cluster(crew)
