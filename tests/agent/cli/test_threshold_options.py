# SPDX-License-Identifier: Apache-2.0
"""Thresholds by flag, file and variable, and the errors for wrong ones."""

import json
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrace_agent.cli.options import THRESHOLD, THRESHOLD_FILE
from ktrace_agent.cli.threshold_options import thresholds
from ktrace_agent.errors import UsageError
from ktrace_api.thresholds import Thresholds

PAGE = Path(__file__).parents[3] / "docs/thresholds.md"
TOML = "# why\ndns_slow_p50_us = 400_000\nlost_share = 0.5\n"


def refused(*pairs: str, file: Path | None = None) -> str:
    with pytest.raises(UsageError) as error:
        thresholds(pairs, None if file is None else str(file))
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("pair", ["nonsense=1", "=1", "dns_slow_p50=1", "DNS_SLOW_P50_US=1"])
def test_a_wrong_name_is_answered_with_all_names(pair: str):
    message = refused(pair)
    name = pair.split("=", maxsplit=1)[0] or "="
    assert message.startswith(f'--threshold: invalid threshold "{name}": use one of these names')
    for name in Thresholds.model_fields:
        assert re.search(rf"\b{name}\b", message)


@pytest.mark.parametrize(
    ("pair", "accepts"),
    [
        ("min_count=-1", "a whole number, 0 or more"),
        ("min_count=1.5", "a whole number, 0 or more"),
        ("dns_slow_p50_us=", "a whole number, 0 or more"),
        ("lost_share=1.1", "a number from 0 to 1"),
        ("lost_share=nan", "a number from 0 to 1"),
        ("syn_wait_s=3601", "a number from 0 to 3600"),
        ("syn_wait_s=soon", "a number from 0 to 3600"),
    ],
)
def test_a_wrong_value_is_answered_with_what_is_accepted(pair: str, accepts: str):
    assert refused(pair) == f'--threshold: invalid threshold "{pair}": use {accepts}'


@pytest.mark.parametrize("text", ["min_count", "", "min_count=3,", "5"])
def test_what_is_not_a_pair_is_refused(text: str):
    assert "use NAME=VALUE" in refused(text)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("min_count 3", "neither TOML nor JSON"),
        ('{"min_count": 3', "neither TOML nor JSON"),
        ("\udc80", "neither TOML nor JSON"),
        ("# " + "x" * 70_000, "is too large: use a TOML or JSON file of up to 64 KiB"),
        ("[min_count]\na = 1", "a whole number"),
        ('{"nonsense": 3}', "one of these names"),
        ("lost_share = 2", "from 0 to 1"),
        ("min_count = true", "a whole number"),
    ],
)
def test_a_wrong_file_is_named(content: str, text: str, tmp_path: Path):
    file = tmp_path / "limits"
    file.write_bytes(content.encode(errors="surrogateescape"))
    message = refused(file=file)
    assert message.startswith("--threshold-file: ")
    assert text in message


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    assert "No such file" in refused(file=tmp_path / "none")


def test_a_value_from_the_environment_names_its_variable(tmp_path: Path):
    options = (THRESHOLD, THRESHOLD_FILE)
    variables = {option.flag: option.variable for option in options}
    for option, pairs, file in zip(options, (["x=1"], []), (None, str(tmp_path)), strict=True):
        with pytest.raises(UsageError, match=rf"^{option.flag} \(from {option.variable}\): "):
            thresholds(pairs, file, variables)


@pytest.mark.parametrize("content", [TOML, '{"dns_slow_p50_us": 400000, "lost_share": 0.5}'])
def test_flags_stand_above_the_file_and_the_rest_keeps_its_default(content: str, tmp_path: Path):
    file = tmp_path / "limits"
    file.write_text(content)
    found = thresholds(["lost_share=0.25", "min_count=5, udp_drops=7"], str(file))
    given = {"dns_slow_p50_us": 400_000, "lost_share": 0.25, "min_count": 5, "udp_drops": 7}
    assert found == Thresholds(**given)


def test_nothing_given_is_the_default():
    assert thresholds([]) == Thresholds()


def outcome(*pairs: str, file: str | None = None) -> Thresholds | str:
    """The thresholds, or why there are none."""
    try:
        return thresholds(pairs, file)
    except UsageError as error:
        return str(error)


@given(st.text(max_size=40))
def test_any_text_is_taken_or_refused_in_one_line(text: str):
    found = outcome(text)
    assert isinstance(found, Thresholds) or "\n" not in found


@given(st.binary(max_size=200))
def test_any_file_is_taken_or_refused_in_one_line(content: bytes):
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        found = outcome(file=file.name)
    assert isinstance(found, Thresholds) or "\n" not in found


def test_the_page_names_every_threshold_with_its_default():
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    assert [(name, json.loads(value)) for name, value, _ in rows] == [
        (name, field.default) for name, field in Thresholds.model_fields.items()
    ]
    for (_, _, why), field in zip(rows, Thresholds.model_fields.values(), strict=True):
        assert why == " ".join((field.description or "").split())
