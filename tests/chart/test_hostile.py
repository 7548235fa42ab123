# SPDX-License-Identifier: Apache-2.0
"""What somebody tries who may create TraceSnapshots, or more: each is refused, or does nothing.

The API server is a real one, with the chart's roles and policies; there are no nodes. What a
running operator and real agents make of it is in tests/cluster.
"""

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import urllib3

from tests.chart.apiserver import Answer, Api, User, collection, wait_for
from tests.chart.helm import NAMESPACE, Thing
from tests.chart.people import (
    AGENT,
    AGENTS,
    ALICE,
    MALLORY,
    NED,
    OPERATOR,
    ROOT,
    SHOP,
    TESS,
    agent,
    pod,
    snapshot,
)

pytestmark = pytest.mark.world("chart")

PODS = f"/api/v1/namespaces/{AGENTS}/pods"
SNAPSHOTS = f"/apis/ktrace.io/v1alpha1/namespaces/{AGENTS}/tracesnapshots"
ALL: dict[str, Any] = {"selector": {}}
LABELLED = {"matchLabels": {"app": "web"}}


def refused(answer: Answer, *words: str) -> None:
    assert answer.status in (400, 403, 413, 422), (answer.status, answer.message)
    for word in words:
        assert word in answer.message, answer.message


def accepted(answer: Answer) -> Thing:
    assert answer.ok, (answer.status, answer.message)
    return answer.body


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
        (ALICE, "kube-system", "may not list the pods of kube-system"),
        (NED, SHOP, "may not list the pods of shop"),
        (NED, None, "may not list the pods of ktrace-agents"),
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
    refused(api.create(snapshot(ALL, namespace=SHOP), user=user), "snapshots are made in")


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


# Results.


@pytest.fixture
def mine(api: Api) -> Thing:
    """A snapshot of tess's."""
    answer = api.create(snapshot(ALL), user=TESS)
    accepted(answer)
    return answer.body


def path_of(thing: Thing) -> str:
    return f"{SNAPSHOTS}/{thing['metadata']['name']}"


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
    refused(api.patch(path_of(mine), {"spec": change}, user=ROOT), "cannot be changed")


def test_a_stop_is_for_good(api: Api, mine: Thing):
    assert api.patch(path_of(mine), {"spec": {"stop": True}}, user=TESS).ok
    refused(api.patch(path_of(mine), {"spec": {"stop": False}}, user=TESS), "taken back")


def test_labels_of_ktrace_are_not_added_later(api: Api, mine: Thing):
    change = {"metadata": {"labels": {"ktrace.io/snapshot-uid": "x"}}}
    refused(api.patch(path_of(mine), change, user=TESS), "reserved")


# Pods that look like agents, and pods beside them.


@pytest.mark.parametrize(
    "metadata",
    [
        {"labels": {"ktrace.io/snapshot": "a"}},
        {"labels": {"ktrace.io/node-hash": "a"}},
        {"labels": {"app.kubernetes.io/managed-by": "ktrace-operator"}},
        {"finalizers": ["ktrace.io/collect"]},
        {"name": "snap-16d1be55-0123456789"},
    ],
    ids=str,
)
@pytest.mark.parametrize("user", [MALLORY, ROOT])
def test_nobody_but_the_operator_makes_agents(api: Api, user: User, metadata: dict[str, Any]):
    asked = pod()
    asked["metadata"] |= metadata
    refused(api.create(asked, user=user), "by the operator alone")


