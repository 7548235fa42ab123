# SPDX-License-Identifier: Apache-2.0
"""Limits between healthy and unhealthy: every value that findings compare with, and why."""

from typing import Annotated

from pydantic import Field

from ktrace_api.model import Count, Model

Seconds = Annotated[float, Field(ge=0, le=3600)]
Share = Annotated[float, Field(ge=0, le=1)]


class Thresholds(Model):
    """Limits of the findings. The config of a capture may override them (docs/thresholds.md)."""

    min_count: Count = 2
    """A single failure happens in healthy traffic too: a restart, one lost packet."""

    critical_share: Share = 0.9
    """Nearly all attempts fail: the service is down for this client."""
    critical_count: Count = 10
    """With this many failures it is not an accident."""

    dns_grace_s: Seconds = 1.0
    """A query this close to the end may still be answered. Twice the slowest answer is used if that
    is longer."""
    dns_grace_max_s: Seconds = 5.0
    """The usual timeout of a stub resolver (resolv.conf(5)); no client waits longer."""
    dns_retry_s: Seconds = 0.35
    """A query after this pause is a retry: the shortest retry of common resolvers (unbound) is 376
    ms, while A and AAAA queries are microseconds apart."""
    dns_race_s: Seconds = 0.1
    """Queries from one socket to several servers this close together are a race (musl, dnsmasq). A
    server that loses the race is not silent."""
    dns_no_reply_share: Share = 0.1
    """UDP loses packets. If 10 % of the lookups wait for a timeout, every user notices."""
    dns_slow_p50_us: Count = 150_000
    """Half of the answers take longer than a round trip around the planet: no cache is that
    slow."""
    dns_slow_p90_us: Count = 1_000_000
    """Far above the objective of cluster DNS (99 % within 1 s, Kubernetes SIG Scalability)."""
    dns_slow_min_answers: Count = 4
    """Quantiles of fewer answers are meaningless."""

    syn_wait_s: Seconds = 0.9
    """The kernel sends the second SYN after 1 s (RFC 6298), so an open attempt this old has lost
    one. The margin is for clients that give up after exactly 1 s."""
    syn_long_wait_s: Seconds = 3.0
    """Two SYNs were not answered; a single one could be a lost packet."""
    refused_count: Count = 3
    """A client that starts before its server is refused once or twice."""
    pooled_share: Share = 0.05
    """Below this share, single failures of many short-lived processes are restarts and lost
    packets."""
    refused_share: Share = 0.05
    """Share of refusals among successes. Below it, the restart of one of many backends explains
    them."""
    refused_episodes: Count = 3
    """One or two periods of refusals are restarts; from the third one on, the problem recurs."""
    scan_ports: Count = 8
    """A client that is refused by this many ports of one address is a port scan."""
    scan_tries: Count = 4
    """A scan needs few tries per port; a client that is refused more often needs that port."""
    connect_slow_p50_us: Count = 300_000
    """The longest terrestrial round trip: half of all handshakes take longer."""
    connect_slow_share: Share = 0.02
    """Handshakes of 1 s and more lost a SYN or its answer. 2 % of them are loss, not chance."""
    connect_slow_count: Count = 3
    """Fewer slow handshakes are single lost packets."""

    close_wait_growth: Count = 10
    """Sockets that the peer closed and the process did not. Every connection pool has a few."""
    close_wait_age_s: Seconds = 1.0
    """A process that reads notices the end of the stream within milliseconds."""
    close_wait_spread_s: Seconds = 0.3
    """A leak continues over time. If all sockets appear in one instant, a peer restarted."""

    retransmit_share: Share = 0.01
    """TCP throughput falls with the square root of the loss: 1 % already costs most of a fast
    path."""
    retransmit_critical_share: Share = 0.05
    """At 5 % a connection moves a few packets per round trip, whatever the bandwidth."""
    retransmit_count: Count = 10
    """Tail loss probes (TLP) and reordering retransmit a few segments on any path."""
    retransmit_needless_share: Share = 0.8
    """The receiver reported (DSACK) that it already had most of the segments: they were late, not
    lost."""
    stall_retransmits: Count = 4
    """Retransmits of one connection with growing pauses: no data is acknowledged."""
    stall_gap_s: Seconds = 0.7
    """The pause has doubled twice from the minimum of 200 ms."""
    reset_count: Count = 3
    """A peer that restarts resets one or two connections of a client."""
    reset_share: Share = 0.1
    """Share of the connections opened to the peer that were reset while established."""

    listen_overflow: Count = 3
    """SYNs or handshakes dropped because the accept queue was full. A burst at startup drops one or
    two."""

    conntrack_full_share: Share = 0.95
    """Above this share the kernel already evicts entries or is about to drop packets."""
    conntrack_insert_failed: Count = 3
    """Single races of two packets of one flow are harmless."""
    unreplied_count: Count = 3
    """Unanswered datagrams of one flow to a service that answers others."""

    ephemeral_failures: Count = 2
    """One EADDRNOTAVAIL would be enough, but a wrong bind() also fails once."""

    udp_drops: Count = 20
    """Fewer drops are a burst at startup."""
    udp_drop_share: Share = 0.001
    """A burst may overflow a buffer once. If one datagram in a thousand is dropped, the reader is
    too slow."""
    softnet_drops: Count = 50
    """Fewer drops are few compared with the length of a backlog queue."""
    softnet_drop_share: Share = 0.0001
    """One packet in ten thousand: TCP begins to slow down."""

    cpu_some_share: Share = 0.9
    """Share of time in which some task waited for a CPU. A busy node with few CPUs waits half of
    the time and works well; at nine tenths the run queue is never empty."""
    cpu_min_window_s: Seconds = 5.0
    """Starting any program keeps the CPUs busy for a second."""
    memory_some_share: Share = 0.1
    """Share of time in which some task waited for memory."""
    memory_full_share: Share = 0.03
    """Share of time in which all tasks waited for memory: the node does little but reclaim."""

    lost_share: Share = 0.01
    """Share of lost events that a finding tolerates. With more losses, missing events are not
    evidence."""
    unseen_count: Count = 10
    """A kernel that exempts some tasks from tracing hides the softirq work done in their context: a
    few events of any capture."""
