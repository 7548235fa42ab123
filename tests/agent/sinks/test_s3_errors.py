# SPDX-License-Identifier: Apache-2.0
"""Every error of a delivery to S3 is one line with the next step, and has the right patience."""

from typing import Any

import pytest
from botocore import exceptions as boto
from syrupy.assertion import SnapshotAssertion

from ktrace_agent.sinks.s3_errors import Place, S3Failed, explain
from ktrace_api.snapshot import S3Output

PLACE = Place(S3Output(bucket="traces", endpoint="http://minio:9000"))
ANSWERS = {
    "AccessDenied": 403,
    "AuthorizationHeaderMalformed": 400,
    "ExpiredToken": 400,
    "InternalError": 500,
    "InvalidAccessKeyId": 403,
    "KMS.DisabledException": 400,
    "NoSuchBucket": 404,
    "RequestTimeTooSkewed": 403,
    "SignatureDoesNotMatch": 403,
    "SlowDown": 503,
    "TeaPot": 418,
    "a text\nof the server": 400,
}
URL = {"endpoint_url": "http://minio:9000"}
WITHOUT_ANSWER: dict[str, Exception] = {
    "certificate": boto.SSLError(error=OSError("x"), **URL),
    "no credentials": boto.NoCredentialsError(),
    "no metadata": boto.CredentialRetrievalError(provider="x", error_msg="x"),
    "silent": boto.ReadTimeoutError(**URL),
    "unresolved": boto.EndpointConnectionError(error="Name does not resolve", **URL),
    "refused": boto.EndpointConnectionError(error="Connection refused", **URL),
    "unreachable": boto.EndpointConnectionError(error="No route to host", **URL),
    "broken": boto.HTTPClientError(error="x"),
    "odd": boto.UnknownServiceError(service_name="x", known_service_names="x"),
    "redirected without end": RecursionError(),
    "unreadable bundle": OSError(5, "Input/output error"),
}


def answered(code: str, status: int) -> boto.ClientError:
    response: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return boto.ClientError(response, "PutObject")


def lines(errors: dict[str, Exception]) -> str:
    found = {name: explain(error, PLACE) for name, error in errors.items()}
    for one in found.values():
        assert "\n" not in str(one)
    return "\n".join(
        f"{name!r} {'permanent' if one.permanent else 'temporary'}: {one}"
        for name, one in found.items()
    )


def test_what_a_server_answers(snapshot: SnapshotAssertion):
    assert lines({code: answered(code, status) for code, status in ANSWERS.items()}) == snapshot


def test_what_happens_without_an_answer(snapshot: SnapshotAssertion):
    assert lines(WITHOUT_ANSWER) == snapshot


@pytest.mark.parametrize("status", [301, 307])
def test_a_redirect_is_another_region(status: int):
    failed = explain(answered("", status), PLACE)
    assert "another region" in str(failed)
    assert failed.code == str(status)


def test_an_error_is_explained_once_and_others_pass():
    failed = S3Failed("x", permanent=True)
    assert explain(failed, PLACE) is failed
    with pytest.raises(KeyError):
        explain(KeyError("x"), PLACE)


def test_aws_is_named_by_its_region():
    output = S3Output(bucket="traces", region="eu-west-1")
    assert str(Place(output)) == "bucket traces at S3 (eu-west-1)"
