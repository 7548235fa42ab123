# SPDX-License-Identifier: Apache-2.0
"""--threshold NAME=VALUE and --threshold-file FILE: the limits of the findings in this capture.

The file is TOML or JSON with one member for each threshold that differs from its default;
--threshold overrides it.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ktrace_agent.cli.options import THRESHOLD, THRESHOLD_FILE, invalid, refuse, source_of
from ktrace_agent.errors import UsageError
from ktrace_api.model import first_error
from ktrace_api.options import bound
from ktrace_api.thresholds import Thresholds

_BETWEEN = re.compile(r"\s*,\s*|\s+(?=[^\s=,]+\s*=)")
"""A comma with optional blanks, or blanks before the next NAME=."""
_MAX_BYTES = 64 * 1024
"""Maximum size of a file; all thresholds with a comment each take a tenth of it."""


def thresholds(
    pairs: Iterable[str], file: str | None = None, variables: Mapping[str, str] | None = None
) -> Thresholds:
    """The limits that these texts set; the others keep their default.

    `variables` maps flags to the environment variables that their values came from. Raises
    UsageError with the flag, the error, and the accepted names or values.
    """
    origin = variables or {}
    file_source, source = source_of(THRESHOLD_FILE, origin), source_of(THRESHOLD, origin)
    given = {} if file is None else _read(Path(file), file_source)
    named = _split(pairs, origin)
    for where, values in ((f"{file_source}: {file}", given), (source, named)):
        try:
            Thresholds.model_validate(values)
        except ValidationError as error:
            raise _explain(error, where) from error
    return Thresholds.model_validate(given | named)


def _split(pairs: Iterable[str], variables: Mapping[str, str]) -> dict[str, Any]:
    """Parse NAME=VALUE texts; one text may hold several, separated by commas or blanks."""
    values = {}
    for pair in (part for text in pairs for part in _BETWEEN.split(text.strip())):
        name, equals, value = pair.partition("=")
        if not equals:
            raise refuse(THRESHOLD, pair, variables)
        values[name.strip()] = value.strip()
    return values


def _read(path: Path, source: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{source}: cannot read {path}: {error.strerror}") from error
    if len(text) > _MAX_BYTES:
        raise UsageError(f"{source}: {path} is too large: use {THRESHOLD_FILE.accepts}")
    try:
        decoded = text.decode()
        found = json.loads(decoded) if decoded.lstrip()[:1] == "{" else tomllib.loads(decoded)
    except (ValueError, RecursionError) as error:  # both parsers raise a ValueError
        reason = " ".join(str(error).split())
        raise UsageError(f"{source}: {path} is neither TOML nor JSON: {reason}") from error
    # pydantic would accept a truth value as the number 0 or 1.
    return {name: str(one).lower() if isinstance(one, bool) else one for name, one in found.items()}


def _explain(error: ValidationError, source: str) -> UsageError:
    first = first_error(error)
    name = str(first.path[0]) if first.path else ""
    field = Thresholds.model_fields.get(name)
    if field is None:
        names = ", ".join(sorted(Thresholds.model_fields))
        return invalid(source, "threshold", name or "=", f"one of these names: {names}")
    highest = bound(field, "le")
    accepts = "a whole number, 0 or more" if highest is None else f"a number from 0 to {highest}"
    return invalid(source, "threshold", f"{name}={first.value}", accepts)
