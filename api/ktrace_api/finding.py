# SPDX-License-Identifier: Apache-2.0
"""The result of an analysis: findings with their evidence, one verdict, the DNS summary.

Every text and every list has a maximum size, so that the result of a run of any size is bounded.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from ktrace_api.model import Count, MaybeCount, Model
from ktrace_api.names import UNKNOWN

MAX_FINDINGS = 20
"""Maximum findings of one capture; the worst are kept."""
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
    """Everything that ktrace can find. docs/findings/<ID>.md explains each."""

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
    """How much a finding matters, worst first."""

    CRITICAL = "critical"
    """Nearly all attempts fail."""
    WARNING = "warning"
    """Something is wrong and needs attention."""
    INFO = "info"
    """True, and normal in healthy traffic."""


class Confidence(StrEnum):
    """How strong the evidence is."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class Cause(StrEnum):
    """Where the problem is."""

    DNS = "dns"
    POLICY = "policy"
    """Traffic is blocked on purpose: firewall, network policy, seccomp, cgroup program."""
    ROUTING = "routing"
    """The network path: no route, unreachable, loss, delay, a peer that disappeared."""
    NAT = "nat"
    """Address translation and connection tracking, and the backends behind them."""
    APPLICATION = "application"
    """A process does not listen, accept, read or close."""
    HOST = "host"
    """This node: CPU, memory, queues, local ports."""
    HEALTHY = "healthy"
    UNKNOWN = "unknown"


class Subject(Model):
    """The process, pod and peer of a finding; "-" if unknown or not unique."""

    tgid: MaybeCount = "-"
    """Process id."""
    comm: Name = UNKNOWN
    pod: KubernetesName = UNKNOWN
    namespace: KubernetesName = UNKNOWN
    """Kubernetes namespace."""
    peer: Name = UNKNOWN
    """Remote `address:port`, or only the address if ports differ."""
    netns: MaybeCount = "-"
    """Inode of the network namespace."""


class Number(Model):
    """A number that was compared with a limit."""

    what: Name
    value: FiniteFloat | int
    against: FiniteFloat | int | None = None
    """The limit, if there is one."""
    unit: Name = ""


class Evidence(Model):
    """The evidence of a finding."""

    rows: Annotated[tuple[Count, ...], Field(max_length=MAX_ROWS)] = ()
    """Numbers of rows that show it. Row n is line n + 1 of events.jsonl."""
    numbers: Annotated[tuple[Number, ...], Field(max_length=MAX_NUMBERS)] = ()


class Finding(Model):
    """One conclusion, with everything that is needed to verify it."""

    id: FindingId
    severity: Severity
    title: Title
    """One sentence for people: what is broken, who noticed it, how often."""
    subject: Subject
    counts: Annotated[dict[Name, Count], Field(max_length=MAX_NUMBERS)] = Field(
        default_factory=dict
    )
    """Counts by name. `subjects_left_out`: subjects of this id that are not listed."""
    evidence: Evidence = Evidence()
    points_to: Cause
    """The cause that it points to."""
    refuted_by: Sentence
    """What would prove it wrong."""
    next: Sentence
    """The command to run next."""
    confidence: Confidence
    coverage: Annotated[tuple[Sentence, ...], Field(max_length=MAX_COVERAGE)] = ()
    """Missing data that could change it: hooks, lost events, sampling, filters."""


class Verdict(Model):
    """The likely cause: DNS, policy, routing, NAT, the application or the host."""

    verdict: Cause
    findings: Annotated[tuple[FindingId, ...], Field(max_length=len(FindingId))] = ()
    """Findings that support it, the most important first."""
    why: Sentence


class RoundTrip(Model):
    """Time from a DNS query to its answer, in microseconds."""

    count: Count
    min: Count
    p50: Count
    p90: Count
    p99: Count
    max: Count


class Resolver(Model):
    """One DNS server as used by clients on this node, over UDP."""

    peer: Name
    clients: Count
    """Processes that sent queries to it."""
    queries: Count
    answers: Count | None
    """null: receives were not observed. `unanswered` and `ambiguous` likewise."""
    unanswered: Count | None
    ambiguous: Count | None
    """Answers that may belong to any of several queries."""
    rtt_us: RoundTrip | None
    """Of the answers that are not ambiguous; of all answers if all are ambiguous."""


class DnsSuspect(Model):
    """A process that sent DNS queries and received no answer, or could not send them."""

    tgid: MaybeCount
    comm: Name
    pod: KubernetesName
    namespace: KubernetesName
    netns: MaybeCount
    peer: Name
    queries: Count
    answers: Count | None
    """null: receives were not observed. `unanswered` and `retries` likewise."""
    unanswered: Count | None
    retries: Count | None
    """Queries that were repeated on the same socket without an answer in between."""
    since: datetime | None
    """Time of the first unanswered query."""
    ct_state: Name
    """State of the conntrack entry. UNREPLIED: no packet came back."""
    answered_by: Name
    """Another address that answered instead of the DNS server."""
    answers_sent: Count
    """Answers that a DNS server on this node sent and that did not arrive."""
    errors: Annotated[dict[Name, Count], Field(max_length=MAX_NUMBERS)] = Field(
        default_factory=dict
    )
    """Errors of its send and receive calls, by name of errno."""


class DnsSummary(Model):
    """DNS on this node. Times are estimated, because no payload is read."""

    heuristic: Literal[True] = True
    """Queries and answers are matched by socket, peer and order."""
    queries: Count | None = None
    """null: UDP sends were not observed, or nothing was analyzed."""
    answers: Count | None = None
    """null: UDP sends or receives were not observed. The next three likewise."""
    unanswered: Count | None = None
    ambiguous: Count | None = None
    retries: Count | None = None
    tcp_connects: Count | None = None
    """TCP connection attempts to port 53. null: attempts were not observed."""
    tcp_failed: Count | None = None
    resolvers: Annotated[tuple[Resolver, ...], Field(max_length=MAX_RESOLVERS)] = ()
    """Sorted by unanswered queries, then by queries, largest first."""
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
