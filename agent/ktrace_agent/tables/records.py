# SPDX-License-Identifier: Apache-2.0
"""The records of agent/bpf/events.h as numpy dtypes, and the dictionaries that make them small.

Imported only after the BPF programs are detached. tests/agent/tables/test_record_layout.py
compares every offset and size with the C structs.
"""

import errno
import os
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
CHUNK = 32_768
"""Records that are processed at a time: bounds the memory of temporary arrays."""

# Names by the number that the BPF programs write, in the order of the enums in events.h.
ROW_TYPES = tuple(RowType)
OWNER_SOURCES = tuple(OwnerSource)
PEER_SOURCES = tuple(PeerSource)
ROLES = tuple(Role)
RESULTS = (UNKNOWN, *ConnectResult)
STATES = (UNKNOWN, *TcpState)
FAMILIES = {4: "ipv4", 6: "ipv6"}
TYPE = {name: number for number, name in enumerate(ROW_TYPES)}
UDP_TYPES = (TYPE[RowType.UDP_SEND], TYPE[RowType.UDP_RECV])
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
"""The fields of a record that describe its process; many records share one value."""

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
"""An event whose process and addresses are numbers of a Dictionary.

`measure` is in the unit of the row's type: microseconds, bytes or segments; -1 = unknown.
`flags` is -1 if the type has none.
"""

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
# Names that errno.errorcode replaces by an alias, and errnos that exist only inside the kernel.
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
    """Yields the EVENT records of a spool file in order, in arrays of up to `records`.

    The next array overwrites the memory of the one before.
    """
    buffer = bytearray(records * EVENT.itemsize)
    offset = 0
    while (got := _fill(fd, buffer, offset)) >= EVENT.itemsize:
        yield np.frombuffer(buffer, EVENT, got // EVENT.itemsize)
        offset += got


def network_namespaces(recording: Recording) -> list[int]:
    """Returns the inodes of the network namespaces of events and flows, the most frequent first."""
    counts: Counter[int] = Counter()
    flows = np.frombuffer(recording.flow_keys, FLOW_KEY)
    for records in (flows, *chunks(recording.spool_fd, 65_536)):
        inodes, numbers = np.unique(records["ns_net"], return_counts=True)
        counts.update(dict(zip(inodes.tolist(), numbers.tolist(), strict=True)))
    return [inode for inode, _ in counts.most_common() if inode]


def _fill(fd: int, buffer: bytearray, offset: int) -> int:
    """Reads until the buffer is full or the file ends; returns the number of bytes."""
    view, got = memoryview(buffer), 0
    while got < len(buffer) and (step := os.preadv(fd, [view[got:]], offset + got)):
        got += step
    return got


class Dictionary:
    """Distinct byte strings of one width, numbered in the order of their first occurrence."""

    def __init__(self, width: int) -> None:
        """`width` in bytes, a multiple of 8."""
        self._words = width // 8
        self._numbers: dict[bytes, int] = {}
        # Fixed odd numbers, so that the same spool gives the same bundle.
        self._factors = np.random.default_rng(1).integers(1, 2**63, self._words, np.uint64) * 2 + 1

    @property
    def keys(self) -> list[bytes]:
        """All strings, by number."""
        return list(self._numbers)

    def number(self, key: bytes) -> int:
        """Returns the number of one string; adds it if it is new."""
        return self._numbers.setdefault(key, len(self._numbers))

    def encode(self, keys: Array) -> npt.NDArray[np.uint32]:
        """Returns the number of each string; `keys` is a contiguous array of `width`-byte items."""
        words = np.ascontiguousarray(keys).view(np.uint64).reshape(-1, self._words)
        mixed = words * self._factors
        mixed ^= mixed >> np.uint64(29)
        _, first, inverse = np.unique(
            (mixed * self._factors[::-1]).sum(axis=1), return_index=True, return_inverse=True
        )
        if not np.array_equal(words[first][inverse], words):  # two strings have the same sum
            _, first, inverse = np.unique(words, axis=0, return_index=True, return_inverse=True)
        distinct = [self.number(words[index].tobytes()) for index in first.tolist()]
        return np.array(distinct, np.uint32)[inverse.reshape(-1)]


def owner_keys(events: Array) -> Array:
    """Returns the OWNER_KEY of each event, without flags that do not concern the owner."""
    keys = np.zeros(len(events), OWNER_KEY)
    for name in OWNER_KEY.names or ():
        if name != "pad":
            keys[name] = events[name]
    keys["known"] &= KNOWN_PROCESS | KNOWN_SECURITY | KNOWN_CGROUP
    return keys


def comm_text(comm: bytes) -> str:
    """Decodes the name of a task up to the first NUL; invalid UTF-8 becomes U+FFFD."""
    return comm.split(b"\0", 1)[0].decode("utf-8", "replace") or UNKNOWN


def flag_names(flags: int) -> list[str]:
    """Returns the names of MSG_ flags without the prefix, and unnamed bits as one hex number."""
    names = [name for bit, name in _MSG_FLAGS.items() if flags & bit]
    rest = flags & ~sum(_MSG_FLAGS)
    return [*names, hex(rest)] if rest else names


def errno_name(number: int) -> str:
    """Returns a name such as `ECONNREFUSED`; `-` for 0 and for unknown numbers."""
    return _ERRNO_NAMES.get(number, UNKNOWN)