SECURITY: list[dict[str, Any]] = [
    {"privileged": True},
    {"capabilities": {"add": ["SYS_ADMIN"]}},
    {"capabilities": {"add": ["BPF"]}},
    {"procMount": "Unmasked"},
    {"seccompProfile": {"type": "Unconfined"}},
    {"appArmorProfile": {"type": "Unconfined"}},
    {"seLinuxOptions": {"type": "spc_t"}},
]
SPECS: list[dict[str, Any]] = [
    {"hostPID": True},
    {"hostNetwork": True},
    {"hostIPC": True},
    {"volumes": [{"name": "host", "hostPath": {"path": "/"}}]},
    {"volumes": [{"name": "run", "hostPath": {"path": "/run/containerd/containerd.sock"}}]},
    {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}},
    {"securityContext": {"seccompProfile": {"type": "Unconfined"}}},
    {"containers": [{"name": "a", "image": "b", "ports": [{"containerPort": 80, "hostPort": 80}]}]},
    *(
        {kind: [{"name": "a", "image": "b", "securityContext": one}], "hostUsers": False}
        for one in SECURITY
        for kind in ("containers", "initContainers")
    ),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: str(spec)[:70])
@pytest.mark.parametrize("user", [MALLORY, ROOT])
def test_pods_beside_agents_have_no_privilege(api: Api, user: User, spec: dict[str, Any]):
    refused(api.create(pod(**spec), user=user), "agents")


def test_a_pod_that_reads_bundles_from_a_claim_may_be_there(api: Api):
    claim = {"name": "bundles", "persistentVolumeClaim": {"claimName": "bundles"}}
    answer = api.create(pod(volumes=[claim]), user=MALLORY)
    accepted(answer)


def test_no_privileged_container_is_added_to_a_pod(api: Api):
    reader = api.create(pod(), user=MALLORY).body
    path = f"{PODS}/{reader['metadata']['name']}"
    debug = {"name": "debug", "image": "b", "securityContext": {"privileged": True}}
    change = {"spec": {"ephemeralContainers": [debug]}}
    refused(api.patch(f"{path}/ephemeralcontainers", change, user=ROOT), "other than agents")
    del debug["securityContext"]
    assert api.patch(f"{path}/ephemeralcontainers", change, user=ROOT).ok


def test_a_pod_does_not_become_an_agent(api: Api):
    reader = api.create(pod(), user=MALLORY).body
    path = f"{PODS}/{reader['metadata']['name']}"
    for change in (
        {"labels": {"ktrace.io/snapshot-uid": "x"}},
        {"finalizers": ["ktrace.io/collect"]},
    ):
        refused(api.patch(path, {"metadata": change}, user=ROOT))


@pytest.fixture
def running_agent(api: Api, mine: Thing) -> Thing:
    """An agent's pod as the operator makes it."""
    answer = api.create(agent(mine), user=OPERATOR)
    accepted(answer)
    return answer.body


@pytest.mark.parametrize("user", [MALLORY, ROOT, OPERATOR])
@pytest.mark.parametrize(
    "change",
    [
        {"metadata": {"labels": {"ktrace.io/snapshot-uid": None}}},
        {"metadata": {"labels": {"ktrace.io/snapshot": "another"}}},
        {"spec": {"containers": [{"name": "agent", "image": "evil"}]}},
        {"spec": {"activeDeadlineSeconds": 1}},
    ],
    ids=str,
)
def test_an_agent_stays_what_it_is(
    api: Api, running_agent: Thing, user: User, change: dict[str, Any]
):
    path = f"{PODS}/{running_agent['metadata']['name']}"
    answer = api.request(
        "PATCH", path, change, user=user, content_type="application/strategic-merge-patch+json"
    )
    refused(answer, "ValidatingAdmissionPolicy 'ktrace-")


def test_agents_are_let_go_and_collected(api: Api, running_agent: Thing):
    path = f"{PODS}/{running_agent['metadata']['name']}"
    assert api.patch(path, {"metadata": {"ownerReferences": None}}, user=ROOT).ok
    assert api.patch(path, {"metadata": {"finalizers": None}}, user=OPERATOR).ok
    assert api.delete(path).ok


