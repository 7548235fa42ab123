# SPDX-License-Identifier: Apache-2.0
"""Building blocks of all models: the base class, common types, the first error of a validation."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

SCHEMA_VERSION: Literal[1] = 1
"""Version of all files of a bundle."""

Unknown = Literal["-"]
Count = Annotated[int, Field(ge=0)]
MaybeCount = Count | Unknown
MAX_HOOKS = 32
"""Maximum hooks in a result or status."""
HookName = Annotated[str, Field(max_length=32, pattern=r"^[a-z0-9_]+$")]
"""Name of a hook, as in node.json."""


class Model(BaseModel):
    """Base class of everything in a bundle: immutable, unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def to_bytes(self) -> bytes:
        """Return the content of the model's file."""
        return self.model_dump_json(indent=1).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class FieldError:
    """The first error of a ValidationError."""

    path: tuple[int | str, ...]
    """Names and indexes from the outermost field to the wrong value; empty for the whole input."""
    message: str
    value: Any
    """The wrong value. It may hold a secret and is not in line()."""

    def line(self, whole: str) -> str:
        """`field.0.name: message`; `whole` names the input if no field of it is wrong."""
        return f"{'.'.join(map(str, self.path)) or whole}: {self.message}"


def first_error(error: ValidationError) -> FieldError:
    """Return the first error of a ValidationError."""
    first = error.errors(include_url=False, include_context=False)[0]
    return FieldError(first["loc"], first["msg"], first["input"])
