# SPDX-License-Identifier: Apache-2.0
"""The flags of a capture: what they are called, what they accept, and what they become.

Values stay texts until CaptureConfig judges them, so the command line, the environment and
the operator's JSON obey one set of rules. Standard library only until then.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ktrace_agent.errors import UsageError

if TYPE_CHECKING:
    from pydantic import ValidationError

    from ktrace_api.capture import CaptureConfig
    from ktrace_api.thresholds import Thresholds

_SHOWN = 40
"""Characters of a wrong value that a message repeats."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag; `field` is CaptureConfig's, empty where no field has this very value."""

    name: str
    field: str
    metavar: str
    help: str
    accepts: str
    boolean: bool = False
    alone: str = ""
    """What the flag means without a value, where it may stand so."""

    @property
    def parameter(self) -> str:
        """The name as a Python parameter."""
        return self.name.removeprefix("--").replace("-", "_")

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return f"KTRACE_{self.parameter.upper()}"


_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_BOOLEAN = "true or false"

FLAGS: tuple[Flag, ...] = (
    Flag(
        "--duration",
        "duration",
        "TIME",
        "How long to record: 30s, 2m, 1m30s.  [default: 60s]",
        "a time from 1s to 10m such as 30s, 90s or 2m",
    ),
    Flag(
        "--dns-only",
        "dns_only",
        "BOOL",
        "Keep only traffic with port 53 at one end.",
        _BOOLEAN,
        boolean=True,
    ),
    Flag(
        "--ports",
        "ports",
        "LIST",
        "Keep only these ports, local or remote: 80,443.",
        "at most 64 port numbers from 1 to 65535, separated by commas",
    ),
    Flag(
        "--pods",
        "pods",
        "LIST",
        "Keep only what processes of these pods do, by UID.",
        "at most 256 UIDs of pods, separated by commas",
    ),
    Flag(
        "--with-connect-latency",
        "",
        "BOOL",
        "Record how long each connect() took and how it ended.  [default: true]",
        _BOOLEAN,
        boolean=True,
    ),
    Flag(
        "--with-retransmits",
        "",
        "BOOL",
        "Record retransmitted TCP segments.  [default: true]",
        _BOOLEAN,
        boolean=True,
    ),
    Flag(
        "--with-security",
        "security",
        "BOOL",
        "Record seccomp mode and effective capabilities.  [default: true]",
        _BOOLEAN,
        boolean=True,
    ),
    Flag(
        "--with-cri",
        "cri",
        "auto|BOOL",
        "Ask the container runtime for the names of pods.  [default: auto]",
        "auto, true or false",
        alone="true",
    ),
    Flag(
        "--cri-socket",
        "cri_sockets",
        "LIST",
        "Sockets of container runtimes instead of the usual ones.",
        "at most 8 absolute paths such as /run/containerd/containerd.sock, separated by commas",
    ),
    Flag(
        "--with-conntrack",
        "conntrack",
        "BOOL",
        "Look up NAT and reply tuples in connection tracking.  [default: true]",
        _BOOLEAN,
        boolean=True,
    ),
    Flag(
        "--sample",
        "sample",
        "N",
        "Keep one event in N; talkers and bytes stay exact.  [default: 1]",
        "a whole number from 1 to 1000000",
    ),
    Flag(
        "--max-events",
        "max_events",
        "N",
        "Keep at most N rows.  [default: 200000]",
        "a whole number from 1 to 10000000",
    ),
    Flag(
        "--max-bytes",
        "max_bytes",
        "SIZE",
        "Size of the bundle before compression at most.  [default: 256MiB]",
        "a size from 1MiB to 16GiB such as 64MiB",
    ),
    Flag(
        "--node",
        "node",
        "NAME",
        "Name of this node in rows and file names.  [default: NODE_NAME, else the host's name]",
        "1 to 253 letters, digits, dots, dashes and underscores, a letter or digit at both ends",
    ),
    Flag(
        "--ring-bytes",
        "ring_bytes",
        "SIZE",
        "Size of the kernel's ring buffer; raise it if events are lost.  [default: 8MiB]",
        "a size from 4KiB to 256MiB such as 32MiB",
    ),
    Flag(
        "--max-sockets",
        "max_sockets",
        "N",
        "Sockets whose owner is remembered at most.  [default: 65536]",
        "a whole number from 1 to 1048576",
    ),
    Flag(
        "--max-flows",
        "max_flows",
        "N",
        "Flows that are summed up in the kernel at most.  [default: 131072]",
        "a whole number from 1 to 1048576",
    ),
)
"""All flags that shape a capture; --out-dir and --json say where its result goes."""

