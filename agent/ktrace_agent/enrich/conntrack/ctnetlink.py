# SPDX-License-Identifier: Apache-2.0
"""Connection tracking of the calling thread's network namespace, by ctnetlink.

The messages are decoded here, because pyroute2 is more than twelve times slower: 6 s and more
for 100,000 entries (bench/bench_conntrack.py). Numbers: include/uapi/linux/netfilter/
nfnetlink_conntrack.h, nf_conntrack_common.h and nf_conntrack_tcp.h.
"""

import struct
from collections.abc import Callable

from ktrace_agent.enrich.conntrack.netlink import (
    ACK,
    DUMP,
    KIND_MASK,
    NETFILTER,
    answers,
    attributes,
)
from ktrace_agent.host.inet import TCP, UDP

TCP_STATES = (
    "-",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
)
"""Names of enum tcp_conntrack, by number."""
SEEN_REPLY, ASSURED, SRC_NAT, DST_NAT, OFFLOAD = 1 << 1, 1 << 2, 1 << 4, 1 << 5, 1 << 14
"""Bits of enum ip_conntrack_status."""

OnEntry = Callable[[bytes, int, int], None]
"""Receives an entry: its key (pack_key), the number of its TCP state, its status bits."""

_PROTOCOL_PORTS = struct.Struct(">BHH")
_HEAD = struct.Struct(">HI")
KEY_HEAD = _HEAD.size
"""Bytes of a key before its two tuples."""
_ATTRIBUTE = struct.Struct("=HH")
_BE16, _BE32 = struct.Struct(">H"), struct.Struct(">I")
_SUBSYSTEM = 1 << 8
_CT_NEW, _CT_GET, _CT_STATS_CPU, _CT_STATS = (_SUBSYSTEM | number for number in (0, 1, 4, 5))

STATISTICS = {
    2: "found",
    4: "invalid",
    8: "insert",
    9: "insert_failed",
    10: "drop",
    11: "early_drop",
    12: "error",
    13: "search_restart",
    14: "clash_resolve",
    15: "chain_toolong",
}
"""CTA_STATS_* that current kernels still count, summed over CPUs."""


def pack_key(zone: int, number: int, original: bytes, reply: bytes) -> bytes:
    """Packs the identity of an entry: zone, CTA_ID and both tuples (pack_tuple).

    CTA_ID distinguishes an entry from a later one with the same tuples; 0 = unknown.
    """
    return _HEAD.pack(zone, number) + original + reply


def pack_tuple(proto: int, source: bytes, sport: int, target: bytes, dport: int) -> bytes:
    """Packs addresses (4 or 16 bytes each), protocol and ports into 13 or 37 bytes."""
    return source + target + _PROTOCOL_PORTS.pack(proto, sport, dport)


# The two layouts that the kernel writes for TCP and UDP (ctnetlink_dump_tuples), as alternating
# headers and values. Any other layout is decoded attribute by attribute.
_FIXED = {
    48: (
        struct.Struct("8s4s4s4s8sc7s2s6s2s2x"),
        (b"\x14\0\x01\x80\x08\0\x01\0", b"\x08\0\x02\0", b"\x1c\0\x02\x80\x05\0\x01\0",
         b"\0\0\0\x06\0\x02\0", b"\0\0\x06\0\x03\0"),
    ),
    72: (
        struct.Struct("8s16s4s16s8sc7s2s6s2s2x"),
        (b"\x2c\0\x01\x80\x14\0\x03\0", b"\x14\0\x04\0", b"\x1c\0\x02\x80\x05\0\x01\0",
         b"\0\0\0\x06\0\x02\0", b"\0\0\x06\0\x03\0"),
    ),
}  # fmt: skip
_KEPT = (bytes([TCP]), bytes([UDP]))


def read_tuple(data: bytes, start: int, end: int) -> tuple[bytes, int] | None:
    """Decodes CTA_TUPLE_ORIG or _REPLY into pack_tuple's form and its zone.

    Returns None for protocols other than TCP and UDP.
    """
    fixed = _FIXED.get(end - start)
    if fixed:
        layout, heads = fixed
        fields = layout.unpack_from(data, start)
        if fields[::2] == heads:
            return (b"".join(fields[1::2]), 0) if fields[5] in _KEPT else None
    return _walk_tuple(data, start, end)