@pytest.mark.parametrize("user", [MALLORY, ROOT, OPERATOR])
@pytest.mark.parametrize("way", ["exec?command=id", "attach", "portforward?ports=80", "proxy/"])
def test_nobody_enters_an_agent(api: Api, running_agent: Thing, user: User, way: str):
    path = f"{PODS}/{running_agent['metadata']['name']}/{way}"
    answer = api.request("GET" if "proxy" in way else "POST", path, user=user)
    refused(answer)
    if user is ROOT:
        assert "nobody enters an agent" in answer.message


def test_no_container_is_added_to_an_agent(api: Api, running_agent: Thing):
    path = f"{PODS}/{running_agent['metadata']['name']}/ephemeralcontainers"
    change = {"spec": {"ephemeralContainers": [{"name": "debug", "image": "b"}]}}
    refused(api.patch(path, change, user=ROOT), "no container is added")


def test_other_pods_may_be_entered(api: Api):
    reader = api.create(pod(), user=MALLORY).body
    path = f"{PODS}/{reader['metadata']['name']}/exec?command=id"
    answer = api.request("POST", path, user=MALLORY)
    assert answer.status not in (403, 404, 422), answer  # it runs nowhere: no policy says so


# A stolen token of the operator.


def _container(change: dict[str, Any]) -> Callable[[Thing], None]:
    return lambda thing: thing["spec"]["containers"][0].update(change)


def _spec(change: dict[str, Any]) -> Callable[[Thing], None]:
    return lambda thing: thing["spec"].update(change)


def _volume(volume: dict[str, Any], **mount: Any) -> Callable[[Thing], None]:
    def change(thing: Thing) -> None:
        thing["spec"]["volumes"].append({"name": "more", **volume})
        mounts = thing["spec"]["containers"][0]["volumeMounts"]
        mounts.append({"name": "more", "mountPath": "/more", **mount})

    return change


def _env(*entries: dict[str, Any]) -> Callable[[Thing], None]:
    return lambda thing: thing["spec"]["containers"][0]["env"].extend(entries)


def _writable(thing: Thing) -> None:
    thing["spec"]["containers"][0]["volumeMounts"][0]["readOnly"] = False


def _of(kind: str, uid: str = "16d1be55-4d13-4e2e-b4bd-89861e542501") -> Callable[[Thing], None]:
    return lambda thing: thing["metadata"]["ownerReferences"][0].update(kind=kind, uid=uid)


TOKEN = {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}
WHOLE: dict[str, Any] = {"secretRef": {"name": "keys"}}
FORGED: dict[str, Callable[[Thing], None]] = {
    "image": _container({"image": "evil"}),
    "command": _container({"command": ["sh"]}),
    "args": _container({"args": ["--evil"]}),
    "hook": _container({"lifecycle": {"preStop": {"exec": {"command": ["sh"]}}}}),
    "name": _container({"name": "shell"}),
    "whole-secret": _container({"envFrom": [WHOLE]}),
    "second-container": lambda thing: thing["spec"]["containers"].append(
        {"name": "b", "image": "ktrace-agent:0.1.0"}
    ),
    "init-container": _spec({"initContainers": [{"name": "b", "image": "evil"}]}),
    "preload": _env({"name": "LD_PRELOAD", "value": "/host/run/evil.so"}),
    "pythonpath": _env({"name": "PYTHONPATH", "value": "/host/run"}),
    "other-key": _env(
        {"name": "AWS_X", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "password"}}}
    ),
    "config-map": _env(
        {"name": "AWS_X", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}}
    ),
    "host-root": _volume({"hostPath": {"path": "/"}}, readOnly=True),
    "host-etc": _volume({"hostPath": {"path": "/etc"}}, readOnly=True),
    "host-below": _volume({"hostPath": {"path": "/run/credentials"}}, readOnly=True),
    "host-writable": _volume({"hostPath": {"path": "/run"}}),
    "first-mount-writable": _writable,
    "secret-volume": _volume({"secret": {"secretName": "keys"}}),
    "token-volume": _volume({"projected": {"sources": [TOKEN]}}),
    "token": _spec({"automountServiceAccountToken": True}),
    "account": _spec({"serviceAccountName": "default"}),
    "ipc": _spec({"hostIPC": True}),
    "no-deadline": _spec({"activeDeadlineSeconds": None}),
    "restarts": _spec({"restartPolicy": "Always"}),
    "no-owner": lambda thing: thing["metadata"].pop("ownerReferences"),
    "owned-by-a-pod": _of("Pod"),
    "owned-by-another": _of("TraceSnapshot"),
}


