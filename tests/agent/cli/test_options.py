# SPDX-License-Identifier: Apache-2.0
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrace_agent.cli.options import CAPTURE, JSON, boolean, configure
from ktrace_agent.errors import UsageError
from ktrace_api.capture import GIB, KIB, MIB, CaptureConfig, Flag, Switch
from ktrace_api.names import EventKind

BY_PARAMETER = {option.parameter: option for option in CAPTURE}
WRONG = [
    ("duration", "0"),
    ("duration", "0s"),
    ("duration", "999ms"),
    ("duration", "10m1s"),
    ("duration", "-5s"),
    ("duration", "soon"),
    ("duration", ""),
    ("duration", "1e9"),
    ("duration", "9" * 5000),
    ("backend", "libbpf"),
    ("backend", ""),
    ("dns_only", "maybe"),
    ("dns_only", "2"),
    ("dns_only", ""),
    ("ports", "0"),
    ("ports", "65536"),
    ("ports", "80,"),
    ("ports", "80;443"),
    ("ports", "http"),
    ("ports", "-1"),
    ("ports", ",".join(str(port) for port in range(1, 66))),
    ("pods", "web-0"),
    ("pods", "6f2c7a0e-1111-4222-8333-44445555666"),
    ("pods", "6F2C7A0E-1111-4222-8333-444455556666"),
    ("pods", "0" * 32 + ","),
    ("pods", ",".join(f"{n:032x}" for n in range(257))),
    ("with_connect_latency", "no way"),
    ("with_retransmits", "tru"),
    ("with_security", "null"),
    ("with_cri", "maybe"),
    ("with_cri", "Enabled"),
    ("with_cri", ""),
    ("cri_socket", "run/x.sock"),
    ("cri_socket", "tcp://127.0.0.1:1"),
    ("cri_socket", "/a,"),
    ("cri_socket", ",".join(f"/{n}" for n in range(9))),
    ("with_conntrack", "auto"),
    ("sample", "0"),
    ("sample", "1000001"),
    ("sample", "1.5"),
    ("sample", "ten"),
    ("max_events", "0"),
    ("max_events", "10000001"),
    ("max_events", "many"),
    ("max_bytes", "1023KiB"),
    ("max_bytes", "17GiB"),
    ("max_bytes", "64 megabytes"),
    ("max_bytes", "-1"),
    ("node", ""),
    ("node", "-a"),
    ("node", "a/b"),
    ("node", "a b"),
    ("node", "ä"),
    ("node", "a\n"),
    ("node", "x" * 254),
    ("ring_bytes", "4095"),
    ("ring_bytes", "257MiB"),
    ("ring_bytes", "x"),
    ("max_sockets", "0"),
    ("max_sockets", "1048577"),
    ("max_sockets", "x"),
    ("max_flows", "0"),
    ("max_flows", "1048577"),
    ("max_flows", "x"),
]


def config(**values: str) -> CaptureConfig:
    return configure({"node": "n1", **values})


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_names_the_flag_the_value_and_what_is_accepted(name: str, value: str):
    with pytest.raises(UsageError) as refused:
        config(**{name: value})
    message = str(refused.value)
    flag = BY_PARAMETER[name]
    assert message.startswith((f"{flag.flag}: invalid {flag.noun} ", f"{flag.flag}: empty value"))
    assert message.endswith(f": use {flag.accepts}")
    assert "\n" not in message
    assert len(message) < 220


def test_every_flag_has_wrong_values_in_this_test():
    assert {name for name, _ in WRONG} == set(BY_PARAMETER)


def test_a_value_from_the_environment_names_its_variable():
    with pytest.raises(UsageError, match=r'^--sample \(from KTRACE_SAMPLE\): invalid number "x": '):
        configure({"node": "n", "sample": "x"}, {"--sample": "KTRACE_SAMPLE"})


def test_only_the_wrong_item_of_a_list_is_repeated():
    with pytest.raises(UsageError, match=r'^--ports: invalid port number "70000": '):
        config(ports="80,70000,443")


@pytest.mark.parametrize(
    ("name", "value", "field", "wanted"),
    [
        ("duration", "1s", "duration", timedelta(seconds=1)),
        ("duration", "1m30s", "duration", timedelta(seconds=90)),
        ("duration", "10m", "duration", timedelta(minutes=10)),
        ("duration", "90", "duration", timedelta(seconds=90)),
        ("dns_only", "true", "dns_only", True),
        ("dns_only", "False", "dns_only", False),
        ("ports", "1,65535", "ports", (1, 65535)),
        ("ports", "80, 443,80", "ports", (80, 443)),
        ("ports", "", "ports", ()),
        ("with_security", "false", "security", False),
        ("sample", "1000000", "sample", 1_000_000),
        ("max_events", "10000000", "max_events", 10_000_000),
        ("max_bytes", "1MiB", "max_bytes", MIB),
        ("max_bytes", "16GiB", "max_bytes", 16 * GIB),
        ("node", "x" * 253, "node", "x" * 253),
        ("ring_bytes", "4KiB", "ring_bytes", 4 * KIB),
        ("ring_bytes", "256MiB", "ring_bytes", 256 * MIB),
        ("max_sockets", "1048576", "max_sockets", 1_048_576),
        ("max_flows", "1048576", "max_flows", 1_048_576),
    ],
)
def test_what_the_help_says_is_accepted_is(name: str, value: str, field: str, wanted: object):
    if name == "ports" and value == "80, 443,80":
        assert set(getattr(config(ports=value), field)) == {80, 443}
        return
    assert getattr(config(**{name: value}), field) == wanted


def test_defaults_are_those_of_the_model():
    assert config() == CaptureConfig(node="n1")


def test_every_default_in_the_help_is_accepted_and_is_the_default():
    in_words = {"ports", "pods", "cri_socket", "node"}
    typed = {one.parameter: one.default for one in CAPTURE if one.parameter not in in_words}
    assert config(**typed) == CaptureConfig(node="n1")


def test_every_field_has_a_flag_or_is_known_to_have_none():
    without = {
        name
        for name, field in CaptureConfig.model_fields.items()
        if not any(isinstance(one, Flag | Switch) for one in field.metadata)
    }
    assert without == {"schema_version", "thresholds"}  # --threshold sets these


@pytest.mark.parametrize(
    ("latency", "retransmits", "left"),
    [
        ("true", "true", set(EventKind)),
        ("false", "true", {EventKind.TCP, EventKind.UDP, EventKind.RETRANSMIT}),
        ("true", "no", {EventKind.TCP, EventKind.UDP, EventKind.CONNECT}),
        ("0", "off", {EventKind.TCP, EventKind.UDP}),
    ],
)
def test_with_flags_choose_the_events(latency: str, retransmits: str, left: set[EventKind]):
    found = config(with_connect_latency=latency, with_retransmits=retransmits)
    assert set(found.events) == left


@pytest.mark.parametrize("text", ["true", "TRUE", "yes", "on", "1", " true "])
def test_words_for_true(text: str):
    assert boolean(JSON, text, {})


@given(st.sampled_from(sorted(BY_PARAMETER)), st.text(max_size=60))
def test_any_text_is_accepted_or_refused_in_one_line(name: str, value: str):
    message = ""
    try:
        config(**{name: value})
    except UsageError as error:
        message = str(error)
    assert not message or message.startswith(BY_PARAMETER[name].flag)
    assert len(message.splitlines()) <= 1
