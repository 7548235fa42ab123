# SPDX-License-Identifier: Apache-2.0
"""Closed lists of names that appear in rows, bundles and conditions."""

from enum import StrEnum

API_GROUP = "ktrace.io"
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
