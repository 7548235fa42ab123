# SPDX-License-Identifier: Apache-2.0
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ktrace_api.capture import CaptureConfig, format_duration, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("1m30s", 90), ("10m", 600), ("45", 45), ("1.5s", 1.5), (7, 7), (" 2m ", 120)],
)
def test_durations(text: object, seconds: float):
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "s", "1x", "-3s", "1s2m", "1e3s", "9" * 30 + "s"])
def test_what_is_no_duration(text: str):
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@given(st.text(max_size=30))
def test_any_text_is_a_duration_or_a_plain_error(text: str):
    try:
        found = parse_duration(text)
    except ValueError as error:
        found = error
    assert isinstance(found, timedelta) or "expected a duration" in str(found)


@given(st.integers(1, 600))
def test_durations_are_read_back(seconds: int):
    assert parse_duration(format_duration(timedelta(seconds=seconds))) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64MiB", 64 << 20),
        ("256Mi", 256 << 20),
        ("10MB", 10**7),
        ("1k", 1000),
        ("4Ki", 4096),
        ("2G", 2 * 10**9),
        ("77", 77),
    ],
)
def test_sizes(text: str, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1.5M", "1i", "1T", "1MiBs"])
def test_what_is_no_size(text: str):
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


@given(st.integers(0, 2**40), st.sampled_from(["", "k", "M", "G"]), st.sampled_from(["", "i"]))
def test_sizes_follow_their_unit(number: int, unit: str, binary: str):
    if binary and not unit:
        return
    base = 1024 if binary else 1000
    assert parse_size(f"{number}{unit}{binary}B") == number * base ** " kMG".index(unit or " ")


def test_a_config_survives_json():
    config = CaptureConfig(node="n-1", duration="1m30s", ports="80,443", max_bytes="64MiB")
    assert CaptureConfig.model_validate_json(config.model_dump_json()) == config
    assert config.ports == (80, 443)


@pytest.mark.parametrize(
    "wrong",
    [
        {"duration": "0"},
        {"duration": "11m"},
        {"ports": "0"},
        {"ports": "65536"},
        {"sample": 0},
        {"node": "-x"},
        {"node": "a/b"},
        {"max_bytes": "1KiB"},
        {"surprise": 1},
    ],
)
def test_wrong_values_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValidationError):
        CaptureConfig(**{"node": "n", **wrong})
