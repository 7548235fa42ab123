# SPDX-License-Identifier: Apache-2.0
"""What an author asks for who may create TraceSnapshots: more than is theirs.

The API server is a real one, with the chart's roles and policies; there are no nodes. What a
running operator and real agents make of it is in tests/cluster.
"""

import contextlib
from typing import Any

import pytest
import urllib3

from tests.chart.apiserver import Api, User, collection, wait_for
from tests.chart.helm import Thing
from tests.chart.people import (
    AGENTS,
    ALICE,
    ALL,
    LABELLED,
    MALLORY,
    NED,
    ROOT,
    SHOP,
    SNAPSHOTS,
    TESS,
    accepted,
    refused,
    snapshot,
)

pytestmark = pytest.mark.world("chart")


# Whom a snapshot looks at.


@pytest.mark.parametrize(
    ("user", "nodes"),
    [
        (ALICE, {"names": ["node-a"]}),
        (ALICE, {"names": ["node-a", "node-b"]}),
        (ALICE, ALL),
        (ALICE, {"selector": {"matchLabels": {"pool": "db"}}}),
        (MALLORY, ALL),
        (NED, {"names": ["node-b"]}),
        (NED, {"names": ["node-a", "node-b"]}),
        (NED, ALL),
    ],
)
def test_whole_nodes_need_the_right_to_trace_them(api: Api, user: User, nodes: dict[str, Any]):
    refused(api.create(snapshot(nodes), user=user), user.name, "may not trace whole nodes")


@pytest.mark.parametrize(
    ("user", "nodes"),
    [
        (TESS, ALL),
        (TESS, {"names": ["a", "b", "c"]}),
        (NED, {"names": ["node-a"]}),
        (ALICE, {"pods": {"namespace": SHOP, "selector": LABELLED}}),
        (MALLORY, {"pods": {"selector": {}}}),
    ],
)
def test_what_each_may_do_they_can_do(api: Api, user: User, nodes: dict[str, Any]):
    answer = api.create(snapshot(nodes), user=user)
    accepted(answer)
    assert answer.warnings == ()


@pytest.mark.parametrize(
    ("user", "namespace", "words"),
    [
        (ALICE, "kube-system", "may not trace the pods of kube-system"),
        (NED, SHOP, "may not trace the pods of shop"),
        (NED, None, "may not trace the pods of ktrace-agents"),
        (ROOT, "kube-system", "podTargets.namespaces"),
        (ROOT, "default", "podTargets.namespaces"),
    ],
)
def test_pods_need_the_right_to_list_them_and_the_administrators_word(
    api: Api, user: User, namespace: str | None, words: str
):
    pods: dict[str, Any] = {"selector": LABELLED}
    if namespace:
        pods["namespace"] = namespace
    refused(api.create(snapshot({"pods": pods}), user=user), words)


@pytest.mark.parametrize("user", [MALLORY, ROOT])
def test_other_namespaces_are_not_served(api: Api, user: User):
    refused(api.create(snapshot(ALL, namespace=SHOP), user=user), "namespace not served")


# Where bundles go.


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://169.254.169.254",
        "http://[fe80::1]:80",
        "http://127.0.0.1:10250",
        "http://localhost:2379",
        "http://2852039166",
        "https://metadata.google.internal",
        "https://kubernetes.default.svc",
        "https://a.s3.example.com@evil.example",
        "https://evil.example/a.s3.example.com",
        "https://a.s3.example.com.evil.example",
        "https://evil.example#a.s3.example.com",
        "https://a.b.s3.example.com",
        "https://s3.example.com",
        "https://a.s3.example.com:22",
        "http://a.s3.example.com",
        "https://seaweed.example:8333",
        "http://seaweed.example",
        "file:///etc/passwd",
        "https://a.s3.example.com\n",
        "gopher://a.s3.example.com",
    ],
)
def test_bundles_go_to_no_server_that_is_not_listed(api: Api, endpoint: str):
    output = {"s3": {"bucket": "shared", "endpoint": endpoint}}
    refused(api.create(snapshot(ALL, output=output), user=TESS), "endpoint")


