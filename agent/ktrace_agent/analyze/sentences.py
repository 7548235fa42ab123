# SPDX-License-Identifier: Apache-2.0
"""Constant sentences of findings and verdicts; titles are in titles.py."""

from collections.abc import Mapping

from ktrace_agent.analyze.titles import Variant
from ktrace_api.finding import Cause, FindingId

_ID = FindingId

CAUSES: Mapping[Cause, str] = {
    Cause.DNS: "DNS",
    Cause.POLICY: "network policy or firewall",
    Cause.ROUTING: "network path",
    Cause.NAT: "NAT or conntrack",
    Cause.APPLICATION: "application",
    Cause.HOST: "this node",
    Cause.HEALTHY: "healthy",
    Cause.UNKNOWN: "unknown",
}
"""Causes as people read them."""

NO_PROBLEMS = "No problems found in {rows:event}."
ALSO_FOUND = "{title}. Also found: {causes}"
DATA_MISSING = "No verdict: no problems found, but data is missing. {title}"
NO_TRAFFIC = "No verdict: no socket activity. Record longer."
"""For a capture of unknown length."""
NO_TRAFFIC_IN = "No verdict: no socket activity in {seconds} s. Record longer."
NOT_CAPTURED = "No verdict: {count:event} {count:was|were} counted by the kernel but not captured."
SAMPLED_OUT = "No verdict: none of {count:event} was kept (sample: 1 in {sample})."
NOT_KEPT = "No verdict: none of {count:event} was kept (full buffers or limits)."
NO_EVENTS = (
    "No verdict: {count:flow} carried data, but no event was recorded. No fault is visible, and"
    " none is ruled out."
)
NOT_MATCHED = "No verdict: nothing matched the filter ({filters})."

NOT_COMPARED = "Counters of its network namespace are missing ({counters})."
HOOKS_MISSING = "Not traced: {hooks}."
EVENTS_LOST = "{share:.1 %} of the events behind this finding were lost."
SAMPLED = "Sampled: 1 event in {sample} is recorded."
FILTERED = "Captured only: {filters}."
CAPPED = "{count:event} {count:was|were} not kept: the capture limit was reached."

REFUTED_BY: Mapping[FindingId, str] = {
    _ID.DNS_NO_REPLY: "A packet capture at the client's socket shows the answers, or the client"
    " closes its socket before they arrive (Udp.NoPorts increases).",
    _ID.DNS_SLOW: "The client reads its socket late and the answer waits there: a packet capture"
    " or `ss -uanm` (Recv-Q) shows it.",
    _ID.TCP_SYN_UNANSWERED: "A packet capture at the client shows a SYN-ACK or RST for these"
    " ports, or the peer is down on purpose.",
    _ID.TCP_CONNECT_TIMEOUT: "A packet capture at the client shows a reply from the peer.",
    _ID.TCP_CONNECT_REFUSED: "Something listened on that address during the refusals (then a"
    " device on the path sends the RST), or the client probes a port that should be closed.",
    _ID.TCP_CONNECT_UNREACHABLE: "The address has a route and a neighbor that responds, or the"
    " client falls back to the other IP version.",
    _ID.TCP_CONNECT_SLOW: "The round-trip time to the peer is as long as the handshakes (a distant"
    " peer), or the server's accept queue is full.",
    _ID.CONNECT_DENIED: "No seccomp filter, cgroup program, LSM rule or prohibit route applies to"
    " the process.",
    _ID.EPHEMERAL_PORTS_EXHAUSTED: "ip_local_port_range has free ports for that address, or the"
    " client binds to an address that its network namespace does not have.",
    _ID.CLOSE_WAIT_GROWING: "The process still sends on these connections (half-closed streams),"
    " or there are fewer of them a minute later.",
    _ID.TCP_RETRANSMITS: "The receiver reports duplicates (TcpExt.TCPDSACKRecv increases by as"
    " much): the segments were late, not lost.",
    _ID.TCP_RESETS: "The client aborts its connections itself (SO_LINGER 0, unread data): then"
    " TcpExt.TCPAbortOn* increases in its network namespace.",
    _ID.LISTEN_OVERFLOW: "The counters do not increase in the next minute: it was a burst at"
    " startup.",
    _ID.CONNTRACK_UNREPLIED: "The protocol never replies (syslog, statsd, NetFlow), or a packet"
    " capture shows replies.",
    _ID.CONNTRACK_FULL: "The entry count stays well below nf_conntrack_max in that network"
    " namespace, and drop and early_drop do not increase.",
    _ID.CONNTRACK_INSERT_FAILED: "The network namespace has no source NAT and no parallel queries"
    " from one port.",
    _ID.UDP_RCVBUF_DROPS: "No socket has a `d` counter in `ss -uanm`: then the memory limit of all"
    " UDP sockets (udp_mem) was reached.",
    _ID.SOFTNET_DROPS: "The second column of /proc/net/softnet_stat does not increase.",
    _ID.CPU_PRESSURE: "/proc/pressure/cpu is far lower while the problem occurs, or only"
    " low-priority batch jobs wait.",
    _ID.MEMORY_PRESSURE: "/proc/pressure/memory is near zero while the problem occurs.",
    _ID.CAPTURE_INCOMPLETE: "A capture of the same traffic has `complete: true` in its summary.",
}
"""What would prove a finding wrong."""

REFUTED_BY_VARIANT: Mapping[tuple[FindingId, Variant], str] = {
    (_ID.TCP_CONNECT_REFUSED, Variant.FIREWALL): "A packet capture at the client shows RSTs from"
    " the peer: then nothing listens there.",
    (_ID.TCP_CONNECT_REFUSED, Variant.FIREWALL_POSSIBLE): "A packet capture shows ICMP unreachable"
    " for this address: then a firewall rejects. {count:such message} arrived, possibly caused by"
    " UDP, large packets or other connections.",
    (_ID.CAPTURE_INCOMPLETE, Variant.NOT_TRACED): "A capture of the same traffic has"
    " `complete: true` and an empty `hooks_missing` in its summary.",
}
"""The same where the evidence differs."""

NEXT: Mapping[FindingId, str] = {
    _ID.SOFTNET_DROPS: "cat /proc/net/softnet_stat; sysctl net.core.netdev_max_backlog;"
    " mpstat -P ALL 1 5",
    _ID.CPU_PRESSURE: "cat /proc/pressure/cpu; top -bn1 | head -20; cat /sys/fs/cgroup/cpu.stat",
    _ID.MEMORY_PRESSURE: "cat /proc/pressure/memory; free -m;"
    " grep -E 'pgmajfault|allocstall' /proc/vmstat",
    _ID.CAPTURE_INCOMPLETE: "ktrace --duration=30s --ring-bytes=64Mi --max-events=2000000;"
    " ktrace doctor",
}
"""The next command, where it is the same for every process and peer."""

NEXT_SKIPPED = "ktrace --duration=30s --ports=53,443 --events=udp,connect"
"""Where only skipped events are missing: programs that a filter ends early are rarely skipped."""

NEXT_VARIANT: Mapping[tuple[FindingId, Variant], str] = {
    (_ID.CAPTURE_INCOMPLETE, Variant.NOT_TRACED): "ktrace doctor",
}
