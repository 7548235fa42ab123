# SPDX-License-Identifier: Apache-2.0
"""Titles of the findings: one table of templates with named fields.

A title names the broken thing first, then who noticed it, then how often. It stands alone in a
list and fits 100 columns with usual names. `title()` fills a template.
"""

from collections.abc import Mapping
from enum import StrEnum
from string import Formatter
from typing import Any

from ktrace_api.finding import Cause, FindingId

_ID = FindingId

Words = str | int | float | None
"""The value of a field; None is shown as unknown."""


class Variant(StrEnum):
    """Why a finding of one id needs another title."""

    PLAIN = "plain"
    UNKNOWN_PROCESS = "unknown-process"
    # Connection attempts
    DNS_OVER_TCP = "dns-over-tcp"
    NAT_ADDRESS = "nat-address"
    NAT_BACKEND = "nat-backend"
    SYN_ACK_LOST = "syn-ack-lost"
    FIREWALL = "firewall"
    FIREWALL_POSSIBLE = "firewall-possible"
    SCAN = "scan"
    RECOVERED = "recovered"
    LATE = "late"
    # DNS
    BLOCKED = "blocked"
    UNREACHABLE = "unreachable"
    PORT_CLOSED = "port-closed"
    WRONG_ADDRESS = "wrong-address"
    REPLY_LOST = "reply-lost"
    GAVE_UP = "gave-up"
    # TCP
    RATE = "rate"
    STALLED = "stalled"
    RATE_STALLED = "rate-stalled"
    # Counters
    WAS_FULL = "was-full"
    EVICTED = "evicted"
    READER = "reader"
    RATE_READER = "rate-reader"
    NOT_TRACED = "not-traced"


_V = Variant

