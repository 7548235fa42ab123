# SPDX-License-Identifier: Apache-2.0
"""Renders the CustomResourceDefinition from the models: `python -m ktrace_api.crd FILE ...`.

The API server accepts structural schemas only: no references, no unions, no patterns for keys.
Pydantic's schemas are converted to that form. A keyword that a structural schema cannot hold raises
an error here, before an installation fails.
"""

import sys
from pathlib import Path
from typing import Any

from ktrace_api.kubeobject import rules
from ktrace_api.names import API_GROUP, API_VERSION, KIND, MAX_NAME, PLURAL
from ktrace_api.snapshot import SnapshotSpec, TraceSnapshot
from ktrace_api.status import SnapshotStatus

Schema = dict[str, Any]

_KEPT = frozenset(
    {
        "type",
        "format",
        "description",
        "default",
        "enum",
        "pattern",
        "minLength",
        "maxLength",
        "minimum",
        "maximum",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "required",
    }
)
_DROPPED = frozenset({"title", "$defs"})
_INT32 = 2**31 - 1
_COLUMNS = (
    ("Phase", "string", ".status.phase", "Overall phase"),
    ("Nodes", "integer", ".status.nodes.total", "Number of selected nodes"),
    ("OK", "integer", ".status.nodes.succeeded", "Nodes with a delivered and verified bundle"),
    ("Failed", "integer", ".status.nodes.failed", "Nodes without a verified bundle"),
    ("Findings", "string", ".status.findings[0].id", "Worst finding; status.findings lists all"),
    ("Path", "string", ".status.path", "Location of the bundles"),
    ("Age", "date", ".metadata.creationTimestamp", "Time since creation"),
)
_WIDE = frozenset({"Path"})


