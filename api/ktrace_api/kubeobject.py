# SPDX-License-Identifier: Apache-2.0
"""Building blocks of Kubernetes objects: bounded types, their form in a CRD, metadata."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    field_validator,
)
from pydantic.alias_generators import to_camel

from ktrace_api.capture import format_duration, parse_duration, parse_size

DNS_LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
DNS_SUBDOMAIN = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$"
LABEL_KEY = r"^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"
LABEL_VALUE = r"^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$"
BUCKET = r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$"
_KEY_PATH = r"^$|^[A-Za-z0-9_][A-Za-z0-9_.=-]*(/[A-Za-z0-9_][A-Za-z0-9_.=-]*)*$"
PORT_OF_URL = (
    r"(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?"
)
"""Empty, or `:` and a port from 1 to 65535."""
ENDPOINT = rf"^https?://[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?{PORT_OF_URL}$"


def rules(*rules: tuple[str, str]) -> dict[str, Any]:
    """CEL rules for the CRD from pairs (expression, message)."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": text} for rule, text in rules]}


def _rfc3339(value: datetime) -> str:
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _duration_text(value: object) -> object:
    """Accept only texts that match the CRD's pattern; numbers have no unit in YAML."""
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str) or not re.fullmatch(_DURATION, value):
        raise ValueError("expected a duration such as 30s, 90s or 2m")
    return parse_duration(value)


def _size_text(value: object) -> object:
    """Accept only texts that match the CRD's pattern; the command line accepts more forms."""
    if isinstance(value, str) and not re.fullmatch(_SIZE, value):
        raise ValueError("expected a size such as 256Mi, 10M or 1000000")
    return parse_size(value)


_DURATION = r"^([0-9]{1,5}m)?([0-9]{1,6}s)?$"
_SIZE = r"^[1-9][0-9]{0,11}(Ki|Mi|Gi|k|M|G)?$"

Time = Annotated[datetime, PlainSerializer(_rfc3339, return_type=str, when_used="json")]
SnapshotDuration = Annotated[
    timedelta,
    BeforeValidator(_duration_text),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": _DURATION, "minLength": 2, "maxLength": 12}),
]
SnapshotSize = Annotated[
    int,
    BeforeValidator(_size_text),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "pattern": _SIZE,
            "maxLength": 14,
        }
    ),
    PlainSerializer(str, return_type=str),
]
"""Bytes, as a number or as a Kubernetes quantity."""
Name = Annotated[str, Field(min_length=1, max_length=253, pattern=DNS_SUBDOMAIN)]
LabelKey = Annotated[str, Field(min_length=1, max_length=317, pattern=LABEL_KEY)]
LabelValue = Annotated[str, Field(max_length=63, pattern=LABEL_VALUE)]
Port = Annotated[int, Field(ge=1, le=65535)]
Message = Annotated[str, Field(max_length=256)]
SET_LIST: dict[str, Any] = {"x-kubernetes-list-type": "set"}
ATOMIC_LIST: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}


def distinct(value: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    """Check a list of type `set`; raises ValueError for the first duplicate."""
    earlier = set()
    for one in value or ():
        if one in earlier:
            raise ValueError(f"duplicate value: {one}")
        earlier.add(one)
    return value


def _no_parent(value: str) -> str:
    if any(part in (".", "..") for part in value.split("/")):
        raise ValueError("path must not contain the components . or ..")
    return value


KeyPath = Annotated[str, Field(max_length=256, pattern=_KEY_PATH), AfterValidator(_no_parent)]
Folder = Annotated[str, Field(max_length=672, pattern=_KEY_PATH), AfterValidator(_no_parent)]
"""A relative path without hidden components; it cannot leave its root."""


class KubeModel(BaseModel):
    """Base class of Kubernetes objects: camelCase in the API server, snake_case in Python."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    def to_json(self) -> dict[str, Any]:
        """The object as the API server stores it: camelCase, without empty fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class ObjectMeta(KubeModel):
    """The metadata of an object that the operator reads."""

    model_config = ConfigDict(extra="ignore")

    name: str
    namespace: str = ""
    uid: str
    generation: int = 1
    resource_version: str = ""
    creation_timestamp: Time
    deletion_timestamp: Time | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)

    @field_validator("labels", "annotations", mode="before")
    @classmethod
    def _none_is_empty(cls, value: object) -> object:
        return {} if value is None else value
