# SPDX-License-Identifier: Apache-2.0
"""A client, a router that translates, three backends: the fixtures of the NAT tests."""

import pytest

from tests.bpf.workers import Crew
from tests.nat.cluster import Cluster


@pytest.fixture(scope="module")
def cluster(crew: Crew) -> Cluster:
    return Cluster(crew)
