# SPDX-License-Identifier: Apache-2.0
"""CaptureConfig: the options of one capture on one node.

A capture option is declared here and nowhere else: its type, bounds, default, description and flag.
options.py derives the accepted values and the CRD field from it; the agent's cli/options.py derives
the flag, its help and its environment variable.
"""

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from ktrace_api.names import EventKind
from ktrace_api.thresholds import Thresholds

KIB, MIB, GIB = 2**10, 2**20, 2**30

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?", re.ASCII)
_SIZE = re.compile(r"(\d+)\s*([kKMG]?)(i?)(B?)", re.ASCII)
_SIZE_POWER = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3}


def parse_duration(value: object) -> object:
    """Convert `90s`, `1m30s`, `10m` or a number of seconds to a timedelta.

    Values of other types are returned unchanged; pydantic validates them. Raises ValueError for a
    text of another form.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return timedelta(seconds=value)
    if not isinstance(value, str):
        return value
    text = value.strip()
    if re.fullmatch(r"[0-9]{1,6}", text):
        return timedelta(seconds=int(text))
    match = _DURATION.fullmatch(text)
    if len(text) > 24 or match is None or not any(match.groups()):
        raise ValueError("expected a duration such as 30s, 90s or 2m")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return timedelta(hours=min(hours, 1e4), minutes=min(minutes, 1e6), seconds=min(seconds, 1e7))


def format_duration(value: timedelta) -> str:
    """The shortest text that parse_duration reads back: `90s`, `1.5s`."""
    return f"{value.total_seconds():.6f}".rstrip("0").rstrip(".") + "s"


def parse_size(value: object) -> object:
    """Convert `64MiB`, `256Mi`, `10MB` or a number to bytes (i = powers of 1024)."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if len(value) > 24 or match is None:
        raise ValueError("expected a size such as 64MiB, 256Mi or 1000000")
    number, unit, binary, _ = match.groups()
    if binary and not unit:
        raise ValueError("expected a size such as 64MiB, 256Mi or 1000000")
    power: int = (1024 if binary else 1000) ** _SIZE_POWER[unit]
    return int(number) * power


def parse_list(value: object) -> object:
    """Convert `80,443` to a list; an empty text is an empty list."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",")] if value.strip() else []


def _distinct(value: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(value))


Duration = Annotated[
    timedelta, BeforeValidator(parse_duration), PlainSerializer(format_duration, return_type=str)
]
Size = Annotated[int, BeforeValidator(parse_size)]
Port = Annotated[int, Field(ge=1, le=65535)]
PodUid = Annotated[
    str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$|^[0-9a-f]{32}$")
]
"""A pod's UID as in the name of its cgroup. A static pod has a hash of 32 hexadecimal digits."""
MAX_PODS = 256
"""Maximum pods of one node that a capture can be restricted to."""
BackendChoice = Literal["auto", "core", "bcc"]
SocketPath = Annotated[str, Field(max_length=256, pattern=r"^(unix://)?/[^\x00-\x1f]*$")]


@dataclass(frozen=True, slots=True)
class Flag:
    """Metadata of a field: how the field is set on the command line."""

    metavar: str
    """Name of the value in --help."""
    noun: str = ""
    """One value in an error message; empty: follows from the type."""
    form: str = ""
    """Characters of a text value, because its pattern is not readable in a message."""
    example: str = ""
    """Accepted texts for messages, such as `30s or 2m`."""
    name: str = ""
    """The flag; empty: `--` and the field's name with dashes."""
    alone: str = ""
    """Value of the flag when it is given without one; empty: a value is required."""
    default: str = ""
    """What the default means, if the field's own default has no text."""


@dataclass(frozen=True, slots=True)
class Switch:
    """Metadata of a list field: a boolean flag that keeps or removes one member of the list."""

    name: str
    member: str
    help: str


