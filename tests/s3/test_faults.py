# SPDX-License-Identifier: Apache-2.0
"""Every way in which a delivery can fail ends in one line that says where and what to do."""

import time

import pytest

from ktrace_agent.sinks.parcel import Budget, Parcel
from ktrace_agent.sinks.s3 import PART_BYTES, PERMANENT_TRIES, S3
from ktrace_agent.sinks.s3_errors import S3Failed
from ktrace_api.assignment import S3Target

from .between import Line, answering, silent, unchanged
from .conftest import MakeParcel, MakeTarget, be
from .server import AGENT, BUCKET, READER, Identity, Server, free_ports

pytestmark = pytest.mark.world("s3")

LONG_S = 60.0
"""A limit that no permanent error waits for."""


def refused(target: S3Target, parcel: Parcel, seconds: float = LONG_S) -> tuple[str, list[str]]:
    """The message, and what was said on the way to it."""
    said: list[str] = []
    with pytest.raises(S3Failed) as failed:
        S3(target, Budget(seconds), said.append).deliver([parcel])
    message = str(failed.value)
    assert "\n" not in message
    assert len(message) < 200
    for secret in (AGENT.secret, READER.secret, "wrong-secret"):
        assert secret not in message + "".join(said)
    return message, said


def tries(said: list[str]) -> int:
    return 1 + sum("retrying" in line for line in said)


@pytest.mark.parametrize(
    ("who", "words"),
    [
        (Identity("NOBODY", "wrong-secret", ()), "rejects the access key"),
        (Identity(AGENT.key, "wrong-secret", ()), "rejects the signature"),
        (READER, f"access to bucket {BUCKET} at "),
    ],
)
def test_who_may_not_write_is_told_so_after_a_few_tries(
    server: Server,
    target: MakeTarget,
    parcel: MakeParcel,
    monkeypatch: pytest.MonkeyPatch,
    who: Identity,
    words: str,
):
    be(who, monkeypatch)
    begun = time.monotonic()
    message, said = refused(target(), parcel(100))
    assert words in message
    assert server.endpoint in message
    assert tries(said) == PERMANENT_TRIES
    assert time.monotonic() - begun < LONG_S / 2


def test_without_credentials_it_is_said_where_they_come_from(
    target: MakeTarget, parcel: MakeParcel, monkeypatch: pytest.MonkeyPatch
):
    be(None, monkeypatch)
    message, _ = refused(target(), parcel(100))
    assert f"no credentials found for bucket {BUCKET}" in message
    assert "AWS_ACCESS_KEY_ID" in message


def test_a_bucket_that_is_not_there_is_named(
    target: MakeTarget, parcel: MakeParcel, monkeypatch: pytest.MonkeyPatch
):
    be(Identity(AGENT.key, AGENT.secret, ()), monkeypatch)
    body = b"<Error><Code>NoSuchBucket</Code><Message>canary</Message></Error>"
    with answering(404, body) as endpoint:
        message, said = refused(target(bucket="nowhere", endpoint=endpoint), parcel(100))
    assert message == f"bucket nowhere at {endpoint} does not exist; create it or correct the name"
    assert tries(said) == PERMANENT_TRIES


def test_a_bucket_of_others_is_denied(target: MakeTarget, parcel: MakeParcel):
    message, _ = refused(target(bucket="nowhere"), parcel(100))
    assert "access to bucket nowhere at http://127.0.0.1" in message


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (400, "AuthorizationHeaderMalformed", "is in another region; set its region"),
        (301, "PermanentRedirect", "is in another region; set its region"),
        (403, "RequestTimeTooSkewed", "rejects the time of this node; set its clock"),
        (400, "ExpiredToken", "have expired; renew them"),
        (403, "AccessDenied", "allow s3:PutObject and s3:GetObject"),
        (400, "KMS.DisabledException", "cannot use its KMS key (KMS.DisabledException)"),
        (405, "MethodNotAllowed", "returns MethodNotAllowed; check bucket and endpoint"),
        (418, "<script>", "returns 418; check bucket and endpoint"),
    ],
)
def test_what_a_server_refuses_is_put_into_words(
    server: Server, target: MakeTarget, parcel: MakeParcel, status: int, code: str, words: str
):
    body = f"<Error><Code>{code}</Code><Message>canary {AGENT.secret}</Message></Error>".encode()
    with answering(status, body) as endpoint:
        message, said = refused(target(endpoint=endpoint), parcel(100))
    assert words in message
    assert "canary" not in message
    assert tries(said) == PERMANENT_TRIES


