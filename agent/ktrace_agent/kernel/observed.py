# SPDX-License-Identifier: Apache-2.0
"""Which figures of a capture the attached programs observe, as a function of the served hooks.

Unknown is not zero: a figure that no program observes is NULL in the tables, null in the summary
and `-` on the screen. Only this module knows which hook a figure comes from.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ktrace_api.names import EventKind, RowType

KIND_OF: Mapping[RowType, EventKind] = {
    RowType.TCP_STATE: EventKind.TCP,
    RowType.UDP_SEND: EventKind.UDP,
    RowType.UDP_RECV: EventKind.UDP,
    RowType.CONNECT: EventKind.CONNECT,
    RowType.TCP_RETRANSMIT: EventKind.RETRANSMIT,
}
"""The event kind that a capture must include to have rows of a type."""

_RECORDED_BY: Mapping[RowType, frozenset[str]] = {
    RowType.TCP_STATE: frozenset({"tcp_state"}),
    RowType.UDP_SEND: frozenset({"socket_send"}),
    RowType.UDP_RECV: frozenset({"socket_recv"}),
    RowType.CONNECT: frozenset({"tcp_state"}),
    RowType.TCP_RETRANSMIT: frozenset({"tcp_retransmit", "tcp_retransmit_synack"}),
}
"""Any of these hooks writes rows of the type."""

_ADDS_ROWS = frozenset(
    {
        "tcp_state",
        "socket_send",
        "socket_recv",
        "connect",
        "tcp_retransmit",
        "tcp_retransmit_synack",
        "inventory",
    }
)
"""Hooks whose absence costs rows. The others cost only fields of rows."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What the programs of a capture can record. By default everything."""

    rows: frozenset[RowType] = frozenset(RowType)
    """Types of which events are recorded."""
    sent: bool = True
    """Bytes and calls that sent, in flows of TCP and UDP."""
    received: bool = True
    connected: bool = True
    """Connections opened as client, and failed attempts, in flows."""
    accepted: bool = True
    """Connections opened as server, in flows."""
    retransmits: bool = True
    """Retransmitted segments other than SYN-ACKs, in rows and flows."""
    inventory: bool = True
    """The TCP sockets at the start and at the end."""


EVERYTHING = Observed()


def observe(served: Collection[str], events: Collection[EventKind]) -> Observed:
    """Return what is recorded if programs serve the hooks `served` and `events` are requested."""
    hooks = frozenset(served)
    return Observed(
        rows=frozenset(
            row
            for row, writers in _RECORDED_BY.items()
            if KIND_OF[row] in events and hooks & writers
        ),
        sent="socket_send" in hooks,
        received="socket_recv" in hooks,
        connected="tcp_state" in hooks,
        accepted="accept" in hooks,
        retransmits=EventKind.RETRANSMIT in events and "tcp_retransmit" in hooks,
        inventory="inventory" in hooks,
    )


def known_loss(lost: int, hooks_missing: Collection[str]) -> int | None:
    """Return the number of lost events; None if hooks are missing whose events nothing counts."""
    return None if _ADDS_ROWS & frozenset(hooks_missing) else lost
