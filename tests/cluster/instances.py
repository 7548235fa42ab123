# SPDX-License-Identifier: Apache-2.0
"""Names of clusters that belong to a test run, so that what a killed run left can be told."""

import os
import re
from collections.abc import Callable

from tests.cluster.cluster import Cluster, state_root
from tests.cluster.daemons import start_time


def own_name(purpose: str) -> str:
    """A name that says which process the cluster belongs to: pid and start time."""
    return f"test-{purpose}-{os.getpid()}-{start_time(os.getpid())}"


def sweep(say: Callable[[str], None]) -> None:
    """Take down the clusters of test runs that are no more."""
    for folder in sorted(state_root().glob("test-*")):
        found = re.fullmatch(r"test-[a-z]+-(\d+)-(\d+)", folder.name)
        if found and start_time(int(found[1])) != found[2]:
            Cluster(folder.name, say=say).down()