TITLES: Mapping[FindingId, Mapping[Variant, str]] = {
    _ID.CONNTRACK_FULL: {
        _V.PLAIN: "Conntrack table full: {held} of {most:entry}, {dropped:packet} of new"
        " connections dropped",
        _V.WAS_FULL: "Conntrack table was full: {held} of {most:entry}, {dropped:packet} of new"
        " connections dropped",
        _V.EVICTED: "Conntrack table was full: {evicted:entry} evicted, {dropped:packet} of new"
        " connections dropped",
    },
    _ID.LISTEN_OVERFLOW: {
        _V.PLAIN: "Accept queue full on {peer} ({by}): {drops:connection attempt} dropped",
        _V.UNKNOWN_PROCESS: "Accept queue full on an unknown listener: {drops:connection attempt}"
        " dropped",
    },
    _ID.EPHEMERAL_PORTS_EXHAUSTED: {
        _V.PLAIN: "No free local port for {failed} of {total:connection} to {peer} ({by})",
    },
    _ID.CONNECT_DENIED: {
        _V.PLAIN: "The kernel blocked {failed} of {total:connection} from {who} to {peer}"
        " ({error})",
    },
    _ID.CONNTRACK_INSERT_FAILED: {
        _V.PLAIN: "Conntrack insert failed: {failed:packet} dropped, entry already in use",
    },
    _ID.TCP_CONNECT_UNREACHABLE: {
        _V.PLAIN: "{peer} is unreachable ({error}): {failed} of {total:connection attempt} ({by})",
        _V.FIREWALL: "{failed} of {total:connection attempt} to {peer} were rejected on the path"
        " ({by})",
    },
    _ID.DNS_NO_REPLY: {
        _V.PLAIN: "DNS server {peer} did not answer {failed} of {total:query} ({by})",
        _V.BLOCKED: "The kernel blocked {failed} of {total:query} to DNS server {peer} ({by})",
        _V.UNREACHABLE: "DNS server {peer} is unreachable: {failed} of {total:query} failed ({by})",
        _V.PORT_CLOSED: "DNS server {peer} refused {failed} of {total:query}: port closed ({by})",
        _V.WRONG_ADDRESS: "DNS server {peer} replies from {other}: {failed} of {total:query}"
        " unanswered ({by})",
        _V.REPLY_LOST: "Replies of local DNS server {peer} were lost: {failed} of {total:query}"
        " ({by})",
        _V.GAVE_UP: "DNS server {peer} answered {failed} of {total:query} too late: socket closed"
        " ({by})",
    },
    _ID.TCP_CONNECT_REFUSED: {
        _V.PLAIN: "{peer} refused {failed} of {total:connection} ({by})",
        _V.DNS_OVER_TCP: "{peer} refused {failed} of {total:DNS-over-TCP connection} ({by})",
        _V.NAT_ADDRESS: "NAT address {peer} refused {failed} of {total:connection} ({by})",
        _V.NAT_BACKEND: "{peer} (backend {backends} of {known}) refused {failed} of"
        " {total:connection} ({by})",
        _V.FIREWALL: "A firewall rejected {failed} of {total:connection} to {peer} with ICMP"
        " ({by})",
        _V.SCAN: "Port scan: {peer} refused {failed} of {total:connection} ({by})",
        _V.RECOVERED: "{peer} refused {failed} of {total:connection}, then recovered ({by})",
    },
    _ID.TCP_SYN_UNANSWERED: {
        _V.PLAIN: "{failed} of {total:connection attempt} to {peer} got no reply ({by})",
        _V.DNS_OVER_TCP: "{failed} of {total:DNS-over-TCP connection attempt} to {peer} got no"
        " reply ({by})",
        _V.NAT_ADDRESS: "{failed} of {total:connection attempt} to NAT address {peer} got no reply"
        " ({by})",
        _V.NAT_BACKEND: "{peer} (backend {backends} of {known}): {failed} of {total:attempt} got no"
        " reply ({by})",
        _V.SYN_ACK_LOST: "SYN-ACKs of local server {peer} were lost: {failed} of"
        " {total:connection attempt} ({by})",
    },
    _ID.TCP_CONNECT_TIMEOUT: {
        _V.PLAIN: "{failed} of {total:connection attempt} to {peer} timed out ({by})",
        _V.DNS_OVER_TCP: "{failed} of {total:DNS-over-TCP connection attempt} to {peer} timed out"
        " ({by})",
        _V.NAT_ADDRESS: "{failed} of {total:connection attempt} to NAT address {peer} timed out"
        " ({by})",
        _V.NAT_BACKEND: "{peer} (backend {backends} of {known}): {failed} of {total:attempt} timed"
        " out ({by})",
    },
    _ID.CLOSE_WAIT_GROWING: {
        _V.PLAIN: "{who}: {growth:connection} not closed after the peer closed {growth:it|them}"
        " (CLOSE_WAIT {before} -> {after})",
        _V.UNKNOWN_PROCESS: "Unknown process: {growth:connection} not closed after the peer closed"
        " {growth:it|them} (CLOSE_WAIT {before} -> {after})",
    },
    _ID.UDP_RCVBUF_DROPS: {
        _V.PLAIN: "UDP receive buffer full: {drops:datagram} dropped",
        _V.RATE: "UDP receive buffer full: {drops:datagram} dropped ({share:.1 %})",
        _V.READER: "UDP receive buffer full: {drops:datagram} dropped, main reader {who}",
        _V.RATE_READER: "UDP receive buffer full: {drops:datagram} dropped ({share:.1 %}),"
        " main reader {who}",
    },
    _ID.DNS_SLOW: {
        _V.PLAIN: "Slow DNS: {peer} took {ms} ms (median of {total:answer}) for {who}",
    },
    _ID.TCP_RESETS: {
        _V.PLAIN: "{peer} reset {resets:established connection} from {who}",
    },
    _ID.TCP_RETRANSMITS: {
        _V.PLAIN: "{segs:segment} from {who} to {peer} {segs:was|were} retransmitted",
        _V.RATE: "{segs} of ~{sent:segment} from {who} to {peer} {segs:was|were} retransmitted"
        " ({share:.1 %})",
        _V.STALLED: "{stalled:connection} from {who} to {peer} stalled: {segs:segment}"
        " retransmitted",
        _V.RATE_STALLED: "{stalled:connection} from {who} to {peer} stalled: {segs} of"
        " ~{sent:segment} retransmitted",
    },
    _ID.CONNTRACK_UNREPLIED: {
        _V.PLAIN: "No UDP replies from {peer} to {sent:datagram} from {who} (conntrack UNREPLIED)",
    },
    _ID.TCP_CONNECT_SLOW: {
        _V.PLAIN: "Slow TCP handshakes: {peer} took {ms} ms (median of {total}) for {who}",
        _V.LATE: "{late} of {total:handshake} with {peer} took {wait} s or longer: SYN"
        " retransmitted ({by})",
    },
    _ID.MEMORY_PRESSURE: {
        _V.PLAIN: "Memory pressure: tasks waited for memory {some:.0 %} of the time, all of them"
        " {full:.0 %}",
    },
    _ID.SOFTNET_DROPS: {
        _V.PLAIN: "CPU backlog queue full: {dropped:packet} dropped before the network stack"
        " ({share:.2 %})",
    },
    _ID.CPU_PRESSURE: {
        _V.PLAIN: "CPU contention: tasks waited for a CPU {some:.0 %} of the time",
    },
    _ID.CAPTURE_INCOMPLETE: {
        _V.PLAIN: "Capture incomplete: {gaps}",
        _V.NOT_TRACED: "{hooks} {count:was|were} not traced (no eBPF program available); nothing"
        " else is missing",
    },
}
"""Finding -> its titles. The order is that of directness: the finding that names its cause most
directly comes first, and decides the verdict among equals (verdict.py)."""

