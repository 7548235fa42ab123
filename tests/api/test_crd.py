# SPDX-License-Identifier: Apache-2.0
"""The CRD says what the models say; what only an API server can judge is in tests/chart."""

import copy
import string
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter, ValidationError

from ktrace_api.crd import definition, render, structural
from ktrace_api.kubeobject import LABEL_KEY, Folder
from ktrace_api.snapshot import SnapshotSpec
from ktrace_api.status import SnapshotStatus

ROOT = Path(__file__).resolve().parent.parent.parent
[VERSION] = definition()["spec"]["versions"]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]
SPEC, STATUS = SCHEMA["properties"]["spec"], SCHEMA["properties"]["status"]
ASCII = string.ascii_letters + string.digits + string.punctuation + " "


@pytest.mark.parametrize("path", ["crds", "charts/ktrace/crds"])
def test_files_are_what_the_models_say(path: str):
    text = (ROOT / path / "TraceSnapshot.yaml").read_text()
    assert text == render(), "run `make generate`"


def fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema below this one, with its path."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from fields(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from fields(schema[key], f"{path}[]")


OWN = [*fields(SPEC, "spec"), *fields(STATUS, "status")]


@pytest.mark.parametrize(("path", "schema"), OWN, ids=[path for path, _ in OWN])
def test_every_field_is_bounded_and_described(path: str, schema: dict[str, Any]):
    assert path.endswith("[]") or len(schema["description"]) > 5
    assert "\n" not in schema.get("description", "")
    assert set(schema) & {"$ref", "title", "oneOf", "allOf", "patternProperties"} == set()
    match schema.get("type"):
        case "string":
            assert "enum" in schema or "maxLength" in schema or schema.get("format") == "date-time"
        case "array":
            assert "maxItems" in schema
            assert "x-kubernetes-list-type" in schema
        case "object":
            assert "properties" in schema or "maxProperties" in schema
        case "integer":
            assert "minimum" in schema or path == "status.observedGeneration"
        case None:
            assert schema["x-kubernetes-int-or-string"] is True
            assert "maxLength" in schema
        case other:
            assert other == "boolean"


def test_an_object_that_nobody_looked_at_is_not_taken_for_done():
    assert STATUS["default"] == {"observedGeneration": -1}
    assert all("default" not in child for path, child in OWN if path.startswith("status."))


def test_people_see_the_columns_that_the_design_names():
    columns = {one["name"].upper(): one.get("priority", 0) for one in columns_of()}
    assert columns == {
        "PHASE": 0,
        "NODES": 0,
        "OK": 0,
        "FAILED": 0,
        "FINDINGS": 0,
        "PATH": 1,
        "AGE": 0,
    }
    for column in columns_of():
        first, *rest = column["jsonPath"].removeprefix(".").replace("[0]", "").split(".")
        schema = SCHEMA["properties"][first]
        for name in rest if first != "metadata" else ():
            schema = (schema.get("items") or schema)["properties"][name]


def columns_of() -> list[dict[str, Any]]:
    return VERSION["additionalPrinterColumns"]


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        {"type": "string", "const": "x"},
        {"type": "object", "not": {}},
        {"type": "string", "ge": "PT0S"},
    ],
    ids=["union", "const", "not", "leaked-constraint"],
)
def test_what_has_no_place_in_a_structural_schema_is_refused(schema: dict[str, Any]):
    with pytest.raises(ValueError, match="not possible in a structural schema"):
        structural(schema)


# Objects that the schema admits. Rules in CEL span fields or units, so what they admit is drawn
# by hand: (path of the field) -> strategy.
SELECTOR_KEYS = st.from_regex(LABEL_KEY, fullmatch=True, alphabet=ASCII).filter(
    lambda key: len(key) <= 317
)
BY_RULE: dict[str, st.SearchStrategy[Any]] = {
    "duration": st.integers(1, 600).map(lambda n: f"{n}s")
    | st.tuples(st.integers(0, 9), st.integers(1, 60)).map(lambda t: f"{t[0]}m{t[1]}s"),
    "ttlAfterFinished": st.integers(0, 604_800).map(lambda n: f"{n}s"),
    "maxBytes": st.sampled_from([2**20, "1Mi", "16Gi", "2M", "1048576", 16 * 2**30, "2000k"]),
    "stop": st.booleans(),
}


