# SPDX-License-Identifier: Apache-2.0
"""What an analysis concludes: findings with their evidence, one verdict, the summary of DNS.

Every text and every list is bounded, so that what is said of a run of any size has a size.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from ktrace_api.model import Count, MaybeCount, Model
from ktrace_api.names import UNKNOWN

MAX_FINDINGS = 20
"""Findings of one capture at most; the worst are kept."""
MAX_ROWS = 10
MAX_NUMBERS = 8
MAX_COVERAGE = 4
MAX_RESOLVERS = 8
MAX_SUSPECTS = 10
TITLE_CHARS = 160
SENTENCE_CHARS = 240
NAME_CHARS = 64
UID_CHARS = 253

Name = Annotated[str, Field(max_length=NAME_CHARS)]
Title = Annotated[str, Field(max_length=TITLE_CHARS)]
Sentence = Annotated[str, Field(max_length=SENTENCE_CHARS)]
KubernetesName = Annotated[str, Field(max_length=UID_CHARS)]


class FindingId(StrEnum):
    """Everything that ktrace can find; docs/findings/<ID>.md explains each."""

    DNS_NO_REPLY = "DNS_NO_REPLY"
    DNS_SLOW = "DNS_SLOW"
    TCP_SYN_UNANSWERED = "TCP_SYN_UNANSWERED"
    TCP_CONNECT_REFUSED = "TCP_CONNECT_REFUSED"
    TCP_CONNECT_TIMEOUT = "TCP_CONNECT_TIMEOUT"
    TCP_CONNECT_UNREACHABLE = "TCP_CONNECT_UNREACHABLE"
    TCP_CONNECT_SLOW = "TCP_CONNECT_SLOW"
    CONNECT_DENIED = "CONNECT_DENIED"
    CLOSE_WAIT_GROWING = "CLOSE_WAIT_GROWING"
    TCP_RETRANSMITS = "TCP_RETRANSMITS"
    TCP_RESETS = "TCP_RESETS"
    LISTEN_OVERFLOW = "LISTEN_OVERFLOW"
    CONNTRACK_UNREPLIED = "CONNTRACK_UNREPLIED"
    CONNTRACK_FULL = "CONNTRACK_FULL"
    CONNTRACK_INSERT_FAILED = "CONNTRACK_INSERT_FAILED"
    EPHEMERAL_PORTS_EXHAUSTED = "EPHEMERAL_PORTS_EXHAUSTED"
    UDP_RCVBUF_DROPS = "UDP_RCVBUF_DROPS"
    SOFTNET_DROPS = "SOFTNET_DROPS"
    CPU_PRESSURE = "CPU_PRESSURE"
    MEMORY_PRESSURE = "MEMORY_PRESSURE"
    CAPTURE_INCOMPLETE = "CAPTURE_INCOMPLETE"


class Severity(StrEnum):
    """How much a finding matters; worst first."""

    CRITICAL = "critical"
    """Almost everything of its kind fails."""
    WARNING = "warning"
    """Something is wrong that somebody should look at."""
    INFO = "info"
    """True, and usual in healthy traffic."""


class Confidence(StrEnum):
    """How sure the evidence makes us."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class Cause(StrEnum):
    """Where the trouble is."""

    DNS = "dns"
    POLICY = "policy"
    """Something drops or refuses on purpose: firewall, network policy, seccomp, cgroup program."""
    ROUTING = "routing"
    """The path: no route, unreachable, loss, delay, a peer that went silent."""
    NAT = "nat"
    """Address translation and connection tracking, and the backends that they lead to."""
    APPLICATION = "application"
    """A process that does not listen, accept, read or close."""
    HOST = "host"
    """This node: CPU, memory, queues, ports."""
    HEALTHY = "healthy"
    UNKNOWN = "unknown"


class Subject(Model):
    """Whom a finding is about; "-" is not known or not one."""

    tgid: MaybeCount = "-"
    """Process id."""
    comm: Name = UNKNOWN
    pod: KubernetesName = UNKNOWN
    namespace: KubernetesName = UNKNOWN
    """Kubernetes namespace."""
    peer: Name = UNKNOWN
    """Remote `address:port`, or the address alone where ports differ."""
    netns: MaybeCount = "-"
    """Inode of the network namespace."""


