# SPDX-License-Identifier: Apache-2.0
"""--threshold NAME=VALUE and --threshold-file FILE: where findings begin in this capture.

The file is TOML or JSON, one member for each threshold that differs from its default; what a
--threshold says stands above it.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ktrace_agent.cli.options import refuse
from ktrace_agent.errors import UsageError

if TYPE_CHECKING:
    from pydantic import ValidationError

    from ktrace_api.thresholds import Thresholds

FLAG, FILE_FLAG = "--threshold", "--threshold-file"
VARIABLE, FILE_VARIABLE = "KTRACE_THRESHOLD", "KTRACE_THRESHOLD_FILE"
PAIR = "NAME=VALUE such as dns_slow_p50_us=200000"
_BETWEEN = re.compile(r"\s*,\s*|\s+(?=[^\s=,]+\s*=)")
"""A comma with or without blanks, or blanks before the next NAME=."""
_MAX_BYTES = 64 * 1024
"""Of a file: all thresholds with a comment each are a tenth of it."""


def thresholds(
    pairs: Iterable[str], file: str | None = None, variables: Mapping[str, str] | None = None
) -> "Thresholds":
    """The limits of the findings that these texts ask for; the others keep their default.

    `variables` names the environment variable that a flag came from, by flag. Raises UsageError
    that names the flag, what is wrong, and the names or values that are accepted.
    """
    from pydantic import ValidationError

    from ktrace_api.thresholds import Thresholds

    origin = variables or {}
    given = _read(Path(file), origin.get(FILE_FLAG, "")) if file is not None else {}
    named = _split(pairs, origin.get(FLAG, ""))
    for flag, values in ((FILE_FLAG, given), (FLAG, named)):
        try:
            Thresholds.model_validate(values)
        except ValidationError as error:
            shown = f"{flag} {file}" if flag == FILE_FLAG else flag
            raise _explain(error, shown, origin.get(flag, "")) from error
    return Thresholds.model_validate(given | named)


def _split(pairs: Iterable[str], variable: str) -> dict[str, Any]:
    """NAME=VALUE texts, of which one may hold several that commas or blanks separate."""
    values = {}
    for pair in (part for text in pairs for part in _BETWEEN.split(text.strip())):
        name, equals, value = pair.partition("=")
        if not equals:
            raise refuse(FLAG, pair, PAIR, variable)
        values[name.strip()] = value.strip()
    return values


def _read(path: Path, variable: str) -> dict[str, Any]:
    try:
        with path.open("rb") as source:
            text = source.read(_MAX_BYTES + 1)
    except OSError as error:
        accepts = f"a file that can be read ({error.strerror})"
        raise refuse(FILE_FLAG, path, accepts, variable) from error
    if len(text) > _MAX_BYTES:
        raise refuse(FILE_FLAG, path, "a file of 64 KiB at most", variable)
    try:
        decoded = text.decode()
        found = json.loads(decoded) if decoded.lstrip()[:1] == "{" else tomllib.loads(decoded)
    except (ValueError, RecursionError) as error:  # both parsers raise a ValueError
        reason = " ".join(str(error).split())
        raise refuse(FILE_FLAG, path, f"TOML or JSON, NAME = VALUE ({reason})", variable) from error
    # A truth value is no number, though pydantic would take it for 0 or 1.
    return {name: str(one).lower() if isinstance(one, bool) else one for name, one in found.items()}


def _explain(error: "ValidationError", flag: str, variable: str) -> UsageError:
    from ktrace_api.thresholds import Thresholds

    first = error.errors(include_url=False, include_context=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if name not in Thresholds.model_fields:
        names = ", ".join(sorted(Thresholds.model_fields))
        return refuse(flag, name, f"one of these names: {names}", variable)
    accepts = "a whole number, 0 or more"
    if bounds := {type(one).__name__: one for one in Thresholds.model_fields[name].metadata}:
        most = getattr(bounds.get("Le"), "le", None)
        accepts = f"a number from 0 to {most}" if most is not None else accepts
    return refuse(flag, f"{name}={first['input']}", accepts, variable)