GAPS: Mapping[str, str] = {
    "lost": "{count:event} lost",
    "skipped": "{count:event} skipped by the kernel",
    "skipped_calls": "the bytes of {count:TCP call}",
    "unseen": "{count:event} missed because no eBPF program ran",
    "capped": "{count:event} above the capture limit",
    "overflow": "{count:map update} failed because a map was full",
    "hooks": "{hooks} not traced",
    "early": "it ended early",
}
"""Parts of a capture that are missing: field `gaps` of CAPTURE_INCOMPLETE."""

_NO_REPLY = "{peer} does not reply"
_CLAUSES: Mapping[tuple[FindingId, Cause], str] = {
    (_ID.DNS_NO_REPLY, Cause.DNS): "{peer} does not answer",
    (_ID.DNS_NO_REPLY, Cause.POLICY): "queries to {peer} or its replies are blocked",
    (_ID.DNS_NO_REPLY, Cause.ROUTING): "{peer} is unreachable",
    (_ID.DNS_SLOW, Cause.DNS): "{peer} answers slowly",
    (_ID.TCP_SYN_UNANSWERED, Cause.DNS): _NO_REPLY,
    (_ID.TCP_SYN_UNANSWERED, Cause.NAT): "a backend of {peer} does not reply",
    (_ID.TCP_SYN_UNANSWERED, Cause.POLICY): "packets to or from {peer} are dropped",
    (_ID.TCP_CONNECT_TIMEOUT, Cause.DNS): _NO_REPLY,
    (_ID.TCP_CONNECT_TIMEOUT, Cause.NAT): "a backend of {peer} does not reply",
    (_ID.TCP_CONNECT_TIMEOUT, Cause.POLICY): "packets to or from {peer} are dropped",
    (_ID.TCP_CONNECT_REFUSED, Cause.APPLICATION): "nothing listens on {peer}",
    (_ID.TCP_CONNECT_REFUSED, Cause.DNS): "nothing listens on {peer}",
    (_ID.TCP_CONNECT_REFUSED, Cause.NAT): "a backend of {peer} refuses connections",
    (_ID.TCP_CONNECT_REFUSED, Cause.POLICY): "a firewall rejects connections to {peer}",
    (_ID.TCP_CONNECT_UNREACHABLE, Cause.ROUTING): "{peer} is unreachable",
    (_ID.TCP_CONNECT_UNREACHABLE, Cause.POLICY): "connections to {peer} are rejected on the path",
    (_ID.TCP_CONNECT_SLOW, Cause.DNS): "slow handshakes with {peer}",
    (_ID.TCP_CONNECT_SLOW, Cause.ROUTING): "slow handshakes with {peer}",
    (_ID.CONNECT_DENIED, Cause.POLICY): "connections to {peer} are not permitted",
    (_ID.EPHEMERAL_PORTS_EXHAUSTED, Cause.HOST): "no free local port for {peer}",
    (_ID.CLOSE_WAIT_GROWING, Cause.APPLICATION): "connections are not closed",
    (_ID.TCP_RETRANSMITS, Cause.ROUTING): "segments to {peer} are lost",
    (_ID.TCP_RESETS, Cause.APPLICATION): "{peer} resets connections",
    (_ID.LISTEN_OVERFLOW, Cause.APPLICATION): "accept queue full",
    (_ID.CONNTRACK_UNREPLIED, Cause.POLICY): _NO_REPLY,
    (_ID.CONNTRACK_UNREPLIED, Cause.NAT): _NO_REPLY,
    (_ID.CONNTRACK_FULL, Cause.NAT): "conntrack table full",
    (_ID.CONNTRACK_INSERT_FAILED, Cause.NAT): "conntrack entries collide",
    (_ID.UDP_RCVBUF_DROPS, Cause.APPLICATION): "UDP receive buffer full",
    (_ID.SOFTNET_DROPS, Cause.HOST): "CPU backlog queue full",
    (_ID.CPU_PRESSURE, Cause.HOST): "CPU contention",
    (_ID.MEMORY_PRESSURE, Cause.HOST): "memory pressure",
}
"""What a finding means for a cause, in a few words behind the verdict."""