BY_PARAMETER: Mapping[str, Flag] = {flag.parameter: flag for flag in FLAGS}


NEED_NO_VALUE: Mapping[str, str] = {
    "--json": _BOOLEAN,
    **{flag.name: flag.accepts for flag in FLAGS if flag.boolean or flag.alone},
}
"""Flags that may stand alone, and what they accept."""


def refuse(flag: str, value: object, accepts: str, variable: str = "") -> UsageError:
    """The one line for a wrong value; `variable` is set where it came from the environment."""
    text = str(value)
    shown = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
    source = f" (from {variable})" if variable else ""
    return UsageError(f"{flag}{source}: {shown!r} is not accepted; give {accepts}")


def boolean(flag: str, value: str, variable: str = "") -> bool:
    """`true` or `false` and their usual synonyms; UsageError for anything else."""
    if (found := word(value)) is None:
        raise refuse(flag, value, _BOOLEAN, variable)
    return found


def word(value: str) -> bool | None:
    """`true` or `false` and their usual synonyms; None for anything else."""
    text = value.strip().lower()
    return text in _TRUE if text in _TRUE + _FALSE else None


def _alone(value: str) -> str:
    """The value of a flag that takes a word beside true and false, as CaptureConfig spells it."""
    found = word(value)
    return value.strip().lower() if found is None else str(found).lower()


def configure(
    values: Mapping[str, str | None],
    variables: Mapping[str, str] | None = None,
    thresholds: "Thresholds | None" = None,
) -> "CaptureConfig":
    """The capture that these texts ask for; what is None keeps its default.

    `values` by parameter; `variables` names the environment variable a value came from;
    `thresholds` are those of threshold_flags.py.
    Raises UsageError that names the flag, the wrong value and what is accepted.
    """
    from pydantic import ValidationError

    from ktrace_api.capture import CaptureConfig
    from ktrace_api.names import EventKind

    origin = variables or {}
    given: dict[str, object] = {}
    for flag in FLAGS:
        value = values.get(flag.parameter)
        if value is None:
            continue
        if flag.boolean:
            given[flag.parameter] = boolean(flag.name, value, origin.get(flag.parameter, ""))
        else:
            given[flag.parameter] = _alone(value) if flag.alone else value
    events = [EventKind.TCP, EventKind.UDP]
    if given.pop("with_connect_latency", True):
        events.append(EventKind.CONNECT)
    if given.pop("with_retransmits", True):
        events.append(EventKind.RETRANSMIT)
    fields = {BY_PARAMETER[name].field: value for name, value in given.items()}
    if thresholds is not None:
        fields["thresholds"] = thresholds
    try:
        return CaptureConfig.model_validate({"events": events, **fields})
    except ValidationError as error:
        raise _explain(error, values, origin) from error


def _explain(
    error: "ValidationError", values: Mapping[str, str | None], origin: Mapping[str, str]
) -> UsageError:
    first = error.errors(include_url=False, include_context=False)[0]
    field, *inside = first["loc"]
    flag = next(one for one in FLAGS if one.field == field)
    wrong = first["input"] if inside else values.get(flag.parameter)
    return refuse(flag.name, wrong, flag.accepts, origin.get(flag.parameter, ""))
