# SPDX-License-Identifier: Apache-2.0
"""One API server for all tests of the chart, with the chart in it and some people."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.chart import people
from tests.chart.apiserver import Api, running, wait_for
from tests.chart.helm import NAMESPACE, Thing, install

VALUES: dict[str, Any] = {
    "podTargets": {"namespaces": [people.SHOP]},
    "output": {
        "default": {"s3": {"bucket": "bundles"}},
        "s3": {
            "allowedEndpoints": ["https://*.s3.example.com", "http://seaweed.example:8333"],
            "allowedBuckets": ["team-*", "shared"],
        },
    },
    "limits": {"maxDuration": "5m", "maxNodes": 50},
}


def exists(api: Api, path: str) -> bool:
    return api.request("GET", path).ok


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API server."""
    with running(tmp_path_factory.mktemp("apiserver")) as api:
        yield api


@pytest.fixture(scope="session")
def api(bare: Api) -> Api:
    """With the chart installed, people bound, and the policies in force."""
    bare.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": people.SHOP}})
    install(bare.kubeconfig, VALUES)
    bare.apply(*people.objects())
    for namespace in (people.AGENTS, people.SHOP):
        account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
        wait_for(partial(exists, bare, account), f"{account} is missing")
    probe = people.snapshot({"names": ["a"]})
    wait_for(
        lambda: "may not trace whole nodes" in bare.create(probe, user=people.ALICE).message,
        "the policies are not in force",
    )
    entry = f"/api/v1/namespaces/{people.AGENTS}/pods/x-00000000-0000000000/exec?command=id"
    wait_for(
        lambda: "are denied for agents" in bare.request("POST", entry).message,
        "the policy of access is not in force",
    )
    forged = people.pod(labels={"ktrace.io/snapshot-uid": "x"})
    wait_for(
        lambda: "only the operator may" in bare.create(forged, dry_run=True).message,
        "the policy of agents is not in force",
    )
    privileged = people.pod(hostPID=True)
    wait_for(
        lambda: "only agents may use" in bare.create(privileged, dry_run=True).message,
        "the policy of neighbours is not in force",
    )
    made = people.accepted(bare.create(people.snapshot(people.ALL), user=people.TESS))
    status = {"status": {"phase": "Completed"}}
    wait_for(
        lambda: (
            "only the operator may"
            in bare.patch(f"{people.path_of(made)}/status", status, dry_run=True).message
        ),
        "the policy of results is not in force",
    )
    bare.delete(people.path_of(made))
    assert bare.request("GET", f"/api/v1/namespaces/{NAMESPACE}").ok
    return bare


@pytest.fixture
def mine(api: Api) -> Thing:
    """A snapshot of tess's."""
    return people.accepted(api.create(people.snapshot(people.ALL), user=people.TESS))
