# SPDX-License-Identifier: Apache-2.0
"""What one agent is asked to do: the contract from the operator or the CLI to the agent."""

import re
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
    """`90s`, `1m30s`, `10m` or a number of seconds, as a timedelta.

    What is of another type is left to pydantic; a text of another form raises ValueError.
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
    """`64MiB`, `256Mi`, `10MB` or a number of bytes, as bytes (i = powers of 1024)."""
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
    """`80,443` as a list; an empty text as an empty list."""
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
"""A pod's UID as its cgroup is named by: of a static pod 32 hexadecimal digits, its hash."""
MAX_PODS = 256
"""Pods of one node that a capture can be narrowed to."""
SocketPath = Annotated[str, Field(max_length=256, pattern=r"^(unix://)?/[^\x00-\x1f]*$")]


class CaptureConfig(BaseModel):
    """One capture on one node. Every limit is enforced by the agent itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    node: str = Field(
        min_length=1,
        max_length=253,
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$",
        description="Name of the node in rows and file names.",
    )
    duration: Duration = Field(
        default=timedelta(seconds=60),
        ge=timedelta(seconds=1),
        le=timedelta(minutes=10),
        description="How long to record, 1s to 10m.",
    )
    events: Annotated[
        tuple[EventKind, ...], BeforeValidator(parse_list), AfterValidator(_distinct)
    ] = Field(default=tuple(EventKind), min_length=1, description="Kinds of events to record.")
    dns_only: bool = Field(default=False, description="Keep only traffic with port 53 at one end.")
    ports: Annotated[tuple[Port, ...], BeforeValidator(parse_list), AfterValidator(_distinct)] = (
        Field(
            default=(),
            max_length=64,
            description="Keep only these ports, local or remote; none = all.",
        )
    )
    pods: Annotated[tuple[PodUid, ...], BeforeValidator(parse_list), AfterValidator(_distinct)] = (
        Field(
            default=(),
            max_length=MAX_PODS,
            description="Keep only events of processes in these pods, by UID; none = all.",
        )
    )
    sample: int = Field(
        default=1,
        ge=1,
        le=1_000_000,
        description="Keep one event in N; the summary's flow figures stay exact.",
    )
    max_events: int = Field(
        default=200_000, ge=1, le=10_000_000, description="Rows to keep at most."
    )
    max_bytes: Size = Field(
        default=256 * MIB,
        ge=MIB,
        le=16 * GIB,
        description="Size of the bundle before compression at most, in bytes.",
    )
    security: bool = Field(
        default=True, description="Record seccomp mode and effective capabilities."
    )
    cri: Literal["auto", "true", "false"] = Field(
        default="auto",
        description="Ask the container runtime for names: auto asks one that is there, true says "
        "so where none answers, false asks none.",
    )
    cri_sockets: Annotated[
        tuple[SocketPath, ...], BeforeValidator(parse_list), AfterValidator(_distinct)
    ] = Field(
        default=(),
        max_length=8,
        description="Sockets of container runtimes; none = those that runtimes usually have.",
    )
    conntrack: bool = Field(
        default=True, description="Look connections up in the kernel's connection tracking."
    )
    thresholds: Thresholds = Field(
        default=Thresholds(), description="Where findings begin; see docs/findings."
    )
    ring_bytes: Size = Field(
        default=8 * MIB,
        ge=4 * KIB,
        le=256 * MIB,
        description="Size of the kernel's ring buffer in bytes, rounded up to a power of two.",
    )
    max_sockets: int = Field(
        default=65_536, ge=1, le=1_048_576, description="Sockets whose owner is kept at most."
    )
    max_flows: int = Field(
        default=131_072, ge=1, le=1_048_576, description="Flows that are aggregated at most."
    )
