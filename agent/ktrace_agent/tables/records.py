# SPDX-License-Identifier: Apache-2.0
"""The numpy mirror of agent/bpf/events.h, and the dictionaries that make its records small.

Loaded only after the programs are detached. tests/agent/tables/test_record_layout.py
compares every offset and size with the C structs.
"""

import errno
import os
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ktrace_agent.kernel.recording import Recording
from ktrace_api.names import (
    UNKNOWN,
    ConnectResult,
    OwnerSource,
    PeerSource,
    Role,
    RowType,
    TcpState,
)

Array = npt.NDArray[Any]

COMM_LEN = 16
UNKNOWN_U64 = 2**64 - 1
KNOWN_PROCESS, KNOWN_SECURITY, KNOWN_CGROUP = 1, 2, 4
FLAG_CORKED = 1 << 31
FLAG_SYNACK = 1
IPPROTO_TCP, IPPROTO_UDP = 6, 17

_MAPPED = b"\0" * 10 + b"\xff\xff"
WILDCARDS = (_MAPPED + b"\0" * 4, b"\0" * 16)
"""0.0.0.0 and ::"""

# Names by the number that the kernel side writes; the order is that of the enums in events.h.
ROW_TYPES = tuple(RowType)
OWNER_SOURCES = tuple(OwnerSource)
PEER_SOURCES = tuple(PeerSource)
ROLES = tuple(Role)
RESULTS = (UNKNOWN, *ConnectResult)
STATES = (UNKNOWN, *TcpState)
FAMILIES = {4: "ipv4", 6: "ipv6"}
TYPE = {name: number for number, name in enumerate(ROW_TYPES)}
OWNER = {name: number for number, name in enumerate(OWNER_SOURCES)}
STATE = {name: number for number, name in enumerate(STATES)}

EVENT = np.dtype(
    [
        ("ts", "<u8"),
        ("sock", "<u8"),
        ("cgroup_id", "<u8"),
        ("caps_eff", "<u8"),
        ("duration", "<u8"),
        ("local_addr", "V16"),
        ("remote_addr", "V16"),
        ("pid", "<u4"),
        ("tgid", "<u4"),
        ("ppid", "<u4"),
        ("uid", "<u4"),
        ("gid", "<u4"),
        ("ns_net", "<u4"),
        ("ns_mnt", "<u4"),
        ("ns_pid", "<u4"),
        ("ns_user", "<u4"),
        ("bytes", "<u4"),
        ("error", "<i4"),
        ("flags", "<u4"),
        ("local_port", "<u2"),
        ("remote_port", "<u2"),
        ("segs", "<u2"),
        ("type", "u1"),
        ("family", "u1"),
        ("old_state", "u1"),
        ("new_state", "u1"),
        ("role", "u1"),
        ("owner_source", "u1"),
        ("peer_source", "u1"),
        ("seccomp_mode", "u1"),
        ("result", "u1"),
        ("known", "u1"),
        ("comm", "V16"),
    ]
)
FLOW_KEY = np.dtype(
    [
        ("local_addr", "V16"),
        ("remote_addr", "V16"),
        ("ns_net", "<u4"),
        ("tgid", "<u4"),
        ("local_port", "<u2"),
        ("remote_port", "<u2"),
        ("proto", "u1"),
        ("family", "u1"),
        ("pad", "V2"),
    ]
)
FLOW = np.dtype(
    [
        ("tx_bytes", "<u8"),
        ("rx_bytes", "<u8"),
        ("tx_calls", "<u8"),
        ("rx_calls", "<u8"),
        ("first_ts", "<u8"),
        ("last_ts", "<u8"),
        ("cgroup_id", "<u8"),
        ("uid", "<u4"),
        ("opened", "<u4"),
        ("failed", "<u4"),
        ("retrans_segs", "<u4"),
        ("role", "u1"),
        ("known", "u1"),
        ("pad", "V6"),
        ("comm", "V16"),
    ]
)

OWNER_KEY = np.dtype(
    [
        (name, EVENT[name])
        for name in (
            "cgroup_id",
            "caps_eff",
            "pid",
            "tgid",
            "ppid",
            "uid",
            "gid",
            "ns_mnt",
            "ns_pid",
            "ns_user",
            "comm",
            "seccomp_mode",
            "known",
        )
    ]
    + [("pad", "V6")]
)
"""The facts of a record that belong to its process; many records share one."""

ROW = np.dtype(
    [
        ("ts", "<i8"),
        ("sock", "<u8"),
        ("measure", "<i8"),
        ("flags", "<i8"),
        ("owner", "<u4"),
        ("local", "<u4"),
        ("remote", "<u4"),
        ("net", "<u4"),
        ("error", "<i4"),
        ("local_port", "<u2"),
        ("remote_port", "<u2"),
        ("type", "u1"),
        ("family", "u1"),
        ("old_state", "u1"),
        ("new_state", "u1"),
        ("role", "u1"),
        ("owner_source", "u1"),
        ("peer_source", "u1"),
        ("result", "u1"),
        ("synack", "u1"),
    ]
)
"""An event whose process and addresses are numbers of a Dictionary. `measure` is what its
type measures (microseconds, bytes or segments; -1 = not known); `flags` is -1 where a row
has none."""