def definition() -> dict[str, Any]:
    """The CRD of TraceSnapshot as an apiextensions.k8s.io/v1 object."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{API_GROUP}"},
        "spec": {
            "group": API_GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["tsnap"],
                "categories": ["ktrace"],
            },
            "versions": [
                {
                    "name": API_VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [_column(*column) for column in _COLUMNS],
                    "schema": {"openAPIV3Schema": _root()},
                    "subresources": {"status": {}},
                }
            ],
        },
    }


def _column(name: str, kind: str, path: str, description: str) -> dict[str, Any]:
    column = {"name": name, "type": kind, "jsonPath": path, "description": description}
    return column | ({"priority": 1} if name in _WIDE else {})


def _root() -> Schema:
    spec = structural(SnapshotSpec.model_json_schema(by_alias=True))
    status = without_defaults(structural(SnapshotStatus.model_json_schema(by_alias=True)))
    # kstatus considers an object without status.observedGeneration as done.
    status["default"] = {"observedGeneration": SnapshotStatus().observed_generation}
    text = f"metadata.name must not be longer than {MAX_NAME} characters"
    name = (f"size(self.metadata.name) <= {MAX_NAME}", text)
    return {
        "type": "object",
        "description": _one_line(TraceSnapshot.__doc__ or ""),
        **rules(name),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
    }


def structural(schema: Schema, defs: dict[str, Schema] | None = None) -> Schema:
    """Converts a schema of pydantic to a structural one.

    Raises ValueError for a keyword that a structural schema cannot hold.
    """
    schema, defs = _resolved(schema, schema.get("$defs", {}) if defs is None else defs)
    found: Schema = {}
    for keyword, value in schema.items():
        if keyword in _KEPT or keyword.startswith("x-kubernetes-"):
            found[keyword] = value
        elif keyword in ("properties", "patternProperties", "additionalProperties", "items"):
            continue
        elif keyword not in _DROPPED and not _is_extra(keyword, schema):
            raise ValueError(f"keyword {keyword} is not possible in a structural schema: {value!r}")
    _children(found, schema, defs)
    _tidy(found)
    return found


def _resolved(schema: Schema, defs: dict[str, Schema]) -> tuple[Schema, dict[str, Schema]]:
    """The schema with its top-level $ref resolved and without null as an alternative."""
    if "$ref" in schema:
        target = defs[schema["$ref"].removeprefix("#/$defs/")]
        schema = target | {key: value for key, value in schema.items() if key != "$ref"}
        return _resolved(schema, defs)
    if "anyOf" in schema and "x-kubernetes-int-or-string" not in schema:
        others = [one for one in schema["anyOf"] if one != {"type": "null"}]
        if len(others) != 1:
            raise ValueError(f"union is not possible in a structural schema: {schema['anyOf']!r}")
        outer = {key: value for key, value in schema.items() if key != "anyOf"}
        return _resolved(_joined(others[0], outer, defs), defs)
    return schema, defs


def _joined(inner: Schema, outer: Schema, defs: dict[str, Schema]) -> Schema:
    """Both schemas merged: the outer one has precedence, and the rules of both are kept."""
    inner, _ = _resolved(inner, defs)
    validations = "x-kubernetes-validations"
    both = [*inner.get(validations, []), *outer.get(validations, [])]
    return inner | outer | ({validations: both} if both else {})


def _is_extra(keyword: str, schema: Schema) -> bool:
    """Whether _children handles the keyword together with another one."""
    if keyword == "anyOf":
        return bool(schema.get("x-kubernetes-int-or-string"))
    return keyword == "propertyNames"


def _children(found: Schema, schema: Schema, defs: dict[str, Schema]) -> None:
    if "items" in schema:
        found["items"] = structural(schema["items"], defs)
    if "properties" in schema:
        found["properties"] = {
            name: structural(child, defs) for name, child in schema["properties"].items()
        }
    elif "propertyNames" in schema:
        _map(found, schema, defs)
    if schema.get("x-kubernetes-int-or-string"):
        found["anyOf"] = [{"type": "integer"}, {"type": "string"}]


def _map(found: Schema, schema: Schema, defs: dict[str, Schema]) -> None:
    """Converts a map by its permitted keys: an enum to properties, a pattern to a rule."""
    names, _ = _resolved(schema["propertyNames"], defs)
    patterns = schema.get("patternProperties", {})
    if "enum" in names:
        value = structural(schema["additionalProperties"], defs)
        found.pop("maxProperties", None)
        found["properties"] = dict.fromkeys(names["enum"], value)
        return
    [(pattern, value)] = patterns.items()
    found["additionalProperties"] = structural(value, defs)
    rule = f"self.all(key, size(key) <= {names['maxLength']} && key.matches(r'{pattern}'))"
    found |= rules((rule, f"keys must match {pattern}"))


def _tidy(found: Schema) -> None:
    """Puts texts on one line, adds the format of integers, and drops empty defaults."""
    if "description" in found:
        found["description"] = _one_line(found["description"])
    if found.get("type") == "integer" and "format" not in found:
        found["format"] = "int32" if found.get("maximum", _INT32 + 1) <= _INT32 else "int64"
    default = found.get("default")
    if isinstance(default, dict):
        found["default"] = {}  # its own properties have defaults
    elif default in (None, "", [], ()):
        found.pop("default", None)


def without_defaults(schema: Schema) -> Schema:
    """The same schema without defaults, so that the API server adds no fields to a status."""
    kept = {key: value for key, value in schema.items() if key != "default"}
    for key in ("items", "additionalProperties"):
        if key in kept:
            kept[key] = without_defaults(kept[key])
    if "properties" in kept:
        kept["properties"] = {
            name: without_defaults(child) for name, child in kept["properties"].items()
        }
    return kept


def _one_line(text: str) -> str:
    return " ".join(text.split())


def render() -> str:
    """The CRD as YAML, with a header that names its source."""
    import yaml

    class Plain(yaml.SafeDumper):
        """Writes repeated values in full instead of as YAML anchors, for readability."""

        def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
            return True

    head = (
        "# SPDX-License-Identifier: Apache-2.0\n"
        "# Rendered from api/ktrace_api/snapshot.py and status.py by `make generate`.\n"
    )
    body: str = yaml.dump(definition(), Dumper=Plain, sort_keys=False, width=100)
    return head + body


def main(paths: list[str]) -> None:
    """Writes the CRD to each path."""
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
