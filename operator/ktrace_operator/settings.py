# SPDX-License-Identifier: Apache-2.0
"""The administrator's settings, which no author of a TraceSnapshot can change.

The chart renders one YAML file (keys in camelCase) from its values and mounts it.
`--settings=FILE` or KTRACE_SETTINGS names the file.
"""

import fnmatch
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import SplitResult, urlsplit

import yaml
from pydantic import Field, ValidationError, model_validator

from ktrace_api.kubeobject import DNS_LABEL, PORT_OF_URL, KubeModel, SnapshotDuration
from ktrace_api.model import first_error
from ktrace_api.snapshot import MAX_NODES, Output
from ktrace_operator.timeouts import LONGEST_WRITE_SECONDS

Namespace = Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_LABEL)]
Seconds = Annotated[int, Field(ge=1, le=86_400)]
ALLOWED_ENDPOINT = rf"^https?://[a-z0-9*]([a-z0-9.*-]*[a-z0-9*])?{PORT_OF_URL}$"
"""Pattern of an allowed endpoint. The chart's values.schema.json has the same."""

PLATFORM = r"^linux/[a-z0-9]+$"
"""Pattern of a platform with an agent image. The chart's values.schema.json has the same."""


class SettingsError(ValueError):
    """The settings file is invalid. The text is one line that names the field."""


class Resources(KubeModel):
    """Requests and limits of the agent's container."""

    requests: dict[str, str] = Field(
        default_factory=lambda: {"cpu": "100m", "memory": "512Mi", "ephemeral-storage": "1Gi"}
    )
    limits: dict[str, str] = Field(
        default_factory=lambda: {"memory": "512Mi", "ephemeral-storage": "4Gi"}
    )


class AgentSettings(KubeModel):
    """The agent's pod."""

    image: Annotated[str, Field(min_length=1, max_length=512)]
    platforms: Annotated[
        tuple[Annotated[str, Field(max_length=32, pattern=PLATFORM)], ...], Field(max_length=16)
    ] = ()
    """Platforms of the image. Nodes of other platforms are skipped; empty: none is skipped."""
    privileged: bool = True
    """False: the container has only the capabilities of plan/privileges.py."""
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    service_account: str = "ktrace-agent"
    """It has no rights and its token is not mounted. A cloud identity can be bound to it."""
    resources: Resources = Resources()
    priority_class: str = ""
    cri_sockets: tuple[str, ...] = ()
    """Paths of the container runtime's socket on the host; empty: the usual ones."""
    termination_grace_seconds: Seconds = 60


class Limits(KubeModel):
    """Upper limits. A snapshot that exceeds one is refused."""

    max_nodes: int = Field(default=MAX_NODES, ge=1, le=MAX_NODES)
    max_duration: SnapshotDuration = timedelta(minutes=10)
    parallelism: int = Field(default=0, ge=0, le=MAX_NODES)
    """Maximum agents of one snapshot that run at once; 0: no limit but the snapshot's own."""
    start_seconds: Seconds = 120
    """Maximum time from the creation of an agent pod until its container runs."""
    upload_seconds: Seconds = 300
    """Maximum time for the delivery of a bundle, including retries."""
    busy_seconds: Seconds = 900
    """Maximum time that a node waits while another snapshot's agent occupies it."""


class S3Policy(KubeModel):
    """S3 servers and buckets to which authors may send bundles."""

    allowed_endpoints: tuple[
        Annotated[str, Field(max_length=253, pattern=ALLOWED_ENDPOINT)], ...
    ] = ()
    """URLs with scheme and port. `*` matches one label of a host name. An empty endpoint (AWS) is
    always allowed. The default output need not be listed."""
    allowed_buckets: tuple[str, ...] = ("*",)
    """Patterns of bucket names."""


class OutputSettings(KubeModel):
    """Default and permitted destinations of bundles."""

    default: Output | None = None
    s3: S3Policy = S3Policy()
    allow_pvc: bool = True


class LeaseSettings(KubeModel):
    """Leader election between replicas."""

    enabled: bool = True
    name: str = "ktrace-operator"
    namespace: Namespace = "ktrace"
    duration_seconds: Seconds = 15
    """Validity after a renewal. It must cover the next renewal and a write just before it."""
    renew_seconds: Seconds = 5

    @model_validator(mode="after")
    def _long_enough_to_write(self) -> Self:
        longest = int(LONGEST_WRITE_SECONDS)
        if self.duration_seconds < (least := self.renew_seconds + longest):
            raise ValueError(f"durationSeconds must be at least {least}, renewSeconds + {longest}")
        return self


class Settings(KubeModel):
    """All settings of the operator."""

    namespaces: Annotated[tuple[Namespace, ...], Field(min_length=1, max_length=64)]
    """Namespaces whose snapshots are served. Their agent pods run there too."""
    pod_targets: Annotated[tuple[Namespace | Literal["*"], ...], Field(max_length=256)] = ()
    """Further namespaces whose pods a snapshot may name, beside its own; `*`: all."""
    agent: AgentSettings
    limits: Limits = Limits()
    output: OutputSettings = OutputSettings()
    lease: LeaseSettings = LeaseSettings()
    metrics_port: Annotated[int, Field(ge=1, le=65535)] = 8080
    probe_port: Annotated[int, Field(ge=1, le=65535)] = 8081
    writes_per_second: Annotated[float, Field(gt=0, le=1000)] = 50
    """Maximum writes per second to the API server, over all snapshots."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "json"


def load(path: Path) -> Settings:
    """Reads the settings from a file. Raises SettingsError with one line if it is invalid."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: {' '.join(str(error).split())}") from error
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        raise SettingsError(f"{path}: {first_error(error).line('the file')}") from error


def endpoint_allowed(endpoint: str, allowed: tuple[str, ...]) -> bool:
    """Whether an S3 endpoint matches a pattern: same scheme and port, host compared by label.

    An invalid URL, as pattern or endpoint, matches nothing.
    """
    if not endpoint:
        return True
    return any(_same_server(endpoint, pattern) for pattern in allowed)


def _same_server(endpoint: str, pattern: str) -> bool:
    try:
        mine, theirs = urlsplit(endpoint), urlsplit(pattern)
        same = mine.scheme == theirs.scheme and _port(mine) == _port(theirs)
    except ValueError:
        return False
    if not same:
        return False
    host, wanted = (mine.hostname or "").split("."), (theirs.hostname or "").split(".")
    return len(host) == len(wanted) and all(
        fnmatch.fnmatchcase(part, want) for part, want in zip(host, wanted, strict=True)
    )


def _port(url: SplitResult) -> int:
    """The port of a URL, or its scheme's default. Raises ValueError for an invalid port."""
    if url.port is not None:
        return url.port
    return 443 if url.scheme == "https" else 80
