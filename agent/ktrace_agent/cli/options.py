# SPDX-License-Identifier: Apache-2.0
"""The flags of a capture: names, environment variables, help, and their way into CaptureConfig.

Flags of capture options are derived from CaptureConfig (ktrace_api/capture.py). Values stay texts
until CaptureConfig validates them, so the command line, the environment and the operator's JSON
obey the same rules.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ktrace_agent.errors import UsageError
from ktrace_agent.sinks.s3_address import ACCEPTS as S3_URL
from ktrace_api.capture import CaptureConfig, Flag, Switch
from ktrace_api.model import first_error
from ktrace_api.names import EventKind
from ktrace_api.options import accepted, default_text, noun
from ktrace_api.thresholds import Thresholds

_SHOWN = 40
"""Maximum characters of a wrong value that an error message repeats."""
_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_BOOLEAN = "true or false"


@dataclass(frozen=True, slots=True)
class Option:
    """One flag, its environment variable, and all texts about it."""

    flag: str
    metavar: str
    help: str
    noun: str
    """One value in an error message, such as `duration`."""
    accepts: str
    """Accepted values in an error message, such as `1s to 10m`."""
    default: str = ""
    alone: str = ""
    """Value of the flag when it is given without one; empty: a value is required."""
    field: str = ""
    """Field of CaptureConfig; empty for flags of the command itself."""
    event: str = ""
    """Event type that a boolean flag keeps in or removes from `field`."""

    @property
    def parameter(self) -> str:
        """The flag as a Python parameter: `max_events`."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def variable(self) -> str:
        """The environment variable that sets the flag: `KTRACE_MAX_EVENTS`."""
        return f"KTRACE_{self.parameter.upper()}"

    @property
    def boolean(self) -> bool:
        """Whether the flag accepts only `true`, `false` and their synonyms."""
        return self.noun == "boolean"


def _boolean(flag: str, help_: str, default: str, field: str = "", event: str = "") -> Option:
    return Option(flag, "BOOL", help_, "boolean", _BOOLEAN, default, "true", field, event)


def _options(name: str, field: FieldInfo) -> Iterator[Option]:
    """The flags that a field of CaptureConfig declares."""
    help_ = field.description or ""
    for one in field.metadata:
        if isinstance(one, Switch):
            yield _boolean(one.name, one.help, "true", name, one.member)
        elif isinstance(one, Flag):
            flag = one.name or f"--{name.replace('_', '-')}"
            if field.annotation is bool:
                yield _boolean(flag, help_, default_text(field), name)
                continue
            accepts = accepted(field)
            if "," in one.metavar:
                accepts += ", separated by commas"
            example = f", for example {one.example}" if one.example else ""
            yield Option(
                flag,
                one.metavar,
                help=f"{help_.removesuffix('.')}{example}.",
                noun=noun(field),
                accepts=accepts + example,
                default=default_text(field),
                alone=one.alone,
                field=name,
            )


CAPTURE: tuple[Option, ...] = tuple(
    option for name, field in CaptureConfig.model_fields.items() for option in _options(name, field)
)
"""The flags that set a field of CaptureConfig, in the order of its fields."""

THRESHOLD = Option(
    "--threshold",
    "NAME=VALUE",
    "Set a threshold of a finding (docs/thresholds.md). The flag can be repeated.",
    "threshold",
    "NAME=VALUE pairs, separated by commas, for example dns_slow_p50_us=200000",
)
THRESHOLD_FILE = Option(
    "--threshold-file",
    "FILE",
    "Read thresholds from a TOML or JSON file; --threshold overrides it.",
    "threshold file",
    "a TOML or JSON file of up to 64 KiB",
)
OUT_DIR = Option(
    "--out-dir",
    "DIR",
    "Output directory (created if missing).",
    "directory",
    "a writable directory with free space",
    "./out",
)
SINK = Option(
    "--sink",
    "URL",
    "Upload a verified copy of the bundle to S3 (docs/delivery.md).",
    "URL",
    S3_URL,
)
HOST_ROOT = Option(
    "--host-root",
    "DIR",
    "Directory where the host's / is mounted, for an agent in a container.",
    "directory",
    "the directory where the host's / is mounted",
    "/",
)
JSON = _boolean("--json", "Print the result as one JSON document.", "false")

OPTIONS: tuple[Option, ...] = (
    *CAPTURE,
    THRESHOLD,
    THRESHOLD_FILE,
    OUT_DIR,
    SINK,
    HOST_ROOT,
    JSON,
)
"""All flags of `ktrace capture`, in the order of --help."""


def source_of(option: Option, variables: Mapping[str, str]) -> str:
    """The flag, and the environment variable if the value came from there.

    `variables` maps the flags whose values came from the environment to their variables.
    """
    variable = variables.get(option.flag)
    return f"{option.flag} (from {variable})" if variable else option.flag


def invalid(source: str, noun: str, value: object, accepts: str) -> UsageError:
    """The error for a wrong value: one line with its source and the accepted values."""
    text = str(value)
    if not text.strip():
        return UsageError(f"{source}: empty value: use {accepts}")
    text = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
    shown = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
    return UsageError(f'{source}: invalid {noun} "{shown}": use {accepts}')


def refuse(option: Option, value: object, variables: Mapping[str, str]) -> UsageError:
    """The error for a wrong value of a flag or its variable."""
    return invalid(source_of(option, variables), option.noun, value, option.accepts)


def boolean(option: Option, value: str, variables: Mapping[str, str]) -> bool:
    """Parse `true`, `false` and their synonyms; raises UsageError for anything else."""
    if (found := truth(value)) is None:
        raise refuse(option, value, variables)
    return found


def truth(value: str) -> bool | None:
    """Parse `true`, `false` and their synonyms; None for anything else."""
    text = value.strip().lower()
    return text in _TRUE if text in _TRUE + _FALSE else None


def configure(
    values: Mapping[str, str | None],
    variables: Mapping[str, str] | None = None,
    thresholds: Thresholds | None = None,
) -> CaptureConfig:
    """The capture that these texts describe; None keeps the default.

    `values` are texts by parameter; `variables` maps flags to the environment variables that their
    values came from. Raises UsageError with the flag, the wrong value and the accepted values.
    """
    origin = variables or {}
    fields: dict[str, object] = {}
    events = dict.fromkeys(EventKind, True)
    for option in CAPTURE:
        value = values.get(option.parameter)
        if value is None:
            continue
        if option.event:
            events[EventKind(option.event)] = boolean(option, value, origin)
        elif option.boolean:
            fields[option.field] = boolean(option, value, origin)
        else:
            fields[option.field] = _word(value) if option.alone else value
    fields["events"] = [kind for kind, wanted in events.items() if wanted]
    if thresholds is not None:
        fields["thresholds"] = thresholds
    try:
        return CaptureConfig.model_validate(fields)
    except ValidationError as error:
        first = first_error(error)
        option = next(one for one in CAPTURE if one.field == first.path[0])
        item = len(first.path) > 1  # of a list: only the wrong item is shown
        wrong = first.value if item else values.get(option.parameter)
        raise refuse(option, wrong, origin) from error


def _word(value: str) -> str:
    """A word, with the synonyms of true and false replaced by these."""
    found = truth(value)
    return value.strip().lower() if found is None else str(found).lower()
