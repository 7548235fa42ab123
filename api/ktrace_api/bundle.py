# SPDX-License-Identifier: Apache-2.0
"""The manifest of a bundle. The other files are in row.py, summary.py and node.py.

The JSON Schemas in docs/schemas/ are generated from these models (schemas.py).
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from ktrace_api.model import SCHEMA_VERSION, Count, Model


class ManifestFile(Model):
    """A file of the bundle."""

    name: str
    bytes: Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(Model):
    """List of the files in a bundle; the last member of bundle.tgz."""

    schema_version: Literal[1] = SCHEMA_VERSION
    agent_version: str
    node: str
    started: datetime
    ended: datetime
    rows: Count
    complete: bool
    files: tuple[ManifestFile, ...]
