# SPDX-License-Identifier: Apache-2.0
"""Lines of /proc/net/nf_conntrack and of the older ip_conntrack: bytes in, entries out.

They are read where ctnetlink is not there. NAT bits are not printed: they follow from the
tuples. Format: net/netfilter/nf_conntrack_standalone.c, ct_seq_show.
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
    TCP,
    TCP_STATES,
    UDP,
    See,
    pack_key,
    pack_tuple,
)
from ktrace_agent.enrich.conntrack.netlink import Lack, NetlinkFailed

_PROTOCOLS = {b"tcp": TCP, b"udp": UDP}
_STATES = {name.encode(): number for number, name in enumerate(TCP_STATES)}
_FLAGS = {b"[ASSURED]": ASSURED, b"[OFFLOAD]": OFFLOAD, b"[HW_OFFLOAD]": OFFLOAD}
_ZONES = (b"zone", b"zone-orig", b"zone-reply")
_NUMBER = re.compile(rb"[0-9]{1,5}")
_MAX_LINE = 1024


def read_lines(lines: Iterable[bytes], see: See, *, deadline: float) -> None:
    """All lines; raises NetlinkFailed when time.monotonic() passes `deadline` before the end."""
    for line in lines:
        if time.monotonic() > deadline:
            raise NetlinkFailed(Lack.TOO_LATE, "the time for a file was over")
        read_line(line, see)


def read_line(line: bytes, see: See) -> bool:
    """Hand the entry of one line to `see`; False where it is none of TCP or UDP.

    Total: a line of another form is left out, nothing raises.
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
    before = words[2 : starts[0]]  # the timeout and, of TCP, the state
    state = next((_STATES[word] for word in before if word in _STATES), 0)
    status = SEEN_REPLY if b"[UNREPLIED]" not in words else 0
    for word, bit in _FLAGS.items():
        status |= bit if word in words else 0
    see(pack_key(_zone(words), 0, original, reply), state, status | _nat_bits(original, reply))
    return True


def _zone(words: list[bytes]) -> int:
    """The last zone that is named: one for both directions, or for one of them."""
    for word in reversed(words):
        name, _, value = word.partition(b"=")
        if name in _ZONES and _NUMBER.fullmatch(value):
            return int(value) & 0xFFFF
    return 0


def _tuple(proto: int, words: list[bytes]) -> bytes | None:
    end = dict(word.split(b"=", 1) for word in words if b"=" in word)
    sport, dport = end.get(b"sport", b""), end.get(b"dport", b"")
    if not (_NUMBER.fullmatch(sport) and _NUMBER.fullmatch(dport)):
        return None
    if int(sport) > 65535 or int(dport) > 65535:
        return None
    source, target = _address(end.get(b"src", b"")), _address(end.get(b"dst", b""))
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
    """SRC_NAT and DST_NAT as the tuples show them."""
    size = (len(original) - 5) // 2
    # A tuple is source, target, protocol, sport, dport; the reply's run the other way.
    source, target = original[:size], original[size : 2 * size]
    sport, dport = original[-4:-2], original[-2:]
    answered, answering = reply[size : 2 * size], reply[:size]
    changed_source = (source, sport) != (answered, reply[-2:])
    changed_target = (target, dport) != (answering, reply[-4:-2])
    return SRC_NAT * changed_source | DST_NAT * changed_target