class Number(Model):
    """A number that was compared."""

    what: Name
    value: FiniteFloat | int
    against: FiniteFloat | int | None = None
    """The limit, where there is one."""
    unit: Name = ""


class Evidence(Model):
    """What a finding rests on."""

    rows: Annotated[tuple[Count, ...], Field(max_length=MAX_ROWS)] = ()
    """Numbers of rows that show it: line n + 1 of events.jsonl."""
    numbers: Annotated[tuple[Number, ...], Field(max_length=MAX_NUMBERS)] = ()


class Finding(Model):
    """One conclusion, with all that is needed to doubt it."""

    id: FindingId
    severity: Severity
    title: Title
    """One sentence for people: who, what, how often."""
    subject: Subject
    counts: Annotated[dict[Name, Count], Field(max_length=MAX_NUMBERS)] = Field(
        default_factory=dict
    )
    """What was counted; `subjects_left_out`: further subjects of this id that are not listed."""
    evidence: Evidence = Evidence()
    points_to: Cause
    """The verdict that it speaks for."""
    refuted_by: Sentence
    """What would prove it wrong."""
    next: Sentence
    """The command that looks closer."""
    confidence: Confidence
    coverage: Annotated[tuple[Sentence, ...], Field(max_length=MAX_COVERAGE)] = ()
    """What was not seen and could change it: missing hooks, losses, sampling, filters."""


class Verdict(Model):
    """Whether it is DNS, policy, routing, NAT, the application or the host."""

    verdict: Cause
    findings: Annotated[tuple[FindingId, ...], Field(max_length=len(FindingId))] = ()
    """Those that carry it."""
    why: Sentence


class RoundTrip(Model):
    """Times from a DNS query to its answer, in microseconds."""

    count: Count
    min: Count
    p50: Count
    p90: Count
    p99: Count
    max: Count


class Resolver(Model):
    """One DNS server as its clients on this node met it, over UDP."""

    peer: Name
    clients: Count
    """Processes that asked it."""
    queries: Count
    answers: Count
    unanswered: Count
    ambiguous: Count
    """Answers of which nobody can tell which of several queries they belong to."""
    rtt_us: RoundTrip | None
    """Of the answers that are not ambiguous; of all where there are no others."""


class DnsSuspect(Model):
    """A process that asked and got no answer."""

    tgid: MaybeCount
    comm: Name
    pod: KubernetesName
    namespace: KubernetesName
    netns: MaybeCount
    peer: Name
    queries: Count
    answers: Count
    unanswered: Count
    retries: Count
    """Queries that were asked again on the same socket without an answer in between."""
    since: datetime | None
    """The first query without an answer."""
    ct_state: Name
    """What connection tracking says of it; UNREPLIED: no packet came back."""
    answered_by: Name
    """Another address that answered instead."""
    answers_sent: Count
    """Answers that the resolver, on this node too, sent and that did not arrive."""
    errors: Annotated[dict[Name, Count], Field(max_length=MAX_NUMBERS)] = Field(
        default_factory=dict
    )
    """Errors of its sends and receives, by name of errno."""


class DnsSummary(Model):
    """Name resolution on this node. Times are a heuristic: no payload is looked at."""

    heuristic: Literal[True] = True
    """Queries and answers are joined by socket, peer and order."""
    queries: Count = 0
    answers: Count = 0
    unanswered: Count = 0
    ambiguous: Count = 0
    retries: Count = 0
    tcp_connects: Count = 0
    """Connects to port 53 over TCP."""
    tcp_failed: Count = 0
    resolvers: Annotated[tuple[Resolver, ...], Field(max_length=MAX_RESOLVERS)] = ()
    """Those with most unanswered queries, then most queries, first."""
    resolvers_left_out: Count = 0
    suspects: Annotated[tuple[DnsSuspect, ...], Field(max_length=MAX_SUSPECTS)] = ()
    suspects_left_out: Count = 0


class Findings(Model):
    """The whole analysis of one capture."""

    findings: Annotated[tuple[Finding, ...], Field(max_length=MAX_FINDINGS)]
    """Worst first."""
    findings_left_out: Count = 0
    verdict: Verdict
    dns: DnsSummary
