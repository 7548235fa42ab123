# SPDX-License-Identifier: Apache-2.0
"""Results that are forged, and requests that are changed afterwards.

The API server is a real one, with the chart's roles and policies; there are no nodes. What a
running operator and real agents make of it is in tests/cluster.
"""

from typing import Any

import pytest

from tests.chart.apiserver import Api, User
from tests.chart.helm import Thing
from tests.chart.people import (
    AGENT,
    ALL,
    MALLORY,
    OPERATOR,
    ROOT,
    TESS,
    accepted,
    path_of,
    refused,
    snapshot,
)

pytestmark = pytest.mark.world("chart")


def test_a_status_that_comes_with_a_snapshot_is_not_taken(api: Api):
    asked = snapshot(ALL) | {"status": {"phase": "Completed", "path": "s3://evil/"}}
    answer = api.create(asked, user=TESS)
    accepted(answer)
    assert answer.body["status"] == {"observedGeneration": -1}


@pytest.mark.parametrize("user", [TESS, MALLORY, ROOT, AGENT])
def test_nobody_but_the_operator_writes_results(api: Api, mine: Thing, user: User):
    forged = {"status": {"phase": "Completed", "path": "s3://evil/"}}
    refused(api.patch(f"{path_of(mine)}/status", forged, user=user))
    plain = api.patch(path_of(mine), forged, user=ROOT)
    assert plain.body["status"] == {"observedGeneration": -1}


def test_the_operator_writes_results(api: Api, mine: Thing):
    answer = api.patch(f"{path_of(mine)}/status", {"status": {"phase": "Running"}}, user=OPERATOR)
    assert answer.body["status"]["phase"] == "Running"


@pytest.mark.parametrize(
    "change",
    [
        {"nodes": {"max": 7}},
        {"duration": "30s"},
        {"capture": {"ports": [443]}},
        {"output": {"pvc": {"claimName": "x"}}},
        {"ttlAfterFinished": "1s"},
    ],
    ids=str,
)
def test_what_was_asked_stays(api: Api, mine: Thing, change: dict[str, Any]):
    refused(api.patch(path_of(mine), {"spec": change}, user=ROOT), "spec is immutable")


def test_a_stop_is_for_good(api: Api, mine: Thing):
    assert api.patch(path_of(mine), {"spec": {"stop": True}}, user=TESS).ok
    refused(api.patch(path_of(mine), {"spec": {"stop": False}}, user=TESS), "cannot be reset")


def test_labels_of_ktrace_are_not_added_later(api: Api, mine: Thing):
    change = {"metadata": {"labels": {"ktrace.io/snapshot-uid": "x"}}}
    refused(api.patch(path_of(mine), change, user=TESS), "reserved")
