# SPDX-License-Identifier: Apache-2.0
"""What every model of the bundle is made of."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION: Literal[1] = 1
"""Of all files of a bundle together."""

Unknown = Literal["-"]
Count = Annotated[int, Field(ge=0)]
MaybeCount = Count | Unknown


class Model(BaseModel):
    """Base of everything in a bundle: immutable, and nothing in it goes unnamed."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def to_bytes(self) -> bytes:
        """The content of its file."""
        return self.model_dump_json(indent=1).encode() + b"\n"
