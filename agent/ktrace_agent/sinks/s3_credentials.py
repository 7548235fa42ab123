# SPDX-License-Identifier: Apache-2.0
"""Credentials for S3 from the environment: corrected if that is safe, otherwise refused.

A Secret created with `echo KEY | base64` ends with a newline. S3 then reports a wrong signature,
which is misleading. Values are never shown.
"""

import re
from collections.abc import Mapping

from ktrace_agent.errors import SinkFailed

KEY_ID = "AWS_ACCESS_KEY_ID"
SECRET = "AWS_SECRET_ACCESS_KEY"  # noqa: S105 - the name of a variable
TOKEN = "AWS_SESSION_TOKEN"  # noqa: S105
_VARIABLES = {KEY_ID: "aws_access_key_id", SECRET: "aws_secret_access_key"}
_VISIBLE = re.compile(r"[\x21-\x7e]+")


def from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return arguments for boto3.Session; empty if boto3's own chain must find an identity.

    White space around a value is removed. Raises SinkFailed that names the variable if only one
    half of a pair is set, or if a value contains white space or control characters.
    """
    values = {name: environ.get(name, "").strip() for name in (KEY_ID, SECRET, TOKEN)}
    for name, value in values.items():
        if value and not _VISIBLE.fullmatch(value):
            raise SinkFailed(
                f"{name} contains white space or control characters; set it to the plain value"
            )
    if bool(values[KEY_ID]) != bool(values[SECRET]):
        given, missing = (KEY_ID, SECRET) if values[KEY_ID] else (SECRET, KEY_ID)
        raise SinkFailed(f"{given} is set without {missing}; set both or neither")
    if not values[KEY_ID]:
        return {}
    found = {argument: values[name] for name, argument in _VARIABLES.items()}
    return found | ({"aws_session_token": values[TOKEN]} if values[TOKEN] else {})


def scrub(text: str, environ: Mapping[str, str]) -> str:
    """Return the text without the secrets of the environment."""
    for name in (SECRET, TOKEN):
        if secret := environ.get(name, "").strip():
            text = text.replace(secret, "***")
    return text
