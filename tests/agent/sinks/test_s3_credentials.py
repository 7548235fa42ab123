# SPDX-License-Identifier: Apache-2.0
import pytest

from ktrace_agent.errors import SinkFailed
from ktrace_agent.sinks import s3_credentials

KEY, SECRET = "AKIAEXAMPLE", "wJalr/canary+secret="


def environ(key: str = KEY, secret: str = SECRET, **more: str) -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, **more}


def test_nothing_given_leaves_the_choice_to_boto3():
    assert s3_credentials.from_environment({}) == {}
    assert s3_credentials.from_environment(environ(" ", "\n")) == {}


@pytest.mark.parametrize(("before", "after"), [("", "\n"), (" ", ""), ("\t", "\r\n"), ("", "")])
def test_white_space_around_a_value_is_dropped(before: str, after: str):
    given = environ(before + KEY + after, before + SECRET + after, AWS_SESSION_TOKEN=f"t{after}")
    assert s3_credentials.from_environment(given) == {
        "aws_access_key_id": KEY,
        "aws_secret_access_key": SECRET,
        "aws_session_token": "t",
    }


@pytest.mark.parametrize("inside", ["\n", " ", "\x00", "\x7f", "é"])
@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_what_cannot_be_a_key_is_refused_without_being_shown(name: str, inside: str):
    given = environ() | {name: f"canary{inside}value"}
    with pytest.raises(SinkFailed, match=f"^{name} contains white space") as refused:
        s3_credentials.from_environment(given)
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
    ],
)
def test_half_a_pair_is_refused(given: str, missing: str):
    with pytest.raises(SinkFailed, match=f"^{given} is set without {missing}"):
        s3_credentials.from_environment({given: "x"})


def test_secrets_are_taken_out_of_a_text():
    given = environ(secret=f"{SECRET}\n", AWS_SESSION_TOKEN="token-canary")
    text = f"{KEY}: Bearer {SECRET}, token-canary, {SECRET}"
    assert s3_credentials.scrub(text, given) == f"{KEY}: Bearer ***, ***, ***"
    assert s3_credentials.scrub(text, {}) == text