def drawn(schema: dict[str, Any], name: str = "") -> st.SearchStrategy[Any]:
    """Values that a schema admits."""
    if name in BY_RULE:
        return BY_RULE[name]
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema["type"] == "boolean":
        return st.booleans()
    if schema["type"] == "integer":
        return st.integers(schema.get("minimum", -1), schema.get("maximum", 2**53))
    if schema["type"] == "string":
        return text_of(schema)
    return list_of(schema) if schema["type"] == "array" else object_of(schema, name)


def list_of(schema: dict[str, Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(
        drawn(schema["items"]),
        min_size=schema.get("minItems", 0),
        max_size=min(schema["maxItems"], 4),
        unique=schema["x-kubernetes-list-type"] == "set",
    )


def text_of(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    longest, shortest = schema.get("maxLength", 64), schema.get("minLength", 0)
    if schema.get("format") == "date-time":
        return st.integers(0, 2**32).map(
            lambda second: datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        )
    if "pattern" not in schema:
        return st.text(min_size=shortest, max_size=longest)
    found = st.from_regex(schema["pattern"], fullmatch=True, alphabet=ASCII)
    return found.filter(lambda text: shortest <= len(text) <= longest)


def object_of(schema: dict[str, Any], name: str) -> st.SearchStrategy[dict[str, Any]]:
    if "additionalProperties" in schema:
        return st.dictionaries(SELECTOR_KEYS, drawn(schema["additionalProperties"]), max_size=3)
    required = set(schema.get("required", ()))
    children = {key: drawn(child, key) for key, child in schema["properties"].items()}
    if name == "nodes" and "selector" in children:
        return one_of(children, "names", "selector", "pods")
    if name == "output":
        return one_of(children, "s3", "pvc")
    if "operator" in children:
        values = children.pop("values").filter(bool)
        wanted = st.fixed_dictionaries({**children, "values": values}).filter(
            lambda one: one["operator"] in ("In", "NotIn")
        )
        other = st.fixed_dictionaries(children).filter(lambda one: "Exist" in one["operator"])
        return wanted | other
    return st.fixed_dictionaries(
        {key: child for key, child in children.items() if key in required},
        optional={key: child for key, child in children.items() if key not in required},
    )


def one_of(children: dict[str, Any], *forms: str) -> st.SearchStrategy[dict[str, Any]]:
    rest = {key: child for key, child in children.items() if key not in forms}
    return st.one_of(
        [st.fixed_dictionaries({form: children[form]}, optional=rest) for form in forms]
    )


def admitted(schema: dict[str, Any], value: object) -> bool:
    return bool(Draft202012Validator(schema).is_valid(value))


def modelled(model: type[SnapshotSpec] | type[SnapshotStatus], value: object) -> bool:
    try:
        model.model_validate(value)
    except ValidationError:
        return False
    return True


@given(drawn(SPEC))
def test_a_spec_that_the_crd_admits_is_one_for_the_model(spec: dict[str, Any]):
    assert admitted(SPEC, spec)
    SnapshotSpec.model_validate(spec)


@given(drawn(SPEC))
def test_a_spec_of_the_model_is_one_for_the_crd(spec: dict[str, Any]):
    written = SnapshotSpec.model_validate(spec).to_json()
    assert admitted(SPEC, written)
    assert SnapshotSpec.model_validate(written) == SnapshotSpec.model_validate(spec)


@given(drawn(STATUS))
def test_a_status_that_the_crd_admits_is_one_for_the_model_and_back(status: dict[str, Any]):
    assert admitted(STATUS, status)
    written = SnapshotStatus.model_validate(status).to_json()
    assert admitted(STATUS, written)
    assert SnapshotStatus.model_validate(written) == SnapshotStatus.model_validate(status)


def defaulted(schema: dict[str, Any], value: Any) -> Any:
    """What the API server stores: defaults filled in, also inside of those filled in."""
    if isinstance(value, dict) and "properties" in schema:
        filled = dict(value)
        for name, child in schema["properties"].items():
            if name not in filled and "default" in child:
                filled[name] = copy.deepcopy(child["default"])
            if name in filled:
                filled[name] = defaulted(child, filled[name])
        return filled
    if isinstance(value, list):
        return [defaulted(schema["items"], one) for one in value]
    return value


@given(drawn(SPEC))
def test_defaults_of_the_crd_are_those_of_the_model(spec: dict[str, Any]):
    filled = defaulted(SPEC, spec)
    assert admitted(SPEC, filled)
    assert SnapshotSpec.model_validate(filled) == SnapshotSpec.model_validate(spec)


def places(schema: dict[str, Any], value: Any) -> Iterator[tuple[Any, Any, dict[str, Any]]]:
    """(container, key, schema) of everything inside a value."""
    if isinstance(value, dict):
        for key, child in value.items():
            below = schema.get("properties", {}).get(key) or schema["additionalProperties"]
            yield value, key, below
            yield from places(below, child)
    elif isinstance(value, list):
        for key, child in enumerate(value):
            yield value, key, schema["items"]
            yield from places(schema["items"], child)


def violations(schema: dict[str, Any]) -> list[Any]:
    """Values that a schema refuses, one for each keyword that it has."""
    if "enum" in schema:
        return ["no such value", 7]
    if schema.get("type") == "boolean":
        return ["perhaps", []]
    if schema.get("type") in ("object", "array"):
        other: list[Any] = [7, [] if schema["type"] == "object" else {}]
        return [*other, []] if "minItems" in schema else other
    if schema.get("type") == "integer":
        found = ["many", schema.get("minimum", 0) - 1]
        return [*found, schema["maximum"] + 1] if "maximum" in schema else found
    found = [[], {}]
    if "maxLength" in schema:
        found.append("a" * (schema["maxLength"] + 1))
    if "pattern" in schema:
        found += ["a\x00", "/../", " "]
    return found


@given(drawn(SPEC), st.data())
def test_what_the_crd_refuses_the_model_refuses(spec: dict[str, Any], data: st.DataObject):
    broken = copy.deepcopy(spec)
    container, key, schema = data.draw(st.sampled_from(list(places(SPEC, broken))))
    container[key] = data.draw(st.sampled_from(violations(schema)))
    assert not admitted(SPEC, broken)
    assert not modelled(SnapshotSpec, broken)


@pytest.mark.parametrize("where", ["names", "ports", "events"])
def test_a_set_holds_nothing_twice(where: str):
    spec: dict[str, Any] = {"nodes": {"names": ["a", "b"]}, "capture": {}}
    assert modelled(SnapshotSpec, spec)
    if where == "names":
        spec["nodes"]["names"] = ["a", "b", "a"]
    else:
        spec["capture"][where] = [443, 443] if where == "ports" else ["tcp", "tcp"]
    assert not modelled(SnapshotSpec, spec)


@pytest.mark.parametrize("size", ["64MiB", "10 M", "0", "-1", "1.5Gi", "1T", 2**20 - 1, "17Gi"])
def test_sizes_that_a_quantity_or_the_rule_refuses(size: object):
    assert not modelled(SnapshotSpec, {"nodes": {"selector": {}}, "capture": {"maxBytes": size}})


@given(st.text(max_size=40))
def test_a_folder_never_leaves_its_root(text: str):
    try:
        folder = TypeAdapter(Folder).validate_python(text)
    except ValidationError:
        return
    assert not folder.startswith("/")
    assert ".." not in folder.split("/")
