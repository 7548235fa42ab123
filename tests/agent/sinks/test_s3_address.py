# SPDX-License-Identifier: Apache-2.0
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrace_agent.errors import UsageError
from ktrace_agent.sinks import s3_address
from ktrace_api.assignment import S3Target

NODE = "etcd-1"


def parse(text: str, **environ: str) -> S3Target:
    return s3_address.parse(text, NODE, environ)


def test_a_bucket_alone_is_enough():
    target = parse("s3://traces")
    assert (target.output.bucket, target.output.prefix) == ("traces", "")
    assert target.folder == "node=etcd-1"
    assert (target.output.endpoint, target.output.region, target.output.path_style) == (
        "",
        "",
        False,
    )


def test_every_part_has_its_place():
    target = parse(
        "s3://traces/a/b/?endpoint=https://minio.example:9000/&region=eu-central-1"
        "&pathStyle=true&kmsKeyId=alias/traces"
    )
    output = target.output
    assert (output.bucket, output.prefix) == ("traces", "a/b")
    assert target.folder == "a/b/node=etcd-1"
    assert output.endpoint == "https://minio.example:9000"
    assert output.region == "eu-central-1"
    assert output.path_style
    assert output.kms_key_id == "alias/traces"


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_of_the_environment_is_the_default(variable: str):
    environ = {variable: "http://127.0.0.1:9000"}
    assert parse("s3://traces", **environ).output.endpoint == "http://127.0.0.1:9000"
    named = parse("s3://traces?endpoint=http://127.0.0.1:1", **environ)
    assert named.output.endpoint == "http://127.0.0.1:1"


WRONG = {
    "traces": "does not begin with s3://BUCKET",
    "http://traces": "does not begin with s3://BUCKET",
    "s3:///prefix": "does not begin with s3://BUCKET",
    "s3://": "does not begin with s3://BUCKET",
    "s3://key:secret@traces": "it must not contain keys",
    "s3://traces/a#b": "it must not contain keys",
    "s3://Traces": "invalid bucket",
    "s3://a": "invalid bucket",
    "s3://traces:80": "invalid bucket",
    "s3://traces/../x": "invalid prefix",
    "s3://traces/a//b": "invalid prefix",
    "s3://traces/.hidden": "invalid prefix",
    "s3://traces/a b": "invalid prefix",
    "s3://traces?endpoint=minio:9000": "invalid endpoint",
    "s3://traces?endpoint=http://u:p@minio": "invalid endpoint",
    "s3://traces?region=EU": "invalid region",
    "s3://traces?pathStyle=yes": "pathStyle must be true or false",
    "s3://traces?color=red": "unknown option 'color'",
    "s3://traces?region=a&region=b": "an option is given twice",
    "s3://traces?region": "it is not an address",
    "s3://traces?&".ljust(40, "&"): "it is not an address",
    "s3://[traces": "it is not an address",
}


@pytest.mark.parametrize(("text", "why"), WRONG.items())
def test_what_is_wrong_is_named_and_what_is_accepted(text: str, why: str):
    with pytest.raises(UsageError) as refused:
        parse(text)
    message = str(refused.value)
    assert message.startswith("invalid --sink: ")
    assert why in message
    assert message.endswith(f"use {s3_address.ACCEPTS}")
    assert "secret" not in message


PART = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.=-]{0,20}", fullmatch=True)


@given(
    bucket=st.from_regex(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", fullmatch=True),
    parts=st.lists(PART, max_size=4),
    region=st.from_regex(r"[a-z0-9-]{0,32}", fullmatch=True),
    style=st.booleans(),
)
def test_what_is_written_down_is_read(bucket: str, parts: list[str], region: str, style: bool):
    query = urlencode({"region": region, "pathStyle": str(style).lower()})
    target = parse(f"s3://{bucket}/{quote('/'.join(parts), safe='/=')}?{query}")
    assert target.output.bucket == bucket
    assert target.folder == "/".join([*parts, f"node={NODE}"])
    assert (target.output.region, target.output.path_style) == (region, style)


@given(st.text(max_size=80) | st.text(max_size=60).map("s3://".__add__))
def test_any_text_is_a_target_or_one_clear_line(text: str):
    try:
        answer = parse(text).folder
    except UsageError as error:
        answer = str(error)
    assert answer.endswith((f"node={NODE}", s3_address.ACCEPTS))
    assert "\n" not in answer
