# SPDX-License-Identifier: Apache-2.0
"""Writes the JSON Schemas of a bundle's files: `python -m ktrace_api.schemas docs/schemas`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import JsonSchemaMode

from ktrace_api.bundle import Manifest
from ktrace_api.node import NodeInfo
from ktrace_api.row import EVENT
from ktrace_api.summary import Summary

if TYPE_CHECKING:
    from ktrace_api.model import Model

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_MODE: JsonSchemaMode = "serialization"  # describes the files as they are written


def schemas() -> dict[str, dict[str, Any]]:
    """Schemas by file name: row (one line of events.jsonl), summary, node, manifest."""
    models: dict[str, type[Model]] = {"summary": Summary, "node": NodeInfo, "manifest": Manifest}
    found = {"row": EVENT.json_schema(mode=_MODE) | {"title": "Row"}}
    found |= {name: model.model_json_schema(mode=_MODE) for name, model in models.items()}
    return {f"{name}.schema.json": {"$schema": _DRAFT, **schema} for name, schema in found.items()}


def write(folder: Path) -> None:
    """Writes all schemas into a folder (created if missing)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, schema in schemas().items():
        (folder / name).write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/schemas"))
