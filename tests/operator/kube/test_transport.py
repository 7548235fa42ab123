# SPDX-License-Identifier: Apache-2.0
"""client.py and transport.py against a real HTTP server with the faults of real API servers."""

from datetime import UTC, datetime
from typing import Any

import kubernetes.client
import pytest

from ktrace_api.kubeobject import ObjectMeta
from ktrace_api.snapshot import LabelSelector
from ktrace_api.status import SnapshotStatus
from ktrace_operator.errors import (
    AlreadyExists,
    ApiError,
    Conflict,
    Denied,
    NotFound,
    Throttled,
    Unavailable,
)
from ktrace_operator.kube import transport
from ktrace_operator.kube.client import Kube, selector_text
from ktrace_operator.kube.rate_limit import TokenBucket
from ktrace_operator.kube.transport import Transport
from ktrace_operator.objects import AgentPod
from tests.operator.kube.http_server import Answer, Server, page

FINALIZERS = ("other/keeps", "ktrace.io/collect")
POD = AgentPod("agents", "pod", "uid-1", datetime(2026, 1, 24, tzinfo=UTC), finalizers=FINALIZERS)
META = ObjectMeta.model_validate(
    {
        "name": "snap",
        "namespace": "agents",
        "uid": "uid-2",
        "resourceVersion": "7",
        "creationTimestamp": "2026-01-24T21:57:54Z",
    }
)


def kube_at(url: str, **changes: Any) -> Kube:
    configuration = kubernetes.client.Configuration()
    configuration.host = url
    configuration.retries = False
    client = kubernetes.client.ApiClient(configuration)
    return Kube(Transport(client, TokenBucket(1000, 1000), **changes))


@pytest.fixture
def kube(server: Server) -> Kube:
    return kube_at(server.url)


def refusal(status: int, reason: str = "", message: str = "no", **headers: str) -> Answer:
    body = {"kind": "Status", "code": status, "reason": reason, "message": message}
    return status, body, {name.replace("_", "-"): value for name, value in headers.items()}


MANIFEST = {"metadata": {"name": "pod", "namespace": "agents", "labels": {"a": "b"}}}


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (refusal(400), Denied),
        (refusal(401), Denied),
        (refusal(403, "Forbidden", "exceeded quota: x, requested: pods=1"), Denied),
        (refusal(409, "Conflict"), Conflict),
        (refusal(422, "Invalid"), Denied),
        (refusal(429, "TooManyRequests", Retry_After="3"), Throttled),
        (refusal(500, "InternalError"), Unavailable),
        (refusal(503), Unavailable),
        (refusal(504, "Timeout"), Unavailable),
        ((502, b"<html>bad gateway</html>", {}), Unavailable),
        ((200, b"no JSON", {}), Unavailable),
        ((302, b"", {"Location": "http://127.0.0.1:1/"}), Unavailable),
    ],
)
def test_what_an_answer_to_a_create_means(
    server: Server, kube: Kube, answer: Answer, kind: type[ApiError]
):
    server.answer = lambda *_: answer
    with pytest.raises(ApiError) as caught:
        kube.create_agent(MANIFEST)
    assert type(caught.value) is kind
    assert len(server.asked) == 1, "a create is never sent again by itself"


def test_how_long_a_server_wants_us_to_wait(server: Server, kube: Kube):
    server.answer = lambda *_: refusal(429, "TooManyRequests", Retry_After="3")
    with pytest.raises(Throttled) as caught:
        kube.create_agent(MANIFEST)
    assert caught.value.retry_after == 3


def test_quota_and_the_end_of_a_namespace_are_told_apart(server: Server, kube: Kube):
    server.answer = lambda *_: refusal(403, "Forbidden", "exceeded quota: agents")
    with pytest.raises(Denied) as caught:
        kube.create_agent(MANIFEST)
    assert (caught.value.quota, caught.value.namespace_terminating) == (True, False)
    text = "unable to create new content in namespace x because it is being terminated"
    server.answer = lambda *_: refusal(403, "Forbidden", text)
    with pytest.raises(Denied) as caught:
        kube.create_agent(MANIFEST)
    assert (caught.value.quota, caught.value.namespace_terminating) == (False, True)


@pytest.mark.parametrize("ours", [True, False])
def test_a_pod_that_is_there_already_is_good_only_if_it_is_ours(
    server: Server, kube: Kube, ours: bool
):
    there = {"metadata": {"labels": {"a": "b", "more": "x"} if ours else {"a": "c"}}}
    server.answer = lambda method, *_: (
        (200, there, {}) if method == "GET" else refusal(409, "AlreadyExists")
    )
    if ours:
        assert kube.create_agent(MANIFEST) is False
    else:
        with pytest.raises(AlreadyExists):
            kube.create_agent(MANIFEST)


def test_a_status_is_written_only_over_what_was_read(server: Server, kube: Kube):
    kube.write_status(META, SnapshotStatus(observed_generation=1))
    method, path, _, body, headers = server.asked[0]
    assert (method, path.rsplit("/", 2)[1:]) == ("PATCH", ["snap", "status"])
    assert headers["Content-Type"] == "application/merge-patch+json"
    assert body["metadata"] == {"uid": "uid-2", "resourceVersion": "7"}
    server.answer = lambda *_: refusal(409, "Conflict")
    with pytest.raises(Conflict):
        kube.write_status(META, SnapshotStatus())


