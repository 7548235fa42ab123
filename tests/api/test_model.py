# SPDX-License-Identifier: Apache-2.0
import pytest
from pydantic import ValidationError

from ktrace_api.assignment import SnapshotRef
from ktrace_api.capture import CaptureConfig
from ktrace_api.model import first_error


def test_the_first_error_names_the_path_and_the_value():
    with pytest.raises(ValidationError) as raised:
        CaptureConfig(node="n", ports="80,70000", sample=0)
    error = first_error(raised.value)
    assert (error.path, error.value) == (("ports", 1), "70000")
    assert error.line("the document") == f"ports.1: {error.message}"


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff", "\udc80"])
def test_an_input_without_fields_is_named_as_a_whole(text: str | bytes):
    with pytest.raises(ValidationError) as raised:
        SnapshotRef.model_validate_json(text)
    assert first_error(raised.value).line("the document").startswith("the document: ")
