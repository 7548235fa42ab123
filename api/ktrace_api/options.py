# SPDX-License-Identifier: Apache-2.0
"""What follows from the declaration of a capture option: accepted values, texts, CRD field."""

from datetime import timedelta
from enum import EnumType
from typing import Any, Literal, get_args, get_origin

from pydantic import Field
from pydantic.fields import FieldInfo

from ktrace_api.capture import GIB, KIB, MIB, CaptureConfig, Flag, format_duration, parse_size
from ktrace_api.kubeobject import rules

_BOUNDS = ("ge", "le", "min_length", "max_length")
_NOUNS: dict[object, str] = {bool: "boolean", int: "number", timedelta: "duration"}


def flag_of(field: FieldInfo) -> Flag | None:
    """How a field is set on the command line; None if it has no flag of its own."""
    return next((one for one in field.metadata if isinstance(one, Flag)), None)


def bound(field: FieldInfo, name: str) -> Any:
    """A bound of a field (`ge`, `le`, `min_length`, `max_length`); None if it has none."""
    found = (getattr(one, name, None) for one in field.metadata)
    return next((one for one in found if one is not None), None)


def noun(field: FieldInfo) -> str:
    """One value of a field in an error message: `duration`, `size`, `number`, ..."""
    flag = flag_of(field)
    if flag is not None and flag.noun:
        return flag.noun
    return "size" if _is_size(field) else _NOUNS[field.annotation]


def accepted(field: FieldInfo, suffix: str = "iB") -> str:
    """The accepted values in words, from the type and the bounds: `1s to 10m`.

    `suffix` ends a unit of bytes: `iB` on the command line, `i` in Kubernetes.
    """
    if field.annotation is bool:
        return "true or false"
    if get_origin(field.annotation) is Literal:
        *others, last = get_args(field.annotation)
        return f"{', '.join(others)} or {last}"
    if get_origin(field.annotation) is tuple:
        return _list(field)
    if field.annotation is str:
        flag = flag_of(field)
        form = flag.form if flag else "characters"
        return f"{bound(field, 'min_length')} to {bound(field, 'max_length')} {form}"
    low, high = (_text(field, bound(field, name), suffix) for name in ("ge", "le"))
    if field.annotation is int and not _is_size(field):
        return f"a whole number from {low} to {high}"
    return f"{low} to {high}"


def default_text(field: FieldInfo) -> str:
    """The default of a field as it is typed, such as `60s`, `256MiB` or `true`."""
    flag = flag_of(field)
    return flag.default if flag and flag.default else _text(field, field.default)


def capture_option(
    name: str, description: str = "", *, note: str = "", default: object = None, **extra: Any
) -> Any:
    """A field of the CRD with the default, bounds and description of CaptureConfig's field.

    `description` and `default` replace CaptureConfig's; `note` is one more sentence; `extra` is
    added to the field's JSON schema.
    """
    field = CaptureConfig.model_fields[name]
    text = description or field.description or ""
    if field.annotation is not bool and not description:
        text = f"{text.rstrip('.')}: {accepted(field, 'i')}."
    bounds = {kind: bound(field, kind) for kind in _BOUNDS}
    return Field(
        default=field.default if default is None else default,
        description=f"{text} {note}".strip(),
        json_schema_extra=_quantity_rule(field) | extra,
        **{kind: value for kind, value in bounds.items() if value is not None},
    )


def _quantity_rule(field: FieldInfo) -> dict[str, Any]:
    """Default and bounds of a duration or size: in the schema these are texts, checked by CEL."""
    if field.annotation is not timedelta and not _is_size(field):
        return {}
    values = (field.default, bound(field, "ge"), bound(field, "le"))
    default, low, high = (_text(field, value, "i") for value in values)
    rule = f"duration(self) >= duration('{low}') && duration(self) <= duration('{high}')"
    if _is_size(field):
        compared = "quantity(string(self)).compareTo(quantity('{}'))"
        rule = f"{compared.format(low)} >= 0 && {compared.format(high)} <= 0"
    return {"default": default, **rules((rule, f"must be from {low} to {high}"))}


def _is_size(field: FieldInfo) -> bool:
    return any(getattr(one, "func", None) is parse_size for one in field.metadata)


def _text(field: FieldInfo, value: Any, suffix: str = "iB") -> str:
    """A value as it is typed: `90s`, `10m`, `256MiB`, `true`, `7`."""
    if isinstance(value, timedelta):
        minutes, rest = divmod(value, timedelta(minutes=1))
        return f"{minutes}m" if minutes > 1 and not rest else format_duration(value)
    if _is_size(field):
        for unit, factor in (("G", GIB), ("M", MIB), ("K", KIB)):
            if value % factor == 0:
                return f"{value // factor}{unit}{suffix}"
    return str(value).lower()


def _list(field: FieldInfo) -> str:
    """The members of an enum, or the number of items and their range."""
    kind = get_args(field.annotation)[0]
    if isinstance(kind, EnumType):
        return ", ".join(map(str, kind))
    item = FieldInfo.from_annotation(kind)
    low, high = bound(item, "ge"), bound(item, "le")
    limits = "" if low is None else f" from {low} to {high}"
    return f"up to {bound(field, 'max_length')} {noun(field)}s{limits}"
