# SPDX-License-Identifier: Apache-2.0
"""TraceSnapshot: the spec that a user writes. The CRD is rendered from these models.

Every field is bounded, so every object that the API server accepts is small. Rules that span
fields are CEL (`x-kubernetes-validations`), evaluated by the API server. The same rules are
validators here, because an object may have been created under an older schema.
"""

from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from ktrace_api.kubeobject import (
    ATOMIC_LIST,
    BUCKET,
    DNS_LABEL,
    DNS_SUBDOMAIN,
    ENDPOINT,
    SET_LIST,
    KeyPath,
    KubeModel,
    LabelKey,
    LabelValue,
    Name,
    ObjectMeta,
    Port,
    SnapshotDuration,
    SnapshotSize,
    distinct,
    rules,
)
from ktrace_api.names import EventKind
from ktrace_api.options import capture_option
from ktrace_api.status import SnapshotStatus

MAX_NODES = 1000


class SelectorRequirement(KubeModel):
    """One requirement on a label."""

    key: LabelKey
    """Label key that the requirement applies to."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """Relation of the label's value to `values`."""
    values: Annotated[tuple[LabelValue, ...], Field(max_length=64)] = Field(
        default=(), json_schema_extra=ATOMIC_LIST
    )
    """Values for In and NotIn; must be empty for Exists and DoesNotExist."""

    @model_validator(mode="after")
    def _values_fit(self) -> Self:
        if (self.operator in ("In", "NotIn")) != bool(self.values):
            raise ValueError(
                "values must be set for In and NotIn, and empty for Exists and DoesNotExist"
            )
        return self

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
                "values must be set for In and NotIn, and empty for Exists and DoesNotExist",
            )
        )
    )


class LabelSelector(KubeModel):
    """A Kubernetes label selector; an empty selector matches everything."""

    match_labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] = Field(
        default_factory=dict
    )
    """Required labels and their values; maximum 16."""
    match_expressions: Annotated[tuple[SelectorRequirement, ...], Field(max_length=16)] = Field(
        default=(), json_schema_extra=ATOMIC_LIST
    )
    """Requirements that must all be met; maximum 16."""

    def matches(self, labels: dict[str, str]) -> bool:
        """Whether the selector matches these labels (apimachinery labels.Requirement)."""
        if any(labels.get(key) != value for key, value in self.match_labels.items()):
            return False
        return all(_holds(one, labels) for one in self.match_expressions)


def _holds(requirement: SelectorRequirement, labels: dict[str, str]) -> bool:
    present, value = requirement.key in labels, labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return present and value in requirement.values
        case "NotIn":
            return not present or value not in requirement.values
        case "Exists":
            return present
        case "DoesNotExist":
            return not present


class PodTarget(KubeModel):
    """Pods whose nodes are traced; only events of these pods are recorded."""

    namespace: Annotated[str, Field(max_length=63, pattern=DNS_LABEL)] | None = None
    """Namespace of the pods; defaults to the namespace of the snapshot."""
    selector: LabelSelector
    """Selects pods by their labels."""


class NodeTarget(KubeModel):
    """Nodes to trace: exactly one of names, selector and pods."""

    names: Annotated[
        Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_NODES)] | None,
        AfterValidator(distinct),
    ] = Field(default=None, json_schema_extra=SET_LIST)
    """Node names; maximum 1000."""
    selector: LabelSelector | None = None
    """Selects nodes by their labels; an empty selector matches all nodes."""
    pods: PodTarget | None = None
    """Selects the nodes that run these pods; only events of these pods are recorded."""
    max: int = Field(default=100, ge=1, le=MAX_NODES)
    """Fail if more nodes than this match: 1 to 1000."""
    parallelism: int = Field(default=0, ge=0, le=MAX_NODES)
    """Maximum agents running at the same time; 0 means no limit."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "[has(self.names), has(self.selector), has(self.pods)].exists_one(x, x)",
                "exactly one of names, selector and pods must be set",
            )
        )
    )

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        given = [one for one in (self.names, self.selector, self.pods) if one is not None]
        if len(given) != 1:
            raise ValueError("exactly one of names, selector and pods must be set")
        return self


class CaptureSpec(KubeModel):
    """Options of the recording on each node."""

    events: Annotated[tuple[EventKind, ...], AfterValidator(distinct)] = capture_option(
        "events", **SET_LIST
    )
    dns_only: bool = capture_option("dns_only")
    ports: Annotated[tuple[Port, ...], AfterValidator(distinct)] = capture_option(
        "ports", **SET_LIST
    )
    sample: int = capture_option("sample")
    max_events: int = capture_option("max_events")
    max_bytes: SnapshotSize = capture_option("max_bytes")
    conntrack: bool = capture_option("conntrack")
    cri: Literal["Auto", "Enabled", "Disabled"] = capture_option(
        "cri",
        "Query the container runtime for pod names: Auto (if one is found), Enabled (report if "
        "none answers), Disabled (never).",
        default="Auto",
    )
    security: bool = capture_option("security")
    backend: Literal["Auto", "Core", "Bcc"] = capture_option(
        "backend",
        "How eBPF programs are loaded: Core (needs BTF), Bcc (compiles them, needs the agent image "
        "with bcc and the headers of the kernel on the node), Auto (Bcc only without BTF).",
        default="Auto",
    )

    def config(self) -> dict[str, Any]:
        """The same options as fields of CaptureConfig, by name."""
        fields = {name: getattr(self, name) for name in CaptureSpec.model_fields}
        return fields | {"cri": _CRI[self.cri], "backend": self.backend.lower()}


_CRI = {"Auto": "auto", "Enabled": "true", "Disabled": "false"}


class S3Output(KubeModel):
    """A bucket of S3 or of an S3-compatible server."""

    bucket: Annotated[str, Field(min_length=3, max_length=63, pattern=BUCKET)]
    """Name of the bucket, which must exist."""
    prefix: KeyPath = ""
    """Prefix of all keys, without leading or trailing slash."""
    region: Annotated[str, Field(max_length=32, pattern=r"^$|^[a-z0-9-]+$")] = ""
    """Region of the bucket; empty: taken from the agent's environment."""
    endpoint: Annotated[str, Field(max_length=253, pattern=rf"^$|{ENDPOINT}")] = ""
    """URL of an S3-compatible server, `https://host:port`; empty for AWS. It must be in the list of
    allowed endpoints of the chart."""
    path_style: bool = False
    """Put the bucket name into the path of URLs instead of the host name."""
    kms_key_id: Annotated[str, Field(max_length=256, pattern=r"^$|^[A-Za-z0-9:/_-]+$")] = ""
    """KMS key for server-side encryption; empty: the setting of the bucket."""
    credentials_secret: Annotated[str, Field(max_length=253, pattern=rf"^$|{DNS_SUBDOMAIN}")] = ""
    """Secret in the namespace of the snapshot, labelled ktrace.io/credentials=true, with the keys
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if needed, AWS_SESSION_TOKEN. Empty: the identity
    of the node or of the agent's service account is used."""