@pytest.mark.parametrize(
    "s3",
    [
        {"bucket": "shared", "endpoint": "https://a.s3.example.com"},
        {"bucket": "shared", "endpoint": "https://a.s3.example.com:443"},
        {"bucket": "team-net", "endpoint": "http://seaweed.example:8333"},
        {"bucket": "team-net"},
        {"bucket": "shared", "endpoint": ""},
    ],
)
def test_bundles_go_where_the_administrator_allows(api: Api, s3: dict[str, Any]):
    answer = api.create(snapshot(ALL, output={"s3": s3}), user=TESS)
    accepted(answer)


@pytest.mark.parametrize(
    "output",
    [
        {"s3": {"bucket": "finance"}},
        {"s3": {"bucket": "../shared"}},
        {"s3": {"bucket": "shared", "prefix": "../../other"}},
        {"s3": {"bucket": "shared", "prefix": "/etc"}},
        {"s3": {"bucket": "shared", "prefix": "a/./b"}},
        {"s3": {"bucket": "shared", "prefix": "a\nb"}},
        {"s3": {"bucket": "shared", "prefix": "$(NODE_NAME)"}},
        {"s3": {"bucket": "shared", "credentialsSecret": "kube-system/keys"}},
        {"s3": {"bucket": "shared", "credentialsSecret": "../keys"}},
        {"s3": {"bucket": "shared", "region": "eu; rm -rf /"}},
        {"s3": {"bucket": "shared", "kmsKeyId": "$(AWS_SECRET_ACCESS_KEY)"}},
        {"pvc": {"claimName": "other/claim"}},
        {"pvc": {"claimName": "claim", "subPath": "../../etc"}},
        {"pvc": {"claimName": "claim", "subPath": "/host"}},
        {"pvc": {"claimName": "claim"}, "s3": {"bucket": "shared"}},
        {},
    ],
    ids=str,
)
def test_outputs_name_no_other_place(api: Api, output: dict[str, Any]):
    refused(api.create(snapshot(ALL, output=output), user=TESS), "output")


# What runs on the nodes.


@pytest.mark.parametrize(
    "field",
    [
        "image",
        "command",
        "args",
        "env",
        "hostPath",
        "volumes",
        "tolerations",
        "serviceAccountName",
        "privileged",
        "nodeName",
    ],
)
@pytest.mark.parametrize("where", ["spec", "capture", "nodes"])
def test_no_field_says_what_runs(api: Api, field: str, where: str):
    asked = snapshot(dict(ALL), capture={})
    place = asked["spec"] if where == "spec" else asked["spec"][where]
    place[field] = "evil"
    refused(api.create(asked, user=TESS), "unknown field")
    kept = api.request("POST", SNAPSHOTS, asked, user=TESS)  # without strict validation
    accepted(kept)
    place = kept.body["spec"] if where == "spec" else kept.body["spec"][where]
    assert field not in place


