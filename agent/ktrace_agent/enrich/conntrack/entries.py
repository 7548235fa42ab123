# SPDX-License-Identifier: Apache-2.0
"""Entries of connection tracking as they are kept while a capture runs, and as they are read.

An entry is kept once it was seen, with the time in which it can have lived.
"""

import socket
import struct
from array import array
from functools import lru_cache
from typing import Literal, NamedTuple

from ktrace_agent.enrich.conntrack.ctnetlink import ASSURED, SEEN_REPLY, TCP, TCP_STATES
from ktrace_agent.enrich.conntrack.netlink import MAPPED

Nat = Literal["dnat", "snat", "both", "none"]
Proto = Literal["tcp", "udp"]

FINISHED = (TCP_STATES.index("TIME_WAIT"), TCP_STATES.index("CLOSE"))
"""States after which nothing of the connection follows."""
_NOT_YET = 0xFFFF
_V4, _V6 = struct.Struct(">H4x4s4sBHH4s4sxHH"), struct.Struct(">H4x16s16sBHH16s16sxHH")
"""nfct.pack_key() read back: zone, original tuple with its protocol, reply tuple."""


class End(NamedTuple):
    """One end of a tuple: address in 16 bytes (IPv4 as mapped) and port."""

    address: bytes
    port: int

    def __str__(self) -> str:
        """`192.0.2.1:80`, `[2001:db8::1]:80`."""
        return f"{_text(self.address)}:{self.port}"


@lru_cache(maxsize=4096)
def _text(address: bytes) -> str:
    if address.startswith(MAPPED):
        return socket.inet_ntop(socket.AF_INET, address[12:])
    return f"[{socket.inet_ntop(socket.AF_INET6, address)}]"


class Tuple(NamedTuple):
    """Who sends to whom."""

    src: End
    dst: End

    def __str__(self) -> str:
        # Not by way of End: this is asked for each end of each connection.
        (source, sport), (target, dport) = self
        return f"{_text(source)}:{sport} -> {_text(target)}:{dport}"


def nat_of(original: Tuple, reply: Tuple) -> Nat:
    """What was translated: answers come from another end than asked, or go to another."""
    dnat, snat = reply.src != original.dst, reply.dst != original.src
    return "both" if dnat and snat else "dnat" if dnat else "snat" if snat else "none"


class Entry(NamedTuple):
    """One connection as connection tracking saw it last."""

    netns: int
    zone: int
    proto: Proto
    state: str
    """Of TCP its state (nf_conntrack's names); of UDP UNREPLIED, REPLIED or ASSURED; `-`."""
    status: int
    """Bits of enum ip_conntrack_status: nfct.SEEN_REPLY, ASSURED, SRC_NAT, DST_NAT."""
    original: Tuple
    reply: Tuple
    born_after_ns: int | None
    """Boot clock at the last look at which it was not there; None: there from the start."""
    first_seen_ns: int
    """Boot clock at the end of the first look at which it was there."""
    gone_before_ns: int | None
    """Boot clock at which it was finished or no longer there; None: there at the end."""
    nat: Nat

    @property
    def replied(self) -> bool:
        """A packet came back."""
        return bool(self.status & SEEN_REPLY)


class Traced(NamedTuple):
    """An entry as one of its two ends meets it."""

    state: str
    nat: Nat
    reply: Tuple
    asked: bool
    """The end sent first."""
    wire: Tuple | None
    """What the end sends, as its peer sees it after all translation; None: not certain."""
    backend: End | None
    """Whom an asking end really talks to, where that is not whom it asked."""


class Look(NamedTuple):
    """One dump of one namespace; the kernel's boot clock in ns."""

    begun: int
    ended: int
    whole: bool
    """Every entry that was there was seen and kept."""


class Table:
    """Every entry of one namespace that was ever seen; about 150 bytes each (IPv4)."""

    def __init__(self) -> None:
        self.keys: dict[bytes, int] = {}
        self.looks: list[Look] = []
        self.room = 0
        """Entries that may still be added."""
        self.left_out = 0
        """Entries that the fullest look did not keep."""
        self._refused = 0
        self._state, self._status = array("B"), array("H")
        self._first, self._last, self._finished = array("H"), array("H"), array("H")
        self._born, self._gone = list[int | None](), list[int | None]()

    def see(self, key: bytes, state: int, status: int) -> None:
        """An entry in the look under way; one that was over before the first look is not kept."""
        look, at = len(self.looks), self.keys.get(key)
        if at is None:
            if look == 0 and state in FINISHED:
                return
            if self.room <= 0:
                self._refused += 1
                return
            self.room -= 1
            at = self.keys[key] = len(self.keys)
            self._state.append(state)
            self._status.append(status & 0xFFFF)
            self._first.append(look)
            self._last.append(look)
            self._finished.append(_NOT_YET)
        else:
            self._state[at], self._status[at], self._last[at] = state, status & 0xFFFF, look
        if state not in FINISHED:
            self._finished[at] = _NOT_YET
        elif self._finished[at] == _NOT_YET:
            self._finished[at] = look

    def looked(self, begun: int, ended: int, *, whole: bool) -> None:
        """The look is over."""
        self.looks.append(Look(begun, ended, whole and not self._refused))
        self.left_out, self._refused = max(self.left_out, self._refused), 0

    def _life(self, at: int) -> tuple[int | None, int, int | None]:
        """born_after_ns, first_seen_ns and gone_before_ns of entry number `at`."""
        if len(self._born) != len(self.looks):
            self._bounds()
        first, finished = self._first[at], self._finished[at]
        # What began while the look went on is another connection: this one was finished by then.
        gone = self.looks[finished].begun if finished != _NOT_YET else self._gone[self._last[at]]
        return self._born[first], self.looks[first].ended, gone

    def _bounds(self) -> None:
        """By number of the look: begin of the last whole one before, end of the next one after."""
        last: int | None = None
        self._born.clear()
        for look in self.looks:
            self._born.append(last)
            last = look.begun if look.whole else last
        last = None
        self._gone.clear()
        for look in reversed(self.looks):
            self._gone.append(last)
            last = look.ended if look.whole else last
        self._gone.reverse()

    def entry(self, netns: int, key: bytes) -> Entry:
        """The entry of a key that is in the table."""
        at, mapped = self.keys[key], len(key) == _V4.size
        zone, src, dst, number, sport, dport, back, to, back_port, to_port = (
            _V4 if mapped else _V6
        ).unpack(key)
        if mapped:
            src, dst, back, to = MAPPED + src, MAPPED + dst, MAPPED + back, MAPPED + to
        original = Tuple(End(src, sport), End(dst, dport))
        reply = Tuple(End(back, back_port), End(to, to_port))
        proto: Proto = "tcp" if number == TCP else "udp"
        status = self._status[at]
        state = _tcp_state(self._state[at]) if proto == "tcp" else _udp_state(status)
        life, nat = self._life(at), nat_of(original, reply)
        return Entry(netns, zone, proto, state, status, original, reply, *life, nat)


def _tcp_state(number: int) -> str:
    return TCP_STATES[number] if number < len(TCP_STATES) else "-"


def _udp_state(status: int) -> str:
    if not status & SEEN_REPLY:
        return "UNREPLIED"
    return "ASSURED" if status & ASSURED else "REPLIED"