class PvcOutput(KubeModel):
    """A PersistentVolumeClaim in the namespace of the snapshot."""

    claim_name: Name
    """Name of the claim. It must be ReadWriteMany if more than one node is traced."""
    sub_path: KeyPath = ""
    """Folder in the volume, without leading or trailing slash."""


class Output(KubeModel):
    """Destination of the bundles: exactly one of s3 and pvc."""

    s3: S3Output | None = None
    """Store bundles in an S3 bucket."""
    pvc: PvcOutput | None = None
    """Store bundles in a PersistentVolumeClaim."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "[has(self.s3), has(self.pvc)].exists_one(x, x)",
                "exactly one of s3 and pvc must be set",
            )
        )
    )

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.s3 is None) == (self.pvc is None):
            raise ValueError("exactly one of s3 and pvc must be set")
        return self


_IMMUTABLE = "spec is immutable except spec.stop; create a new TraceSnapshot"


class SnapshotSpec(KubeModel):
    """Nodes to trace, options of the recording, and destination. Immutable except `stop`."""

    nodes: NodeTarget
    """Nodes to trace: exactly one of names, selector and pods. Nodes that are not ready or whose
    platform has no agent image are skipped."""
    duration: SnapshotDuration = capture_option("duration", note="The chart may lower the maximum.")
    capture: CaptureSpec = CaptureSpec()
    """Options of the recording on each node."""
    output: Output | None = None
    """Destination of the bundles; defaults to the default output of the chart."""
    ttl_after_finished: (
        Annotated[SnapshotDuration, Field(ge=timedelta(0), le=timedelta(days=7))] | None
    ) = Field(
        default=None,
        json_schema_extra=rules(
            ("duration(self) <= duration('168h')", "must be 168h or less, in seconds or minutes")
        ),
    )
    """Delete the snapshot this long after it finished, for example 3600s; maximum 168h, in seconds
    or minutes. If not set, the snapshot is kept. Ignored if a GitOps tool manages the snapshot,
    because the tool would create it again."""
    stop: bool = Field(
        default=False,
        json_schema_extra=rules(("self || !oldSelf", "spec.stop cannot be reset to false")),
    )
    """Set to true to stop recording now and keep the events recorded so far."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("self.nodes == oldSelf.nodes", _IMMUTABLE),
            ("self.duration == oldSelf.duration", _IMMUTABLE),
            ("self.capture == oldSelf.capture", _IMMUTABLE),
            (
                (
                    "has(self.output) == has(oldSelf.output) && "
                    "(!has(self.output) || self.output == oldSelf.output)"
                ),
                _IMMUTABLE,
            ),
            (
                (
                    "has(self.ttlAfterFinished) == has(oldSelf.ttlAfterFinished) && "
                    "(!has(self.ttlAfterFinished) || "
                    "self.ttlAfterFinished == oldSelf.ttlAfterFinished)"
                ),
                _IMMUTABLE,
            ),
        )
    )


class TraceSnapshot(KubeModel):
    """Records socket activity on some nodes for a limited time, as metadata only."""

    model_config = ConfigDict(extra="ignore")

    metadata: ObjectMeta
    spec: SnapshotSpec
    status: SnapshotStatus = SnapshotStatus()
