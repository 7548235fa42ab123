# SPDX-License-Identifier: Apache-2.0
"""Enumerations and constants that appear in rows, bundles and conditions."""

from enum import StrEnum
from typing import Literal

API_GROUP = "ktrace.io"
API_VERSION = "v1alpha1"
KIND = "TraceSnapshot"
PLURAL = "tracesnapshots"

FINALIZER = "ktrace.io/collect"
"""Finalizer of agent pods; removed when the pod's result is stored in the snapshot's status."""
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "ktrace-operator"
LABEL_APP = "app.kubernetes.io/name"
AGENT_APP = "ktrace-agent"
LABEL_SNAPSHOT = "ktrace.io/snapshot"
"""Label of an agent pod: the name of its snapshot."""
LABEL_SNAPSHOT_UID = "ktrace.io/snapshot-uid"
LABEL_NODE = "ktrace.io/node-hash"
"""Label with node_hash() of the node, because a node name can be too long for a label value."""
LABEL_CREDENTIALS = "ktrace.io/credentials"
"""Label of a Secret; `true` allows snapshots of the same namespace to use it."""
AGENT_CONTAINER = "agent"
CAPTURE_VARIABLE = "KTRACE_CAPTURE"
"""Environment variable with the Assignment of an agent pod as JSON."""
MAX_NAME = 63
"""Maximum length of a snapshot's name, because it is a label value of the agents' pods."""
UNKNOWN = "-"
"""Placeholder for an unknown value in text fields."""


class EventKind(StrEnum):
    """Event types that a capture can record."""

    TCP = "tcp"
    UDP = "udp"
    CONNECT = "connect"
    RETRANSMIT = "retransmit"


BackendName = Literal["core", "bcc"]
"""How eBPF programs are made to fit the kernel: by its BTF, or compiled with its headers."""


class RowType(StrEnum):
    """Type of a row; also the name of the hook in the accounting."""

    TCP_STATE = "tcp_state"
    UDP_SEND = "udp_send"
    UDP_RECV = "udp_recv"
    CONNECT = "connect"
    TCP_RETRANSMIT = "tcp_retransmit"


class OwnerSource(StrEnum):
    """How the owner of a row's socket was determined (docs/bundle-format.md)."""

    NONE = "none"
    PROCESS = "process"
    ACCEPT = "accept"
    LISTENER = "listener"
    INVENTORY = "inventory"


class PeerSource(StrEnum):
    """Source of a row's remote address."""

    NONE = "none"
    SOCKET = "socket"
    CALL = "call"
    PACKET = "packet"
    CORK = "cork"


class Role(StrEnum):
    """Role of the row's process in the connection."""

    UNKNOWN = UNKNOWN
    CLIENT = "client"
    SERVER = "server"


class ConnectResult(StrEnum):
    """Result of a connect()."""

    ESTABLISHED = "established"
    FAILED = "failed"
    ABANDONED = "abandoned"
    INTERRUPTED = "interrupted"
    PENDING = "pending"
    DENIED = "denied"


class TcpState(StrEnum):
    """TCP states in the order of the kernel's numbers 1 to 13 (include/net/tcp_states.h)."""

    ESTABLISHED = "ESTABLISHED"
    SYN_SENT = "SYN_SENT"
    SYN_RECV = "SYN_RECV"
    FIN_WAIT1 = "FIN_WAIT1"
    FIN_WAIT2 = "FIN_WAIT2"
    TIME_WAIT = "TIME_WAIT"
    CLOSE = "CLOSE"
    CLOSE_WAIT = "CLOSE_WAIT"
    LAST_ACK = "LAST_ACK"
    LISTEN = "LISTEN"
    CLOSING = "CLOSING"
    NEW_SYN_RECV = "NEW_SYN_RECV"
    BOUND_INACTIVE = "BOUND_INACTIVE"


class Gap(StrEnum):
    """Why a capture is not complete."""

    NOT_TRACED = "not_traced"
    """No program serves a requested hook on this kernel; `hooks_missing` names it."""
    LOST_RING = "lost_ring"
    """The ring buffer or the disk was full."""
    LOST_MAP = "lost_map"
    """A BPF map was full."""
    SKIPPED = "skipped"
    """The kernel did not run a program that was already running on the same CPU."""
    UNSEEN = "unseen"
    """The kernel ran no program for some events."""
    CAPPED = "capped"
    """max_events or max_bytes was reached."""
    OVERFLOW = "overflow"
    """Facts, but no events, did not fit into a BPF map."""
    ENDED_EARLY = "ended_early"
    """An error ended the capture."""


class NodeReason(StrEnum):
    """Reasons for the result of a node. The list is closed."""

    COMPLETED = "Completed"
    UPLOAD_FAILED = "UploadFailed"
    UNSUPPORTED_KERNEL = "UnsupportedKernel"
    PERMISSION_DENIED = "PermissionDenied"
    AGENT_ERROR = "AgentError"
    PROTOCOL_ERROR = "ProtocolError"
    IMAGE_ERROR = "ImageError"
    UNSCHEDULABLE = "Unschedulable"
    START_TIMEOUT = "StartTimeout"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    OOM_KILLED = "OOMKilled"
    EVICTED = "Evicted"
    POD_DELETED = "PodDeleted"
    NODE_LOST = "NodeLost"
    NODE_NOT_READY = "NodeNotReady"
    NODE_BUSY = "NodeBusy"
    UNSUPPORTED_PLATFORM = "UnsupportedPlatform"
    """No agent image exists for the operating system and architecture of the node."""
    CANCELED = "Canceled"


class Outcome(StrEnum):
    """State of one node of a snapshot; the last three are final."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SKIPPED = "Skipped"


class Phase(StrEnum):
    """Overall phase of a snapshot, for humans; derived from the conditions."""

    PENDING = "Pending"
    RUNNING = "Running"
    COMPLETED = "Completed"
    PARTIALLY_COMPLETED = "PartiallyCompleted"
    FAILED = "Failed"
    CANCELED = "Canceled"


class ConditionType(StrEnum):
    """Condition types of a snapshot, compatible with kstatus."""

    ACCEPTED = "Accepted"
    """True if the spec is valid and allowed, and its nodes are resolved."""
    SUCCEEDED = "Succeeded"
    """True if every traced node delivered its bundle; Unknown until the snapshot has finished."""
    FINISHED = "Finished"
    """True if the snapshot has finished, with or without success."""
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    """True if the snapshot failed and cannot continue."""
    READY = "Ready"
    """True if the snapshot completed."""


class ConditionReason(StrEnum):
    """Reasons of a snapshot's conditions. The list is closed."""

    ACCEPTED = "Accepted"
    RESOLVING = "Resolving"
    """A Secret or claim that the spec names does not exist yet; the operator retries."""
    INVALID_SPEC = "InvalidSpec"
    POLICY_DENIED = "PolicyDenied"
    """The settings of the chart do not allow the spec."""
    NO_NODES_MATCHED = "NoNodesMatched"
    TOO_MANY_NODES = "TooManyNodes"
    NO_OUTPUT = "NoOutput"
    """Neither the spec nor the chart sets an output."""
    CREDENTIALS_UNUSABLE = "CredentialsUnusable"
    CLAIM_UNUSABLE = "ClaimUnusable"
    RUNNING = "Running"
    COMPLETED = "Completed"
    PARTIALLY_COMPLETED = "PartiallyCompleted"
    ALL_FAILED = "AllFailed"
    UNSUPPORTED_PLATFORM = "UnsupportedPlatform"
    """No agent image exists for the platform of any selected node."""
    CANCELED = "Canceled"
