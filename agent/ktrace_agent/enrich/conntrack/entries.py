# SPDX-License-Identifier: Apache-2.0
"""The conntrack entries of one network namespace, collected over all dumps of a capture.

An entry stays in the table after the kernel removed it, with the time in which it can have existed.
"""

import struct
from array import array
from typing import NamedTuple

from ktrace_agent.enrich.conntrack.connection import Entry, SocketAddress, Tuple, nat_of
from ktrace_agent.enrich.conntrack.ctnetlink import ASSURED, SEEN_REPLY, TCP_STATES
from ktrace_agent.host.inet import MAPPED, TCP, Protocol
from ktrace_api.names import UNKNOWN

FINISHED = (TCP_STATES.index("TIME_WAIT"), TCP_STATES.index("CLOSE"))
"""States in which a connection carries no more data."""
_NOT_FINISHED = 0xFFFF
_V4, _V6 = struct.Struct(">H4x4s4sBHH4s4sxHH"), struct.Struct(">H4x16s16sBHH16s16sxHH")
"""Layouts of ctnetlink.pack_key(): zone, original tuple with its protocol, reply tuple."""


class Dump(NamedTuple):
    """One dump of a namespace; times are on the kernel's boot clock."""

    begun_ns: int
    ended_ns: int
    complete: bool
    """Every entry was read and kept."""


class Table:
    """Every entry of one namespace that any dump contained; about 150 bytes each (IPv4)."""

    def __init__(self) -> None:
        self.keys: dict[bytes, int] = {}
        self.dumps: list[Dump] = []
        self.capacity = 0
        """Entries that may still be added."""
        self.left_out = 0
        """Maximum over the dumps: entries that were not kept."""
        self._refused = 0
        self._state, self._status = array("B"), array("H")
        # Numbers of the dumps in which an entry was first, last and first finished.
        self._first, self._last, self._finished = array("H"), array("H"), array("H")
        # By number of a dump, the bounds that it gives.
        self._created, self._ended = list[int | None](), list[int | None]()

    def add(self, key: bytes, state: int, status: int) -> None:
        """Adds or updates an entry of the dump in progress.

        An entry that is finished in the first dump is not kept: it belongs to no capture.
        """
        dump, at = len(self.dumps), self.keys.get(key)
        if at is None:
            if dump == 0 and state in FINISHED:
                return
            if self.capacity <= 0:
                self._refused += 1
                return
            self.capacity -= 1
            at = self.keys[key] = len(self.keys)
            self._state.append(state)
            self._status.append(status & 0xFFFF)
            self._first.append(dump)
            self._last.append(dump)
            self._finished.append(_NOT_FINISHED)
        else:
            self._state[at], self._status[at], self._last[at] = state, status & 0xFFFF, dump
        if state not in FINISHED:
            self._finished[at] = _NOT_FINISHED
        elif self._finished[at] == _NOT_FINISHED:
            self._finished[at] = dump

    def finish_dump(self, begun_ns: int, ended_ns: int, *, complete: bool) -> None:
        """Ends the dump in progress; `complete`: the kernel reported every entry."""
        self.dumps.append(Dump(begun_ns, ended_ns, complete and not self._refused))
        self.left_out, self._refused = max(self.left_out, self._refused), 0

    def entry(self, netns: int, key: bytes) -> Entry:
        """Returns the entry of a key of the table."""
        at, is_ipv4 = self.keys[key], len(key) == _V4.size
        zone, src, dst, number, sport, dport, back, to, back_port, to_port = (
            _V4 if is_ipv4 else _V6
        ).unpack(key)
        if is_ipv4:
            src, dst, back, to = MAPPED + src, MAPPED + dst, MAPPED + back, MAPPED + to
        original = Tuple(SocketAddress(src, sport), SocketAddress(dst, dport))
        reply = Tuple(SocketAddress(back, back_port), SocketAddress(to, to_port))
        proto: Protocol = "tcp" if number == TCP else "udp"
        status = self._status[at]
        state = _tcp_state(self._state[at]) if proto == "tcp" else _udp_state(status)
        lifetime, nat = self._lifetime(at), nat_of(original, reply)
        return Entry(netns, zone, proto, state, status, original, reply, *lifetime, nat)

    def _lifetime(self, at: int) -> tuple[int | None, int, int | None]:
        """Returns created_after_ns, first_dump_ns and ended_before_ns of entry number `at`."""
        if len(self._created) != len(self.dumps):
            self._bound()
        first, finished = self._first[at], self._finished[at]
        # A connection that was created during a dump is another one: this one was finished by then.
        ended = self._ended[self._last[at]]
        if finished != _NOT_FINISHED:
            ended = self.dumps[finished].begun_ns
        return self._created[first], self.dumps[first].ended_ns, ended

    def _bound(self) -> None:
        """Sets, for each dump, the begin of the last complete dump before and the end of the next.

        Only a complete dump proves that an entry did not exist.
        """
        last: int | None = None
        self._created.clear()
        for dump in self.dumps:
            self._created.append(last)
            last = dump.begun_ns if dump.complete else last
        last = None
        self._ended.clear()
        for dump in reversed(self.dumps):
            self._ended.append(last)
            last = dump.ended_ns if dump.complete else last
        self._ended.reverse()


def _tcp_state(number: int) -> str:
    return TCP_STATES[number] if number < len(TCP_STATES) else UNKNOWN


def _udp_state(status: int) -> str:
    if not status & SEEN_REPLY:
        return "UNREPLIED"
    return "ASSURED" if status & ASSURED else "REPLIED"