_MSG_FLAGS = {
    0x1: "OOB",
    0x2: "PEEK",
    0x4: "DONTROUTE",
    0x8: "CTRUNC",
    0x10: "PROBE",
    0x20: "TRUNC",
    0x40: "DONTWAIT",
    0x80: "EOR",
    0x100: "WAITALL",
    0x200: "FIN",
    0x400: "SYN",
    0x800: "CONFIRM",
    0x1000: "RST",
    0x2000: "ERRQUEUE",
    0x4000: "NOSIGNAL",
    0x8000: "MORE",
    0x10000: "WAITFORONE",
    0x20000: "SENDPAGE_NOTLAST",
    0x40000: "BATCH",
    0x2000000: "SOCK_DEVMEM",
    0x4000000: "ZEROCOPY",
    0x8000000: "SPLICE_PAGES",
    0x20000000: "FASTOPEN",
    0x40000000: "CMSG_CLOEXEC",
    FLAG_CORKED: "CORKED",
}
# Names where errno.errorcode prefers an alias, and what only the kernel itself returns.
_ERRNO_NAMES = {
    **errno.errorcode,
    11: "EAGAIN",
    35: "EDEADLK",
    95: "EOPNOTSUPP",
    512: "ERESTARTSYS",
    513: "ERESTARTNOINTR",
    514: "ERESTARTNOHAND",
    516: "ERESTART_RESTARTBLOCK",
}


def chunks(fd: int, records: int) -> Iterator[Array]:
    """The EVENT records of a spool file in order, at most `records` at once.

    The array is overwritten by the next one: copy what has to stay.
    """
    buffer = bytearray(records * EVENT.itemsize)
    offset = 0
    while (got := _fill(fd, buffer, offset)) >= EVENT.itemsize:
        yield np.frombuffer(buffer, EVENT, got // EVENT.itemsize)
        offset += got


def network_namespaces(recording: Recording) -> list[int]:
    """Inodes of the network namespaces that events or flows are in, most of them first."""
    counts: Counter[int] = Counter()
    flows = np.frombuffer(recording.flow_keys, FLOW_KEY)
    for records in (flows, *chunks(recording.spool_fd, 65_536)):
        inodes, numbers = np.unique(records["ns_net"], return_counts=True)
        counts.update(dict(zip(inodes.tolist(), numbers.tolist(), strict=True)))
    return [inode for inode, _ in counts.most_common() if inode]


def _fill(fd: int, buffer: bytearray, offset: int) -> int:
    """Read until the buffer is full or the file ends; the number of bytes."""
    view, got = memoryview(buffer), 0
    while got < len(buffer) and (step := os.preadv(fd, [view[got:]], offset + got)):
        got += step
    return got


class Dictionary:
    """Distinct byte strings of one width, numbered in the order of first sight."""

    def __init__(self, width: int) -> None:
        """`width` in bytes, a multiple of 8."""
        self._words = width // 8
        self._numbers: dict[bytes, int] = {}
        # Fixed odd numbers: the same spool gives the same bundle.
        self._factors = np.random.default_rng(1).integers(1, 2**63, self._words, np.uint64) * 2 + 1

    @property
    def keys(self) -> list[bytes]:
        """All strings; the index is the number."""
        return list(self._numbers)

    def number(self, key: bytes) -> int:
        """The number of one string."""
        return self._numbers.setdefault(key, len(self._numbers))

    def encode(self, keys: Array) -> npt.NDArray[np.uint32]:
        """The number of each of the strings (any contiguous array of `width`-byte items)."""
        words = np.ascontiguousarray(keys).view(np.uint64).reshape(-1, self._words)
        mixed = words * self._factors
        mixed ^= mixed >> np.uint64(29)
        _, first, inverse = np.unique(
            (mixed * self._factors[::-1]).sum(axis=1), return_index=True, return_inverse=True
        )
        if not np.array_equal(words[first][inverse], words):  # two strings with one sum
            _, first, inverse = np.unique(words, axis=0, return_index=True, return_inverse=True)
        distinct = [self.number(words[index].tobytes()) for index in first.tolist()]
        return np.array(distinct, np.uint32)[inverse.reshape(-1)]


def owner_keys(events: Array) -> Array:
    """OWNER_KEY of each event, with what is not known zeroed so that equal facts are equal."""
    keys = np.zeros(len(events), OWNER_KEY)
    for name in OWNER_KEY.names or ():
        if name != "pad":
            keys[name] = events[name]
    keys["known"] &= KNOWN_PROCESS | KNOWN_SECURITY | KNOWN_CGROUP
    return keys


def comm_text(comm: bytes) -> str:
    """The name of a task as text: up to the first NUL, invalid UTF-8 as U+FFFD."""
    return comm.split(b"\0", 1)[0].decode("utf-8", "replace") or UNKNOWN


def address_text(address: bytes) -> str:
    """`192.0.2.1` for IPv4-mapped addresses, else `[2001:db8::1]`."""
    if address[:12] == _MAPPED:
        return socket.inet_ntop(socket.AF_INET, address[12:])
    return f"[{socket.inet_ntop(socket.AF_INET6, address)}]"


def flag_names(flags: int) -> list[str]:
    """Names of MSG_ flags without the prefix; bits without a name as one hexadecimal number."""
    names = [name for bit, name in _MSG_FLAGS.items() if flags & bit]
    rest = flags & ~sum(_MSG_FLAGS)
    return [*names, hex(rest)] if rest else names


def errno_name(number: int) -> str:
    """`ECONNREFUSED`; `-` for 0 and for numbers without a name."""
    return _ERRNO_NAMES.get(number, UNKNOWN)
