# SPDX-License-Identifier: Apache-2.0
"""Parses `--sink=s3://BUCKET/PREFIX?endpoint=URL&region=NAME` into a target. No I/O."""

from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

from pydantic import ValidationError

from ktrace_agent.errors import UsageError
from ktrace_api.assignment import S3Target, node_folder
from ktrace_api.model import first_error
from ktrace_api.snapshot import S3Output

ACCEPTS = "s3://BUCKET/PREFIX?endpoint=https://HOST:PORT&region=NAME&pathStyle=true&kmsKeyId=KEY"
_OPTIONS = ("endpoint", "region", "pathStyle", "kmsKeyId")
_BOOLEANS = {"true": True, "false": False}
_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def parse(text: str, node: str, environ: Mapping[str, str], *, source: str = "--sink") -> S3Target:
    """Return the bucket and the folder of this node in it, PREFIX/node=NODE.

    If the address has no endpoint, AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL is used.
    Raises UsageError that names `source`, the invalid part and the accepted form.
    """
    try:
        url = urlsplit(text)
        pairs = parse_qsl(url.query, keep_blank_values=True, strict_parsing=True, max_num_fields=8)
    except ValueError:
        if "?" in text and not text.partition("?")[2]:
            return parse(text.removesuffix("?"), node, environ, source=source)
        raise _refused(source, "it is not an address") from None
    if url.scheme != "s3" or not url.netloc:
        raise _refused(source, "it does not begin with s3://BUCKET")
    if "@" in url.netloc or url.fragment:
        raise _refused(
            source,
            "it must not contain keys (set AWS_ACCESS_KEY_ID)",
        )
    options = dict(pairs)
    if unknown := [name for name in options if name not in _OPTIONS]:
        raise _refused(source, f"unknown option {unknown[0][:40]!r}")
    if len(options) != len(pairs):
        raise _refused(source, "an option is given twice")
    return _target(url.netloc, url.path.strip("/"), options, node, environ, source)


def _target(
    bucket: str,
    prefix: str,
    options: Mapping[str, str],
    node: str,
    environ: Mapping[str, str],
    source: str,
) -> S3Target:
    style = options.get("pathStyle", "false")
    if style not in _BOOLEANS:
        raise _refused(source, "pathStyle must be true or false")
    implied = next(filter(None, map(environ.get, _ENDPOINT_VARIABLES)), "")
    try:
        output = S3Output(
            bucket=bucket,
            prefix=prefix,
            region=options.get("region", ""),
            endpoint=options.get("endpoint", implied).rstrip("/"),
            path_style=_BOOLEANS[style],
            kms_key_id=options.get("kmsKeyId", ""),
        )
        folder = "/".join(filter(None, (prefix, node_folder(node))))
        return S3Target(output=output, folder=folder)
    except ValidationError as error:
        wrong = first_error(error).path[0]
        raise _refused(source, f"invalid {wrong}") from error


def _refused(source: str, why: str) -> UsageError:
    return UsageError(f"invalid {source}: {why}; use {ACCEPTS}")
