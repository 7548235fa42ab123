# SPDX-License-Identifier: Apache-2.0
"""What is derived from the fields of CaptureConfig: words, and the fields of the CRD."""

import pytest

from ktrace_api.capture import CaptureConfig
from ktrace_api.options import accepted, bound, default_text, noun
from ktrace_api.snapshot import CaptureSpec, SnapshotSpec


@pytest.mark.parametrize(
    ("name", "kind", "words", "default"),
    [
        ("duration", "duration", "1s to 10m", "60s"),
        ("dns_only", "boolean", "true or false", "false"),
        ("ports", "port number", "up to 64 port numbers from 1 to 65535", "all"),
        ("cri", "value", "auto, true or false", "auto"),
        ("backend", "backend", "auto, core or bcc", "auto"),
        ("max_events", "number", "a whole number from 1 to 10000000", "200000"),
        ("max_bytes", "size", "1MiB to 16GiB", "256MiB"),
        ("ring_bytes", "size", "4KiB to 256MiB", "8MiB"),
    ],
)
def test_words_follow_from_the_field(name: str, kind: str, words: str, default: str):
    field = CaptureConfig.model_fields[name]
    assert (noun(field), accepted(field), default_text(field)) == (kind, words, default)


@pytest.mark.parametrize("name", ["duration", *CaptureSpec.model_fields])
def test_a_field_of_the_crd_has_the_bounds_of_the_option(name: str):
    model = SnapshotSpec if name == "duration" else CaptureSpec
    field, option = model.model_fields[name], CaptureConfig.model_fields[name]
    for kind in ("ge", "le", "min_length", "max_length"):
        assert bound(field, kind) == bound(option, kind)


def test_the_default_spec_is_the_default_capture():
    assert CaptureConfig(node="n", **CaptureSpec().config()) == CaptureConfig(node="n")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"cri": "Enabled"}, {"cri": "true"}),
        ({"backend": "Bcc"}, {"backend": "bcc"}),
        ({"cri": "Disabled", "sample": 7}, {"cri": "false", "sample": 7}),
        ({"maxBytes": "64Mi", "ports": [53]}, {"max_bytes": 2**26, "ports": (53,)}),
    ],
)
def test_options_of_a_spec_become_those_of_a_capture(
    given: dict[str, object], expected: dict[str, object]
):
    found = CaptureConfig(node="n", **CaptureSpec.model_validate(given).config())
    assert found == CaptureConfig.model_validate({"node": "n", **expected})
