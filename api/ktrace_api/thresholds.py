# SPDX-License-Identifier: Apache-2.0
"""Where healthy ends: every limit that a finding compares with, and why it is there."""

from typing import Annotated

from pydantic import Field

from ktrace_api.model import Count, Model

Seconds = Annotated[float, Field(ge=0, le=3600)]
Share = Annotated[float, Field(ge=0, le=1)]


class Thresholds(Model):
    """Limits of the findings; a capture's config may name others (docs/thresholds.md)."""

    min_count: Count = 2
    """What happens once happens in healthy traffic too: a restart, a single lost packet."""

    critical_share: Share = 0.9
    """Nearly all attempts fail: the service is gone for this client."""
    critical_count: Count = 10
    """So many of them that it is no single slip."""

    dns_grace_s: Seconds = 1.0
    """A query this near to the end may still be answered; twice the slowest answer, if longer."""
    dns_grace_max_s: Seconds = 5.0
    """The usual time-out of a stub resolver (resolv.conf(5)): nobody waits longer."""
    dns_retry_s: Seconds = 0.35
    """A query after such a silence is a new try: the shortest retry of usual resolvers (unbound)
    is 376 ms, pairs of A and AAAA are sent within microseconds."""
    dns_race_s: Seconds = 0.1
    """Queries to several servers from one socket this close are a race (musl, dnsmasq): who
    loses it is not silent."""
    dns_no_reply_share: Share = 0.1
    """UDP loses packets; 10 % of lookups that wait for a time-out are felt by every user."""
    dns_slow_p50_us: Count = 150_000
    """Half of the answers later than a round trip around the planet: no cache answers so."""
    dns_slow_p90_us: Count = 1_000_000
    """The objective of cluster DNS (99 % within 1 s, Kubernetes SIG scalability), missed by far."""
    dns_slow_min_answers: Count = 4
    """Fewer answers have no quantiles worth the name."""

    syn_wait_s: Seconds = 0.9
    """The kernel sends the second SYN after 1 s (RFC 6298): an open connect this old lost one.
    The margin is for clients that give up after exactly 1 s."""
    syn_long_wait_s: Seconds = 3.0
    """Two SYNs went unanswered: one alone could be a lost packet."""
    refused_count: Count = 3
    """A client that starts before its server is refused once or twice."""
    pooled_share: Share = 0.05
    """Below it single failures of many short processes are restarts and lost packets."""
    refused_share: Share = 0.05
    """Refusals between successes: below it a restart of one of many backends explains them."""
    refused_episodes: Count = 3
    """One or two episodes of refusals that end are restarts; from the third on it recurs."""
    scan_ports: Count = 8
    """Refused by so many ports of one address: a scan, not a client of them."""
    scan_tries: Count = 4
    """A scan knows after a few tries; who is refused more often wants that port."""
    connect_slow_p50_us: Count = 300_000
    """The longest terrestrial round trip; half of all handshakes took longer."""
    connect_slow_share: Share = 0.02
    """Handshakes of 1 s and more lost a SYN or its answer: 2 % of them are loss, not luck."""
    connect_slow_count: Count = 3
    """Fewer of them are single lost packets."""

    close_wait_growth: Count = 10
    """Sockets that the peer closed and the process did not; a few belong to any connection pool."""
    close_wait_age_s: Seconds = 1.0
    """A process that reads sees the end of the stream within milliseconds."""
    close_wait_spread_s: Seconds = 0.3
    """A leak goes on; what fills in one instant is a peer that restarted."""

    retransmit_share: Share = 0.01
    """TCP's throughput falls with the root of the loss: 1 % already costs most of a fast path."""
    retransmit_critical_share: Share = 0.05
    """At 5 % a connection moves a few packets a round trip, whatever the line."""
    retransmit_count: Count = 10
    """Single probes of the tail (TLP) and reordering resend a few segments anywhere."""
    retransmit_needless_share: Share = 0.8
    """The receiver reported (DSACK) that it had most of them already: late, not lost."""
    stall_retransmits: Count = 4
    """Resends of one connection with growing pauses between them: nothing is acknowledged."""
    stall_gap_s: Seconds = 0.7
    """The pause has doubled from the minimum of 200 ms twice."""
    reset_count: Count = 3
    """A peer that restarts resets one or two connections of a client."""
    reset_share: Share = 0.1
    """Clients that are reset in mid-stream, of the connections that they opened to the peer."""

    listen_overflow: Count = 3
    """SYNs or handshakes that a full accept queue cost; a burst at start-up costs one or two."""

    conntrack_full_share: Share = 0.95
    """Above it the kernel is already dropping early or about to refuse."""
    conntrack_insert_failed: Count = 3
    """Single races of two packets of one flow are harmless."""
    unreplied_count: Count = 3
    """Datagrams of one flow to a service that answers others, none answered."""

    ephemeral_failures: Count = 2
    """EADDRNOTAVAIL needs no repetition, but a wrong bind() fails once, too."""

    udp_drops: Count = 20
    """Fewer are a burst at start-up."""
    udp_drop_share: Share = 0.001
    """A burst may overflow a buffer once; one datagram in a thousand is a reader too slow."""
    softnet_drops: Count = 50
    """A backlog queue that overflowed once holds more packets than that."""
    softnet_drop_share: Share = 0.0001
    """One packet in ten thousand: TCP begins to feel it."""

    cpu_some_share: Share = 0.9
    """Time in which some task waited for a CPU. A busy node with few CPUs waits half of the time
    and serves well; nine tenths are a run queue that never empties."""
    cpu_min_window_s: Seconds = 5.0
    """Any start of a program fills a second."""
    memory_some_share: Share = 0.1
    """Time in which some task waited for memory."""
    memory_full_share: Share = 0.03
    """Time in which no task ran because all waited for memory: reclaim is what the node does."""

    lost_share: Share = 0.01
    """Events that a finding may rest on: with more of them lost, silence is no evidence."""
    unseen_count: Count = 10
    """A kernel that exempts tasks of its own from tracing hides what softirq does upon them: a few
    events of any capture."""