def test_a_status_that_is_not_valid_is_denied_and_no_conflict(server: Server, kube: Kube):
    text = 'status.results[0].events: Invalid value: "number"'
    server.answer = lambda *_: refusal(422, "Invalid", text)
    with pytest.raises(ApiError, match=r"results\[0\]\.events") as caught:
        kube.write_status(META, SnapshotStatus())
    assert type(caught.value) is Denied, "to read it again would change nothing"


def test_only_our_finalizer_goes_and_only_if_nothing_changed(server: Server, kube: Kube):
    kube.release(POD)
    _, _, _, patch, headers = server.asked[0]
    assert headers["Content-Type"] == "application/json-patch+json"
    assert patch[-1]["value"] == ["other/keeps"]
    assert {"op": "test", "path": "/metadata/uid", "value": "uid-1"} in patch
    server.answer = lambda *_: refusal(422, "Invalid", "the server rejected our request")
    with pytest.raises(Conflict):
        kube.release(POD)
    server.answer = lambda *_: refusal(404, "NotFound")
    kube.release(POD)


def test_what_is_gone_is_deleted(server: Server, kube: Kube):
    kube.delete_agent(POD)
    assert server.asked[0][3] == {"preconditions": {"uid": "uid-1"}}
    for status, reason in ((404, "NotFound"), (409, "Conflict")):
        server.answer = lambda *_, answer=(status, reason): refusal(*answer)
        kube.delete_agent(POD)


def test_what_is_not_there_is_none(server: Server, kube: Kube):
    server.answer = lambda *_: refusal(404, "NotFound")
    assert kube.snapshot("agents", "x") is None
    assert kube.node("x") is None
    assert kube.secret("agents", "x") is None
    assert kube.claim("agents", "x") is None
    assert kube.lease("agents", "x") is None
    with pytest.raises(NotFound):
        kube.write_status(META, SnapshotStatus())


def test_of_a_secret_only_the_metadata_is_asked_for(server: Server, kube: Kube):
    metadata = {"name": "keys", "labels": {"ktrace.io/credentials": "true"}}
    server.answer = lambda *_: (200, {"metadata": metadata}, {})
    secret = kube.secret("agents", "keys")
    assert secret is not None
    assert secret.usable
    assert "as=PartialObjectMetadata;" in server.asked[0][4]["Accept"]


def test_a_list_of_several_pages_that_expires_begins_anew(server: Server, kube: Kube):
    answers = iter([page(["a", "b"], "next"), refusal(410, "Expired"), page(["a", "b", "c"])])
    server.answer = lambda *_: next(answers)
    assert [node.name for node in kube.nodes()] == ["a", "b", "c"]
    assert server.asked[1][2]["continue"] == "next"


def test_a_cached_read_says_so_and_a_fresh_one_does_not(server: Server, kube: Kube):
    server.answer = lambda *_: page([])
    kube.agents("agents", "snap", fresh=False)
    kube.agents("agents", "snap", fresh=True)
    cached, fresh = (asked[2] for asked in server.asked)
    assert cached["resourceVersion"] == "0"
    assert "resourceVersion" not in fresh
    assert "ktrace.io/snapshot=snap" in fresh["labelSelector"]


def test_silence_is_unavailable(server: Server, kube: Kube, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transport, "WRITE_SECONDS", 0.2)

    def silent(*_: Any) -> Answer:
        server.hang.wait(30)
        return 200, {}, {}

    server.answer = silent
    with pytest.raises(Unavailable):
        kube.create_agent(MANIFEST)


def test_nobody_there_is_unavailable(server: Server):
    url = server.url
    server.close()
    with pytest.raises(Unavailable):
        kube_at(url).node("x")


def test_nothing_is_sent_without_the_lease(server: Server):
    def no(_seconds: float) -> None:
        raise Unavailable("the Lease was not renewed in time")

    with pytest.raises(Unavailable, match="Lease"):
        kube_at(server.url, may_write=no).create_agent(MANIFEST)
    assert not server.asked


def test_writes_are_paced_and_in_order():
    clock = [0.0]
    bucket = TokenBucket(10, 3, clock=lambda: clock[0])
    assert [bucket.reserve() for _ in range(3)] == [0, 0, 0]
    assert [round(bucket.reserve(), 6) for _ in range(3)] == [0.1, 0.2, 0.3]
    clock[0] = 10.0
    assert [bucket.reserve() for _ in range(3)] == [0, 0, 0]


def test_selectors_are_written_as_kubernetes_reads_them():
    selector = LabelSelector.model_validate(
        {
            "matchLabels": {"b": "2", "a": "1"},
            "matchExpressions": [
                {"key": "c", "operator": "In", "values": ["x", "y"]},
                {"key": "d", "operator": "NotIn", "values": ["z"]},
                {"key": "e", "operator": "Exists"},
                {"key": "f", "operator": "DoesNotExist"},
            ],
        }
    )
    assert selector_text(selector) == "a=1,b=2,c in (x,y),d notin (z),e,!f"