class CaptureConfig(BaseModel):
    """One capture on one node. The agent enforces every limit itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    duration: Annotated[Duration, Flag("TIME", example="30s or 2m")] = Field(
        default=timedelta(seconds=60),
        ge=timedelta(seconds=1),
        le=timedelta(minutes=10),
        description="How long to record.",
    )
    dns_only: Annotated[bool, Flag("BOOL")] = Field(
        default=False, description="Record only DNS traffic (local or remote port 53)."
    )
    ports: Annotated[
        tuple[Port, ...],
        BeforeValidator(parse_list),
        AfterValidator(_distinct),
        Flag("PORT[,PORT...]", noun="port number", example="80,443", default="all"),
    ] = Field(
        default=(), max_length=64, description="Record only traffic of these local or remote ports."
    )
    pods: Annotated[
        tuple[PodUid, ...],
        BeforeValidator(parse_list),
        AfterValidator(_distinct),
        Flag("UID[,UID...]", noun="pod UID", default="all processes"),
    ] = Field(
        default=(),
        max_length=MAX_PODS,
        description="Record only processes in the pods with these UIDs.",
    )
    events: Annotated[
        tuple[EventKind, ...],
        BeforeValidator(parse_list),
        AfterValidator(_distinct),
        Switch(
            "--with-connect-latency",
            EventKind.CONNECT,
            "Record the duration and result of every connect().",
        ),
        Switch("--with-retransmits", EventKind.RETRANSMIT, "Record retransmitted TCP segments."),
    ] = Field(
        default=tuple(EventKind),
        min_length=1,
        max_length=len(EventKind),
        description="Event types to record.",
    )
    security: Annotated[bool, Flag("BOOL", name="--with-security")] = Field(
        default=True, description="Record the seccomp mode and effective capabilities of processes."
    )
    cri: Annotated[
        Literal["auto", "true", "false"],
        Flag("auto|BOOL", noun="value", name="--with-cri", alone="true"),
    ] = Field(
        default="auto",
        description="Query the container runtime for pod names: auto (if one is found), true "
        "(report if none answers), false (never).",
    )
    cri_sockets: Annotated[
        tuple[SocketPath, ...],
        BeforeValidator(parse_list),
        AfterValidator(_distinct),
        Flag(
            "PATH[,PATH...]",
            noun="absolute path",
            example="/run/containerd/containerd.sock",
            name="--cri-socket",
            default="the usual paths",
        ),
    ] = Field(default=(), max_length=8, description="Sockets of container runtimes.")
    conntrack: Annotated[bool, Flag("BOOL", name="--with-conntrack")] = Field(
        default=True, description="Add NAT and reply tuples from connection tracking."
    )
    sample: Annotated[int, Flag("N")] = Field(
        default=1,
        ge=1,
        le=1_000_000,
        description="Record one event in N (flow totals stay exact).",
    )
    max_events: Annotated[int, Flag("N")] = Field(
        default=200_000, ge=1, le=10_000_000, description="Maximum rows in the bundle."
    )
    max_bytes: Annotated[Size, Flag("SIZE", example="64MiB")] = Field(
        default=256 * MIB,
        ge=MIB,
        le=16 * GIB,
        description="Maximum bundle size before compression.",
    )
    node: Annotated[
        str,
        Flag(
            "NAME",
            noun="node name",
            form="letters, digits, dots, dashes and underscores, with a letter or digit at both "
            "ends",
            default="$NODE_NAME, or the host name",
        ),
    ] = Field(
        min_length=1,
        max_length=253,
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$",
        description="Node name in rows and file names.",
    )
    ring_bytes: Annotated[Size, Flag("SIZE", example="32MiB")] = Field(
        default=8 * MIB,
        ge=4 * KIB,
        le=256 * MIB,
        description="Size of the kernel ring buffer, rounded up to a power of two. Increase it if "
        "events are lost.",
    )
    max_sockets: Annotated[int, Flag("N")] = Field(
        default=65_536, ge=1, le=1_048_576, description="Maximum sockets to track."
    )
    max_flows: Annotated[int, Flag("N")] = Field(
        default=131_072, ge=1, le=1_048_576, description="Maximum flows to aggregate."
    )
    backend: Annotated[BackendChoice, Flag("auto|core|bcc", noun="backend")] = Field(
        default="auto",
        description="How eBPF programs are loaded: core (needs BTF), bcc (compiles them, needs bcc "
        "and kernel headers), auto (bcc only without BTF).",
    )
    thresholds: Thresholds = Field(
        default=Thresholds(), description="Limits of the findings; see docs/thresholds.md."
    )
