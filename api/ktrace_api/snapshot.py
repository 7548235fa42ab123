# SPDX-License-Identifier: Apache-2.0
"""TraceSnapshot: what a user asks for (the CRD is rendered from this).

Every field is bounded, so that any object that the API server admits is small. Rules that span
fields are CEL (`x-kubernetes-validations`) and hold in the API server; the same rules are
validators here, since an object may also come from an older schema.
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
    """Label that the requirement looks at."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How the label's value is compared with `values`."""
    values: Annotated[tuple[LabelValue, ...], Field(max_length=64)] = Field(
        default=(), json_schema_extra=ATOMIC_LIST
    )
    """Values for In and NotIn; empty for Exists and DoesNotExist."""

    @model_validator(mode="after")
    def _values_fit(self) -> Self:
        if (self.operator in ("In", "NotIn")) != bool(self.values):
            raise ValueError("values go with In and NotIn, and only with them")
        return self

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
                "values go with In and NotIn, and only with them",
            )
        )
    )


class LabelSelector(KubeModel):
    """A label selector as elsewhere in Kubernetes; an empty one selects everything."""

    match_labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] = Field(
        default_factory=dict
    )
    """Labels and the values that they must have; at most 16."""
    match_expressions: Annotated[tuple[SelectorRequirement, ...], Field(max_length=16)] = Field(
        default=(), json_schema_extra=ATOMIC_LIST
    )
    """Requirements that must all hold; at most 16."""

    def matches(self, labels: dict[str, str]) -> bool:
        """Whether an object with these labels is selected (apimachinery labels.Requirement)."""
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
    """Pods whose nodes are traced; only the events of these pods are kept."""

    namespace: Annotated[str, Field(max_length=63, pattern=DNS_LABEL)] | None = None
    """Namespace of the pods; the snapshot's own where it is not given."""
    selector: LabelSelector
    """Labels of the pods."""


class NodeTarget(KubeModel):
    """Which nodes are traced: exactly one of names, selector and pods."""

    names: Annotated[
        Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_NODES)] | None,
        AfterValidator(distinct),
    ] = Field(default=None, json_schema_extra=SET_LIST)
    """Names of nodes; at most 1000."""
    selector: LabelSelector | None = None
    """Labels of nodes; an empty selector means all nodes."""
    pods: PodTarget | None = None
    """The nodes that host these pods."""
    max: int = Field(default=100, ge=1, le=MAX_NODES)
    """If more nodes than this match, the snapshot is refused and nothing is started; 1 to 1000."""
    parallelism: int = Field(default=0, ge=0, le=MAX_NODES)
    """Agents that run at once; 0 means all."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "[has(self.names), has(self.selector), has(self.pods)].exists_one(x, x)",
                "exactly one of names, selector and pods must be given",
            )
        )
    )

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        given = [one for one in (self.names, self.selector, self.pods) if one is not None]
        if len(given) != 1:
            raise ValueError("exactly one of names, selector and pods must be given")
        return self


class CaptureSpec(KubeModel):
    """What each agent records: options of CaptureConfig, with its bounds and defaults."""

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

    def config(self) -> dict[str, Any]:
        """The same options as fields of CaptureConfig, by name."""
        fields = {name: getattr(self, name) for name in CaptureSpec.model_fields}
        return fields | {"cri": _CRI[self.cri]}


_CRI = {"Auto": "auto", "Enabled": "true", "Disabled": "false"}


class S3Output(KubeModel):
    """A bucket of S3 or of a server that speaks it."""

    bucket: Annotated[str, Field(min_length=3, max_length=63, pattern=BUCKET)]
    """Name of the bucket; it must exist."""
    prefix: KeyPath = ""
    """Prefix of all keys, without a slash at either end."""
    region: Annotated[str, Field(max_length=32, pattern=r"^$|^[a-z0-9-]+$")] = ""
    """Region of the bucket; empty: the agent's environment decides."""
    endpoint: Annotated[str, Field(max_length=253, pattern=rf"^$|{ENDPOINT}")] = ""
    """URL of the server, `https://host:port`, for what is not AWS; it must be in the chart's
    list of allowed endpoints."""
    path_style: bool = False
    """Put the bucket into the path instead of the host name."""
    kms_key_id: Annotated[str, Field(max_length=256, pattern=r"^$|^[A-Za-z0-9:/_-]+$")] = ""
    """KMS key that the server encrypts with; empty: the bucket's own setting."""
    credentials_secret: Annotated[str, Field(max_length=253, pattern=rf"^$|{DNS_SUBDOMAIN}")] = ""
    """Secret in the snapshot's namespace, labelled ktrace.io/credentials=true, with the keys
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if need be, AWS_SESSION_TOKEN. Empty: the
    identity of the node or of the agent's service account."""


class PvcOutput(KubeModel):
    """A PersistentVolumeClaim in the snapshot's namespace."""

    claim_name: Name
    """Name of the claim; ReadWriteMany where more than one node is traced."""
    sub_path: KeyPath = ""
    """Folder in the volume, without a slash at either end."""


class Output(KubeModel):
    """Where bundles go: at most one of s3 and pvc."""

    s3: S3Output | None = None
    """A bucket."""
    pvc: PvcOutput | None = None
    """A volume."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("[has(self.s3), has(self.pvc)].exists_one(x, x)", "give one of s3 and pvc")
        )
    )

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.s3 is None) == (self.pvc is None):
            raise ValueError("give one of s3 and pvc")
        return self


_IMMUTABLE = "spec cannot be changed, except stop; make a new TraceSnapshot"


class SnapshotSpec(KubeModel):
    """What to trace, for how long, and where the bundles go. Immutable, except `stop`."""

    nodes: NodeTarget
    """Which nodes are traced."""
    duration: SnapshotDuration = capture_option("duration", note="The chart may lower the maximum.")
    capture: CaptureSpec = CaptureSpec()
    """What each agent records."""
    output: Output | None = None
    """Where the bundles go; the chart's default output where it is not given."""
    ttl_after_finished: (
        Annotated[SnapshotDuration, Field(ge=timedelta(0), le=timedelta(days=7))] | None
    ) = Field(
        default=None,
        json_schema_extra=rules(
            ("duration(self) <= duration('168h')", "must be at most 168h, as seconds or minutes")
        ),
    )
    """The snapshot deletes itself this long after its end, such as 3600s: at most 168h in
    seconds or minutes. Not given: it stays. Ignored where a GitOps tool owns it, since the tool
    would make it again."""
    stop: bool = Field(
        default=False,
        json_schema_extra=rules(("self || !oldSelf", "stop cannot be taken back")),
    )
    """True ends the capture now; what was recorded until then is kept."""

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
    """Traces what the sockets of some nodes do, for a while, as metadata only."""

    model_config = ConfigDict(extra="ignore")

    metadata: ObjectMeta
    spec: SnapshotSpec
    status: SnapshotStatus = SnapshotStatus()