@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "SlowDown")])
def test_a_server_that_fails_is_tried_until_the_time_is_up(
    server: Server, target: MakeTarget, parcel: MakeParcel, status: int, code: str
):
    body = f"<Error><Code>{code}</Code></Error>".encode()
    with answering(status, body) as endpoint:
        message, said = refused(target(endpoint=endpoint), parcel(100), 8)
    assert f"{endpoint} " in message
    assert code in message or str(status) in message
    assert message.endswith("(gave up after 8 s)")
    assert tries(said) > PERMANENT_TRIES


def test_a_server_that_is_gone_is_tried_until_the_time_is_up(
    server: Server, target: MakeTarget, parcel: MakeParcel
):
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    begun = time.monotonic()
    message, said = refused(target(endpoint=endpoint), parcel(100), 5)
    assert "refuses the connection; check the endpoint and start the server" in message
    assert endpoint in message
    assert time.monotonic() - begun > 4
    assert tries(said) > 1


def test_a_name_that_does_not_resolve_is_told(
    server: Server, target: MakeTarget, parcel: MakeParcel
):
    message, _ = refused(target(endpoint="http://s3.ktrace.invalid"), parcel(100), 3)
    assert "cannot be resolved; check the endpoint and DNS" in message
    assert "http://s3.ktrace.invalid" in message


def test_a_server_that_says_nothing_does_not_hold_the_agent(
    server: Server, target: MakeTarget, parcel: MakeParcel
):
    with silent() as endpoint:
        message, _ = refused(target(endpoint=endpoint), parcel(100), 4)
    assert "does not answer in time; check the network" in message


@pytest.mark.parametrize("size", [10_007, 2 * PART_BYTES + 17])
def test_a_line_that_breaks_in_the_middle_is_no_end(
    server: Server, target: MakeTarget, parcel: MakeParcel, size: int
):
    sent = parcel(size)

    def cut(data: bytes, before: int) -> bytes | None:
        return None if before + len(data) > size // 2 else data

    with Line(server.port, cut) as line:
        to = target(endpoint=line.endpoint)

        def mend(text: str) -> None:
            if "retrying" in text:
                line.change = unchanged

        S3(to, Budget(LONG_S), mend).deliver([sent])
        assert line.change is unchanged
    assert server.get(f"{to.folder}/{sent.name}") == sent.path.read_bytes()


def test_a_line_that_always_breaks_is_told(server: Server, target: MakeTarget, parcel: MakeParcel):
    with Line(server.port, lambda data, before: None if before > 20_000 else data) as line:
        to = target(endpoint=line.endpoint)
        message, _ = refused(to, parcel(1_000_003), 5)
    assert "broke; check the network" in message
    assert server.keys(to.folder) == []


def test_what_is_changed_on_the_way_is_never_a_success(
    server: Server, target: MakeTarget, parcel: MakeParcel
):
    """A line that flips one byte of the content."""
    sent = parcel(40_009)
    inside = sent.path.read_bytes()[20_000:20_016]

    def lie(data: bytes, _: int) -> bytes:
        return data.replace(inside, inside[:-1] + bytes([inside[-1] ^ 1]))

    with Line(server.port, lie) as line:
        to = target(endpoint=line.endpoint)
        refused(to, sent, 4)
    assert server.keys(to.folder) == []


def test_a_key_that_is_taken_is_not_written_over(
    server: Server, target: MakeTarget, parcel: MakeParcel
):
    sent, to = parcel(1009), target()
    key = f"{to.folder}/{sent.name}"
    server.put(key, b"older")
    message, _ = refused(to, sent)
    assert f"{key} already exists in bucket {BUCKET} at {server.endpoint}" in message
    assert server.get(key) == b"older"


def test_what_arrived_without_its_answer_is_not_sent_again(
    server: Server, target: MakeTarget, parcel: MakeParcel
):
    sent, to = parcel(3 * PART_BYTES + 1), target()
    S3(to, Budget(LONG_S), lambda _: None).deliver([sent])
    key = f"{to.folder}/{sent.name}"
    first = server.admin.head_object(Bucket=BUCKET, Key=key)["LastModified"]
    with Line(server.port) as line:
        S3(target(endpoint=line.endpoint), Budget(LONG_S), lambda _: None).deliver([sent])
        assert line.bytes < 10_000
    assert server.admin.head_object(Bucket=BUCKET, Key=key)["LastModified"] == first


def test_a_certificate_that_nobody_vouches_for_is_told(
    server: Server, target: MakeTarget, parcel: MakeParcel
):
    message, said = refused(target(endpoint=server.tls_endpoint), parcel(100))
    assert message == (
        f"the certificate of {server.tls_endpoint} is not trusted; fix it or set AWS_CA_BUNDLE"
    )
    assert tries(said) == PERMANENT_TRIES