@pytest.mark.parametrize("name", FORGED)
def test_the_operators_token_makes_only_agents(api: Api, mine: Thing, name: str):
    asked = copy.deepcopy(agent(mine))
    assert api.create(asked, user=OPERATOR, dry_run=True).ok
    FORGED[name](asked)
    refused(api.create(asked, user=OPERATOR, dry_run=True), "ktrace-agents")


def test_a_token_for_a_cloud_is_no_token_for_the_cluster(api: Api, mine: Thing):
    asked = agent(mine)
    token = {"serviceAccountToken": {"path": "token", "audience": "sts.amazonaws.com"}}
    _volume({"projected": {"sources": [token]}}, readOnly=True)(asked)
    _env({"name": "AWS_WEB_IDENTITY_TOKEN_FILE", "value": "/more/token"})(asked)
    assert api.create(asked, user=OPERATOR, dry_run=True).ok


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/secrets"),
        ("GET", f"/api/v1/namespaces/{AGENTS}/secrets"),
        ("GET", "/api/v1/namespaces/kube-system/secrets/any"),
        ("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets/any"),
        ("GET", "/api/v1/pods"),
        ("GET", "/api/v1/nodes/node-a/proxy/"),
        ("PATCH", "/api/v1/nodes/node-a"),
        ("GET", f"{PODS}/any/log"),
        ("POST", f"/apis/ktrace.io/v1alpha1/namespaces/{AGENTS}/tracesnapshots"),
        ("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"),
        (
            "DELETE",
            "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/ktrace-agents",
        ),
        ("POST", f"/api/v1/namespaces/{NAMESPACE}/pods"),
        ("POST", "/api/v1/namespaces/kube-system/pods"),
        ("POST", f"/api/v1/namespaces/{AGENTS}/serviceaccounts/default/token"),
        ("GET", f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/another"),
        ("GET", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/any"),
    ],
)
def test_the_operators_token_opens_nothing_else(api: Api, method: str, path: str):
    bodies: dict[str, object] = {"POST": {}, "PATCH": {}}
    answer = api.request(
        method,
        path,
        bodies.get(method),
        user=OPERATOR,
        content_type="application/merge-patch+json" if method == "PATCH" else "application/json",
    )
    assert answer.status == 403, answer
    assert "cannot" in answer.message


def test_a_pod_of_another_kind_is_none_of_the_operators(api: Api):
    refused(api.create(pod(), user=OPERATOR), "no other pods")


@pytest.mark.parametrize("user", [AGENT, User.account(SHOP, "default")])
def test_the_agents_account_can_do_nothing(api: Api, user: User):
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": AGENTS},
    }
    path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    answer = api.request("POST", path, review, user=user)
    groups = {
        group for rule in answer.body["status"]["resourceRules"] for group in rule["apiGroups"]
    }
    assert groups <= {"authorization.k8s.io", "authentication.k8s.io"}


def test_a_tenant_does_not_give_themselves_the_operators_rights(api: Api):
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "mine", "namespace": AGENTS},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "Role",
            "name": "ktrace-operator",
        },
        "subjects": [{"kind": "User", "name": MALLORY.name}],
    }
    refused(api.create(binding, user=MALLORY), "ktrace.io")


def test_a_tenant_gets_no_token_of_the_operators(api: Api):
    path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/ktrace-operator/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    refused(api.request("POST", path, request, user=MALLORY), "cannot create")