_PLURALS = {"query": "queries", "entry": "entries"}


def title(finding: FindingId, variant: Variant = Variant.PLAIN, /, **fields: Words) -> str:
    """Fill the template of a finding. Raises KeyError as `fill()` does."""
    return fill(TITLES[finding][variant], **fields)


def clause(finding: FindingId, cause: Cause, peer: str) -> str:
    """What a finding means for its cause; "" where its peer is needed and not known."""
    template = _CLAUSES.get((finding, cause), "")
    if "{peer}" not in template:
        return template
    return "" if peer == "-" else fill(template, peer=peer)


def fill(template: str, **fields: Words) -> str:
    """Fill a template. Raises KeyError if a field is missing or is not in the template.

    A field `peer` that is None becomes `unknown peer`.
    """
    wanted = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    if wanted != fields.keys():
        raise KeyError(f"{template!r} needs {sorted(wanted)}, not {sorted(fields)}")
    known = {name: f"unknown {name}" if value is None else value for name, value in fields.items()}
    return _FORMATTER.vformat(template, (), known)


class _Formatter(Formatter):
    """Formats counts with their nouns.

    {count} is `1,234`, {count:query} is `1 query` or `2 queries`, {count:was|were} is `was` or
    `were`, {share:.1 %} is `2.0 %`.
    """

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, str):
            return value
        if format_spec.endswith(" %"):
            return f"{100 * value:{format_spec[:-2]}f} %"
        if "|" in format_spec:
            one, several = format_spec.split("|")
            return one if value == 1 else several
        noun = format_spec and f" {format_spec if value == 1 else _plural(format_spec)}"
        return f"{value:,}{noun}"


def _plural(noun: str) -> str:
    return _PLURALS.get(noun, f"{noun}s")


_FORMATTER = _Formatter()
