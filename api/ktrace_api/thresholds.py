# SPDX-License-Identifier: Apache-2.0
"""Thresholds: the limits of all findings, each with its reason."""

from typing import Annotated

from pydantic import Field

from ktrace_api.model import Count, Model

Seconds = Annotated[float, Field(ge=0, le=3600)]
Share = Annotated[float, Field(ge=0, le=1)]


class Thresholds(Model):
    """Limits of the findings. A capture can set other values (docs/thresholds.md)."""

    min_count: Count = 2
    """A single event also happens in healthy traffic: a restart, one lost packet."""

    critical_share: Share = 0.9
    """Nearly all attempts fail: the service is down for this client."""
    critical_count: Count = 10
    """Enough failures to rule out a single incident."""

    dns_grace_s: Seconds = 1.0
    """A query this close to the end may still be answered; twice the slowest answer if that is
    longer."""
    dns_grace_max_s: Seconds = 5.0
    """The usual timeout of a stub resolver (resolv.conf(5)): no client waits longer."""
    dns_retry_s: Seconds = 0.35
    """A query after this pause is a retry: the shortest retry of common resolvers (unbound) is 376
    ms, and pairs of A and AAAA are sent within microseconds."""
    dns_race_s: Seconds = 0.1
    """Queries from one socket to several servers within this time are a race (musl, dnsmasq): the
    server that loses it is not silent."""
    dns_no_reply_share: Share = 0.1
    """UDP loses packets; users notice when 10 % of lookups wait for a timeout."""
    dns_slow_p50_us: Count = 150_000
    """Half of the answers take longer than a round trip around the planet: no cache is that
    slow."""
    dns_slow_p90_us: Count = 1_000_000
    """Far above the objective of cluster DNS (99 % within 1 s, Kubernetes SIG Scalability)."""
    dns_slow_min_answers: Count = 4
    """Quantiles of fewer answers are not reliable."""

    syn_wait_s: Seconds = 0.9
    """The kernel sends the second SYN after 1 s (RFC 6298): a pending connect of this age has lost
    one. The margin is for clients that give up after exactly 1 s."""
    syn_long_wait_s: Seconds = 3.0
    """Two SYNs were not answered; one alone could be a lost packet."""
    refused_count: Count = 3
    """A client that starts before its server is refused once or twice."""
    pooled_share: Share = 0.05
    """Below this share, single failures of many short processes are restarts and lost packets."""
    refused_share: Share = 0.05
    """Below this share, a restart of one of many backends explains the refusals between
    successes."""
    refused_episodes: Count = 3
    """One or two episodes of refusals are restarts; a third one means that the problem recurs."""
    scan_ports: Count = 8
    """A client that is refused by this many ports of one address is a port scan."""
    scan_tries: Count = 4
    """A scan tries a port only a few times; a client that is refused more often needs that port."""
    connect_slow_p50_us: Count = 300_000
    """Half of the handshakes take longer than the longest terrestrial round trip."""
    connect_slow_share: Share = 0.02
    """Handshakes of 1 s and more lost a SYN or its answer; 2 % of them indicate packet loss."""
    connect_slow_count: Count = 3
    """Fewer slow handshakes are single lost packets."""

    close_wait_growth: Count = 10
    """Sockets that the peer closed and the process did not; any connection pool has a few."""
    close_wait_age_s: Seconds = 1.0
    """A process that reads from the socket notices the end of the stream within milliseconds."""
    close_wait_spread_s: Seconds = 0.3
    """A leak continues; sockets that enter CLOSE_WAIT at the same instant are a restarted peer."""

    retransmit_share: Share = 0.01
    """TCP throughput falls with the square root of the loss: 1 % costs most of a fast path."""
    retransmit_critical_share: Share = 0.05
    """At 5 % loss a connection moves a few packets per round trip, at any link speed."""
    retransmit_count: Count = 10
    """Tail loss probes (TLP) and reordering retransmit a few segments on any network."""
    retransmit_needless_share: Share = 0.8
    """The receiver reported (DSACK) that it already had most of the segments: late, not lost."""
    stall_retransmits: Count = 4
    """Retransmissions of one connection with growing pauses: nothing is acknowledged."""
    stall_gap_s: Seconds = 0.7
    """The retransmission timeout has doubled twice from its minimum of 200 ms."""
    reset_count: Count = 3
    """A restarting peer resets one or two connections of a client."""
    reset_share: Share = 0.1
    """Share of a client's connections to the peer that were reset after they were established."""

    listen_overflow: Count = 3
    """SYNs or handshakes dropped by a full accept queue; a burst at startup costs one or two."""

    conntrack_full_share: Share = 0.95
    """Above this share the kernel already drops entries early, or will soon refuse new ones."""
    conntrack_insert_failed: Count = 3
    """Single races between two packets of one flow are harmless."""
    unreplied_count: Count = 3
    """Datagrams of one flow without a reply, to a service that replies to other clients."""

    ephemeral_failures: Count = 2
    """EADDRNOTAVAIL is clear evidence, but a wrong bind() also fails once."""

    udp_drops: Count = 20
    """Fewer drops are a burst at startup."""
    udp_drop_share: Share = 0.001
    """A burst can overflow a buffer once; one datagram in a thousand means that the reader is too
    slow."""
    softnet_drops: Count = 50
    """A backlog queue that overflows once holds more packets than that."""
    softnet_drop_share: Share = 0.0001
    """From one packet in ten thousand on, TCP is affected."""

    cpu_some_share: Share = 0.9
    """Share of time in which some task waited for a CPU. A busy node with few CPUs waits half of
    the time without a problem; at nine tenths the run queue never empties."""
    cpu_min_window_s: Seconds = 5.0
    """Starting a program can fill one second."""
    memory_some_share: Share = 0.1
    """Share of time in which some task waited for memory."""
    memory_full_share: Share = 0.03
    """Share of time in which all tasks waited for memory: the node is busy with reclaim."""

    lost_share: Share = 0.01
    """Maximum share of lost events; above it, missing events are not evidence."""
    unseen_count: Count = 10
    """A kernel that does not trace its own tasks hides the softirq work done on them: a few events
    of any capture."""