@pytest.mark.parametrize(
    "spec",
    [
        {"nodes": {"names": ["$(hostname)"]}},
        {"nodes": {"names": ["a; reboot"]}},
        {"nodes": {"names": ["--flag"]}},
        {"nodes": {"names": ["a", "a"]}},
        {"nodes": {"names": []}},
        {"nodes": {"names": [f"n{i}" for i in range(1001)]}},
        {"nodes": {"names": [f"n{i}" for i in range(51)]}},
        {"nodes": {}},
        {"nodes": {"names": ["a"], "selector": {}}},
        {"nodes": {"selector": {"matchLabels": {"a,b": "c"}}}},
        {"nodes": {"selector": {"matchLabels": {"a": "b,c=d"}}}},
        {"nodes": {"selector": {"matchLabels": {f"k{i}": "v" for i in range(17)}}}},
        {
            "nodes": {
                "selector": {
                    "matchExpressions": [{"key": "a", "operator": "Exists", "values": [""]}]
                }
            }
        },
        {"nodes": {"selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}},
        {"nodes": {"pods": {"namespace": "*", "selector": {}}}},
        {"nodes": {"pods": {"namespace": "../kube-system", "selector": {}}}},
        {"nodes": {**ALL, "max": 1001}},
        {"nodes": {**ALL, "parallelism": -1}},
        {"nodes": ALL, "duration": "0s"},
        {"nodes": ALL, "duration": "5m1s"},
        {"nodes": ALL, "duration": "11m"},
        {"nodes": ALL, "duration": "1h"},
        {"nodes": ALL, "duration": "-5s"},
        {"nodes": ALL, "duration": "99999m999999s"},
        {"nodes": ALL, "duration": 60},
        {"nodes": ALL, "ttlAfterFinished": "169h"},
        {"nodes": ALL, "ttlAfterFinished": "10081m"},
        {"nodes": ALL, "capture": {"maxBytes": "17Gi"}},
        {"nodes": ALL, "capture": {"maxBytes": "1Ti"}},
        {"nodes": ALL, "capture": {"maxBytes": 1}},
        {"nodes": ALL, "capture": {"maxBytes": -1}},
        {"nodes": ALL, "capture": {"maxEvents": 10**9}},
        {"nodes": ALL, "capture": {"sample": 0}},
        {"nodes": ALL, "capture": {"ports": [0]}},
        {"nodes": ALL, "capture": {"ports": [65536]}},
        {"nodes": ALL, "capture": {"ports": list(range(1, 66))}},
        {"nodes": ALL, "capture": {"events": ["tcp", "payload"]}},
        {"nodes": ALL, "capture": {"events": []}},
        {"nodes": ALL, "capture": {"cri": "/run/evil.sock"}},
        {"nodes": ALL, "capture": {"backend": "BCC"}},
    ],
    ids=lambda spec: str(spec)[:60],
)
def test_specs_that_no_snapshot_has(api: Api, spec: dict[str, Any]):
    refused(api.create(snapshot(**spec), user=TESS))


@pytest.mark.parametrize(
    "metadata",
    [
        {"name": "a" * 64},
        {"name": "UPPER"},
        {"name": "a/../b"},
        {"labels": {"ktrace.io/snapshot-uid": "x"}},
        {"annotations": {"ktrace.io/node": "x"}},
        {"annotations": {"a": "x" * 300_000}},
    ],
    ids=lambda one: str(one)[:50],
)
def test_names_and_labels_that_are_not_theirs(api: Api, metadata: dict[str, Any]):
    refused(api.create(snapshot(ALL, metadata=metadata), user=TESS))


@pytest.mark.parametrize("size", [2_000_000, 10_000_000])
def test_megabytes_do_not_fit(api: Api, size: int):
    for asked in (
        snapshot({"names": ["n" * size]}),
        snapshot(ALL, metadata={"annotations": {"a": "x" * size}}),
    ):
        with contextlib.suppress(urllib3.exceptions.HTTPError):  # cut while it is being sent
            refused(api.create(asked, user=TESS))
        assert api.request("GET", f"{SNAPSHOTS}/{asked['metadata']['name']}").status == 404


def test_the_longest_generated_name_fits(api: Api):
    asked = snapshot(ALL)
    del asked["metadata"]["name"]
    asked["metadata"]["generateName"] = "g" * 200
    answer = api.create(asked, user=TESS)
    accepted(answer)
    assert len(answer.body["metadata"]["name"]) == 63


def test_thousands_of_snapshots_meet_the_quota(api: Api):
    key = "count/tracesnapshots.ktrace.io"
    quota: Thing = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "few", "namespace": AGENTS},
        "spec": {"hard": {key: "0"}},
    }
    path = f"{collection(quota)}/few"

    def counted() -> bool:
        """The controller learns of new kinds every 30 s, and looks at new quotas at once."""
        if "used" in api.request("GET", path).body.get("status", {}):
            return True
        api.delete(path)
        api.create(quota)
        return False

    wait_for(counted, "snapshots are not counted", 90, 2)
    try:
        refused(api.create(snapshot(ALL), user=TESS), "exceeded quota")
    finally:
        accepted(api.delete(path))
