# SPDX-License-Identifier: Apache-2.0
"""Parses the lines of /proc/net/nf_conntrack and of the older ip_conntrack.

Used if ctnetlink is not available. The lines have no NAT bits, so these are derived from the
tuples. Format: ct_seq_show in net/netfilter/nf_conntrack_standalone.c.
"""

import re
import socket
import time
from collections.abc import Iterable

from ktrace_agent.enrich.conntrack.ctnetlink import (
    ASSURED,
    DST_NAT,
    OFFLOAD,
    SEEN_REPLY,
    SRC_NAT,
    TCP_STATES,
    OnEntry,
    pack_key,
    pack_tuple,
)
from ktrace_agent.enrich.conntrack.netlink import DEADLINE_PASSED, Lack, NetlinkFailed
from ktrace_agent.host.inet import PROTOCOL_NUMBERS

_PROTOCOLS = {name.encode(): number for name, number in PROTOCOL_NUMBERS.items()}
_STATES = {name.encode(): number for number, name in enumerate(TCP_STATES)}
_FLAGS = {b"[ASSURED]": ASSURED, b"[OFFLOAD]": OFFLOAD, b"[HW_OFFLOAD]": OFFLOAD}
_ZONES = (b"zone", b"zone-orig", b"zone-reply")
_NUMBER = re.compile(rb"[0-9]{1,5}")
_MAX_LINE = 1024


def read_lines(lines: Iterable[bytes], on_entry: OnEntry, *, deadline: float) -> None:
    """Calls `on_entry` with the entry of each line.

    Raises NetlinkFailed if time.monotonic() passes `deadline` before the last line.
    """
    for line in lines:
        if time.monotonic() > deadline:
            raise NetlinkFailed(Lack.TOO_LATE, DEADLINE_PASSED)
        read_line(line, on_entry)


def read_line(line: bytes, on_entry: OnEntry) -> bool:
    """Calls `on_entry` with the entry of one line; returns False if it is not TCP or UDP.

    Never raises: a line of another format is ignored.
    """
    words = line[:_MAX_LINE].split()
    if words and words[0] in (b"ipv4", b"ipv6"):
        del words[:2]
    if len(words) < 10 or (proto := _PROTOCOLS.get(words[0])) is None:
        return False
    starts = [at for at, word in enumerate(words) if word.startswith(b"src=")]
    if len(starts) != 2:
        return False
    original = _tuple(proto, words[starts[0] : starts[1]])
    reply = _tuple(proto, words[starts[1] :])
    if original is None or reply is None or len(original) != len(reply):
        return False
    before = words[2 : starts[0]]  # the timeout and, for TCP, the state
    state = next((_STATES[word] for word in before if word in _STATES), 0)
    status = SEEN_REPLY if b"[UNREPLIED]" not in words else 0
    for word, bit in _FLAGS.items():
        status |= bit if word in words else 0
    on_entry(pack_key(_zone(words), 0, original, reply), state, status | _nat_bits(original, reply))
    return True


def _zone(words: list[bytes]) -> int:
    """Returns the last zone in the line, which applies to both directions or to one of them."""
    for word in reversed(words):
        name, _, value = word.partition(b"=")
        if name in _ZONES and _NUMBER.fullmatch(value):
            return int(value) & 0xFFFF
    return 0


def _tuple(proto: int, words: list[bytes]) -> bytes | None:
    fields = dict(word.split(b"=", 1) for word in words if b"=" in word)
    sport, dport = fields.get(b"sport", b""), fields.get(b"dport", b"")
    if not (_NUMBER.fullmatch(sport) and _NUMBER.fullmatch(dport)):
        return None
    if int(sport) > 65535 or int(dport) > 65535:
        return None
    source, target = _address(fields.get(b"src", b"")), _address(fields.get(b"dst", b""))
    if source is None or target is None or len(source) != len(target):
        return None
    return pack_tuple(proto, source, int(sport), target, int(dport))


def _address(text: bytes) -> bytes | None:
    family = socket.AF_INET6 if b":" in text else socket.AF_INET
    try:
        return socket.inet_pton(family, text.decode("ascii"))
    except (OSError, ValueError):
        return None


def _nat_bits(original: bytes, reply: bytes) -> int:
    """Derives SRC_NAT and DST_NAT from the tuples."""
    size = (len(original) - 5) // 2
    # A tuple is source, destination, protocol, sport, dport; the reply has the other direction.
    source, target = original[:size], original[size : 2 * size]
    sport, dport = original[-4:-2], original[-2:]
    answered, answering = reply[size : 2 * size], reply[:size]
    changed_source = (source, sport) != (answered, reply[-2:])
    changed_target = (target, dport) != (answering, reply[-4:-2])
    return SRC_NAT * changed_source | DST_NAT * changed_target