def _walk_tuple(data: bytes, start: int, end: int) -> tuple[bytes, int] | None:
    values: dict[tuple[int, int], bytes] = {}
    zone = 0
    for group, inner, stop in attributes(data, start, end):
        if group == 3 and stop - inner >= 2:
            (zone,) = _BE16.unpack_from(data, inner)
        elif group in (1, 2):
            for kind, value, last in attributes(data, inner, stop):
                values[group, kind] = data[value:last]
    source = values.get((1, 1)) or values.get((1, 3)) or b""
    target = values.get((1, 2)) or values.get((1, 4)) or b""
    proto, sport, dport = (values.get((2, kind), b"") for kind in (1, 2, 3))
    if len(source) != len(target) or len(source) not in (4, 16) or proto not in _KEPT:
        return None
    if len(sport) != 2 or len(dport) != 2:
        return None
    return source + target + proto + sport + dport, zone


def read_entry(data: bytes, start: int, end: int, on_entry: OnEntry) -> None:  # noqa: C901
    """Calls `on_entry` with the entry of one message, if it is a complete one of TCP or UDP."""
    original = reply = None
    zone = number = state = status = 0
    while start + 4 <= end:  # attributes() inlined: this loop runs for 100,000 entries
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        stop = start + length
        if length < 4 or stop > end:
            return
        kind &= KIND_MASK
        if kind == 1:
            if (original := read_tuple(data, start + 4, stop)) is None:
                return
        elif kind == 2:
            reply = read_tuple(data, start + 4, stop)
        elif kind == 3 and length == 8:
            (status,) = _BE32.unpack_from(data, start + 4)
        elif kind == 12 and length == 8:
            (number,) = _BE32.unpack_from(data, start + 4)
        elif kind == 4:
            state = _tcp_state(data, start + 4, stop)
        elif kind == 18 and length == 6:
            (zone,) = _BE16.unpack_from(data, start + 4)
        start += (length + 3) & ~3
    if original is not None and reply is not None and len(original[0]) == len(reply[0]):
        zone = zone or original[1] or reply[1]
        on_entry(pack_key(zone, number, original[0], reply[0]), state, status)


def _tcp_state(data: bytes, start: int, end: int) -> int:
    """Reads CTA_PROTOINFO > CTA_PROTOINFO_TCP > CTA_PROTOINFO_TCP_STATE; 0 if it is missing."""
    if end - start >= 9 and data[start + 2] == 1 and data[start + 4 : start + 8] == b"\5\0\1\0":
        return data[start + 8]
    for kind, inner, stop in attributes(data, start, end):
        if kind != 1:
            continue
        for leaf, value, last in attributes(data, inner, stop):
            if leaf == 1 and last > value:
                return data[value]
    return 0


def dump(on_entry: OnEntry, deadline: float) -> None:
    """Calls `on_entry` with every TCP and UDP entry of this namespace.

    `deadline` is on time.monotonic(). Raises NetlinkFailed.
    """
    for kind, data, start, end in answers(NETFILTER, _CT_GET, DUMP, deadline):
        if kind == _CT_NEW:
            read_entry(data, start + 4, end, on_entry)


def figures(deadline: float) -> dict[str, int]:
    """Returns `count`, `max` and STATISTICS of this namespace. Raises NetlinkFailed."""
    found: dict[str, int] = {}
    for _, data, start, end in answers(NETFILTER, _CT_STATS, ACK, deadline):
        for kind, value, stop in attributes(data, start + 4, end):
            if stop - value == 4 and kind in (1, 2):
                (found["count" if kind == 1 else "max"],) = _BE32.unpack_from(data, value)
    for _, data, start, end in answers(NETFILTER, _CT_STATS_CPU, DUMP, deadline):
        for kind, value, stop in attributes(data, start + 4, end):
            if stop - value == 4 and (name := STATISTICS.get(kind)):
                found[name] = found.get(name, 0) + _BE32.unpack_from(data, value)[0]
    return found
