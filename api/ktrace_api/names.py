# SPDX-License-Identifier: Apache-2.0
"""Closed lists of names that appear in rows, bundles and conditions."""

from enum import StrEnum

API_GROUP = "ktrace.io"
API_VERSION = "v1alpha1"
KIND = "TraceSnapshot"
PLURAL = "tracesnapshots"

FINALIZER = "ktrace.io/collect"
"""On agent pods: kept until the pod's result is stored in the snapshot's status."""
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "ktrace-operator"
LABEL_APP = "app.kubernetes.io/name"
AGENT_APP = "ktrace-agent"
LABEL_SNAPSHOT = "ktrace.io/snapshot"
"""Name of the snapshot that an agent pod works for."""
LABEL_SNAPSHOT_UID = "ktrace.io/snapshot-uid"
LABEL_NODE = "ktrace.io/node-hash"
"""node_hash() of the node: names of nodes may be longer than a label's value."""
LABEL_CREDENTIALS = "ktrace.io/credentials"
"""`true` on a Secret: its owner lets snapshots of its namespace use it."""
AGENT_CONTAINER = "agent"
CAPTURE_VARIABLE = "KTRACE_CAPTURE"
"""Environment variable of an agent pod that holds its Assignment as JSON."""
MAX_NAME = 63
"""Characters of a snapshot's name: it is a label's value on the agents' pods."""
UNKNOWN = "-"
"""How a fact that is not known is written, whatever its type otherwise."""


class EventKind(StrEnum):
    """What a capture may be asked to record."""

    TCP = "tcp"
    UDP = "udp"
    CONNECT = "connect"
    RETRANSMIT = "retransmit"


class RowType(StrEnum):
    """`type` of a row; also the name of the hook in the accounting."""

    TCP_STATE = "tcp_state"
    UDP_SEND = "udp_send"
    UDP_RECV = "udp_recv"
    CONNECT = "connect"
    TCP_RETRANSMIT = "tcp_retransmit"


class OwnerSource(StrEnum):
    """Why the process of a row is said to own its socket (docs/bundle-format.md)."""

    NONE = "none"
    PROCESS = "process"
    ACCEPT = "accept"
    LISTENER = "listener"
    INVENTORY = "inventory"


class PeerSource(StrEnum):
    """Where the remote address of a row comes from."""

    NONE = "none"
    SOCKET = "socket"
    CALL = "call"
    PACKET = "packet"
    CORK = "cork"


class Role(StrEnum):
    """Which end of the conversation the row's process is."""

    UNKNOWN = UNKNOWN
    CLIENT = "client"
    SERVER = "server"


class ConnectResult(StrEnum):
    """How a connect() ended."""

    ESTABLISHED = "established"
    FAILED = "failed"
    ABANDONED = "abandoned"
    INTERRUPTED = "interrupted"
    PENDING = "pending"
    DENIED = "denied"


class TcpState(StrEnum):
    """TCP states in the order of the kernel's numbers, 1 to 13 (include/net/tcp_states.h)."""

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


class NodeReason(StrEnum):
    """Why a node's capture ended as it did; the only reasons that a condition may carry."""

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
    CANCELED = "Canceled"


class Outcome(StrEnum):
    """How it stands with one node of a snapshot; the last three are final."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SKIPPED = "Skipped"


class Phase(StrEnum):
    """A snapshot in one word, for people; derived from its conditions."""

    PENDING = "Pending"
    RUNNING = "Running"
    COMPLETED = "Completed"
    PARTIALLY_COMPLETED = "PartiallyCompleted"
    FAILED = "Failed"
    CANCELED = "Canceled"


class ConditionType(StrEnum):
    """Conditions of a snapshot, readable by kstatus."""

    ACCEPTED = "Accepted"
    """The spec is valid, allowed, and its nodes are known."""
    SUCCEEDED = "Succeeded"
    """Unknown until the end; True: every node that was asked delivered its bundle."""
    FINISHED = "Finished"
    """True at any end, good or bad."""
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    """True: it ended badly and will not go on by itself."""
    READY = "Ready"
    """True: it ended well."""


class ConditionReason(StrEnum):
    """Why a condition of a snapshot stands as it does; the whole list."""

    ACCEPTED = "Accepted"
    RESOLVING = "Resolving"
    """What the spec names (a Secret, a claim) is not there yet; it is looked at again."""
    INVALID_SPEC = "InvalidSpec"
    POLICY_DENIED = "PolicyDenied"
    """The chart's settings do not allow what the spec asks for."""
    NO_NODES_MATCHED = "NoNodesMatched"
    TOO_MANY_NODES = "TooManyNodes"
    NO_OUTPUT = "NoOutput"
    """Neither the spec nor the chart says where bundles go."""
    CREDENTIALS_UNUSABLE = "CredentialsUnusable"
    CLAIM_UNUSABLE = "ClaimUnusable"
    RUNNING = "Running"
    COMPLETED = "Completed"
    PARTIALLY_COMPLETED = "PartiallyCompleted"
    ALL_FAILED = "AllFailed"
    CANCELED = "Canceled"
