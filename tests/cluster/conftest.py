# SPDX-License-Identifier: Apache-2.0
"""One cluster for all tests of the session, in a state folder of its own."""

import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import images
from tests.cluster.cluster import Cluster
from tests.cluster.instances import own_name, sweep
from tests.cluster.operators import load_standin
from tests.cluster.snapshots import Snapshots

CRD = images.ROOT / "crds/TraceSnapshot.yaml"
PROBE = "localhost/ktrace-test/probe:1"


def _say(line: str) -> None:
    print(f"cluster: {line}", file=sys.stderr)


@contextmanager
def started(purpose: str, **how: Any) -> Iterator[Cluster]:
    """A cluster that ends with the block."""
    sweep(_say)
    one = Cluster(own_name(purpose), say=_say, **how)
    one.up()
    try:
        yield one
    finally:
        one.down()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with started("main") as one:
        yield one


@pytest.fixture(scope="session")
def probe(cluster: Cluster) -> str:
    """An image that has a shell and /server.pl, on every node."""
    folder = Path(__file__).parent / "probe"
    cluster.load_image(images.build(folder / "Dockerfile", PROBE, context=folder, say=_say))
    return PROBE


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own."""
    name = request.node.name.removeprefix("test_").replace("_", "-")[:60].rstrip("-")
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def served(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Snapshots]]:
    """Makes namespaces for an operator that runs outside the cluster with the stand-in agent.

    The definition of TraceSnapshots is there, no chart is: its policies know one operator only.
    """
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "--filename", CRD)
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", "--filename", CRD)
    load_standin(cluster, tmp_path_factory.mktemp("standin"))
    made: list[str] = []

    def make(purpose: str) -> Snapshots:
        namespace = f"{purpose}-{secrets.token_hex(2)}"
        account = {"name": "ktrace-agent", "namespace": namespace}
        cluster.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account},
        )
        made.append(namespace)
        return Snapshots(cluster, namespace)

    yield make
    if made:
        cluster.kubectl("delete", "namespace", "--ignore-not-found", "--timeout=90s", *made)
