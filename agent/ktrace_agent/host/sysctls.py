# SPDX-License-Identifier: Apache-2.0
"""Network settings of the kernel that help to explain a capture."""

from pathlib import Path

from ktrace_agent.host.counters import read_file
from ktrace_agent.host.netns import PROC

SYSCTLS = (
    "net/core/netdev_max_backlog",
    "net/core/rmem_default",
    "net/core/rmem_max",
    "net/core/somaxconn",
    "net/core/wmem_default",
    "net/core/wmem_max",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_local_reserved_ports",
    "net/ipv4/tcp_abort_on_overflow",
    "net/ipv4/tcp_congestion_control",
    "net/ipv4/tcp_fin_timeout",
    "net/ipv4/tcp_max_syn_backlog",
    "net/ipv4/tcp_max_tw_buckets",
    "net/ipv4/tcp_mem",
    "net/ipv4/tcp_retries2",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_syn_retries",
    "net/ipv4/tcp_synack_retries",
    "net/ipv4/tcp_syncookies",
    "net/ipv4/tcp_tw_reuse",
    "net/ipv4/tcp_wmem",
    "net/ipv4/udp_mem",
    "net/netfilter/nf_conntrack_buckets",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_tcp_timeout_established",
    "net/netfilter/nf_conntrack_udp_timeout",
)
"""Only read, never written. Those of net/ belong to the agent's network namespace."""


def read(proc: Path = PROC) -> dict[str, str]:
    """Return name -> value of all readable SYSCTLS, with blanks collapsed."""
    values = {}
    for path in SYSCTLS:
        raw = read_file(proc / "sys" / path)
        if isinstance(raw, bytes):
            text = " ".join(raw[:128].decode("utf-8", "replace").split())
            values[path.replace("/", ".")] = text
    return values
