# SPDX-License-Identifier: Apache-2.0
"""The tables that SQL can query: the same while a capture is sealed and in `ktrace query`.

NULL is an unknown value. Integers are signed. Times are UTC, sizes are bytes, and `*_us` are
microseconds.

Columns of several tables
    local, remote         `address:port`, IPv6 in brackets; local_ip, remote_ip have no brackets
    remote*               NULL if the peer is unknown
    family, role          ipv4 or ipv6; client or server
    net, netns            inode of the network namespace
    tgid, comm, uid       process id, name and user id of the process
    cgroup_id             cgroup of the process
    pod_uid ... container_id  pod and container of that cgroup
    sock                  socket cookie, as in `ss -e`
    owner_source          how the process was found: process, accept, listener, inventory, none
    ct_state              state of the socket's conntrack entry; UDP: UNREPLIED, REPLIED, ASSURED
    ct_reply              its reply tuple, `address:port -> address:port`
    nat                   what it translates: dnat, snat, both, none
    backend               address that a client is connected to, if NAT changed `remote` to it
    flow                  number of the conversation: equal at both endpoints, NULL if ambiguous

rows: one line per event
    n                     0, 1, ... in time order; line n + 1 of events.jsonl
    type                  tcp_state, udp_send, udp_recv, connect, tcp_retransmit
    pid, ppid, gid        thread id, parent process id, group id
    old_state, new_state  TCP states; of a tcp_retransmit, new_state is the current state
    measure               by type: state_us, bytes (udp_*), duration_us or segments
    flags                 MSG_ flags of a udp_send or udp_recv
    errno, error          number and name; errno is 0 if the call succeeded
    result                of a connect: established, failed, abandoned, interrupted, pending, denied
    synack                a tcp_retransmit of a SYN-ACK
    dns_rtt_us            of an answer from port 53: time since its query
    dns_rtt_source        heuristic; ambiguous if the answer fits more than one query
    ns_mnt, ns_pid, ns_user  inodes of the process's other namespaces
    seccomp_mode, caps_eff   seccomp mode (0 to 2) and effective capabilities (bit set)
    peer_source           where `remote` comes from: socket, call, cork, packet, none

flows: traffic of one process over one tuple; exact even if rows were sampled or capped. A figure
that no program observes is NULL.
    proto                 tcp or udp
    role                  that of the socket, even if another process opened it
    tx_bytes, rx_bytes    payload bytes sent and received, in tx_calls and rx_calls system calls
    first_ts, last_ts     first and last use
    opened, failed        connections established or accepted; connection attempts that failed
    retrans_segs          retransmitted segments

sockets: TCP sockets that existed when the capture began and when it ended
    moment                start or end
    state, age_us         TCP state, and time in that state

counters: changed counters of the host and of network namespaces. A bundle has those that fit into
node.json. Unchanged counters are absent, except those that findings subtract from others.
    netns                 NULL for the host
    file                  counter file such as netstat or pressure/cpu, or ctnetlink
    name                  counter in that file; `peak` of ctnetlink is the maximum `count`
    before, after, delta  at the start and at the end, and the difference

sysctls: settings of the node that affect networking

accounting: the events of each type; seen = written + filtered + sampled + capped + lost_ring
+ lost_map + skipped. NULL if no program records the type.
    written               rows in the bundle
    filtered, sampled     excluded by a filter; excluded by --sample
    capped                excluded by --max-events or --max-bytes
    lost_ring             lost because the ring buffer or the disk was full
    lost_map              lost because a BPF map was full
    skipped               the kernel did not run the program: it was already running on that CPU
    bytes                 payload bytes of all events that passed the filters
    unseen                minimum number of events for which no BPF program ran; not part of seen

capture: one line, with the options of the capture and its result
    ended_by              duration, signal or error
    window_s              seconds that the BPF programs were attached
    sample                one event in `sample` was kept
    complete              false if an event was capped, lost or unseen, or a hook is missing
    gaps                  why it is not complete: not_traced, lost_ring, lost_map, skipped, unseen,
                          capped, overflow, ended_early
    rows, lost, capped    number of rows, of lost and unseen events, and of capped events; lost is
                          NULL if a missing hook leaves events uncounted
    overflow              facts that were dropped because a BPF map was full
    skipped_calls         TCP calls whose bytes are in no flow: the kernel did not run the program

hooks: the BPF programs for each kind of fact
    chosen                program in use; NULL if none can be used
    refused               `program: reason` of each program that cannot be used

findings: conclusions of the analysis
    rank                  1 is the most severe
    rows                  values of rows.n that are evidence
    points_to             cause that the finding supports
    refuted_by, next      observation that would refute it; command for the next step
"""

from collections.abc import Mapping

_PODS = {
    "cgroup_id": "BIGINT",
    "pod_uid": "VARCHAR",
    "namespace": "VARCHAR",
    "pod": "VARCHAR",
    "container": "VARCHAR",
    "container_id": "VARCHAR",
}
_TUPLE = {
    "local": "VARCHAR",
    "local_ip": "VARCHAR",
    "local_port": "INTEGER",
    "remote": "VARCHAR",
    "remote_ip": "VARCHAR",
    "remote_port": "INTEGER",
    "family": "VARCHAR",
    "role": "VARCHAR",
}
_CONNTRACK = {
    "ct_state": "VARCHAR",
    "ct_reply": "VARCHAR",
    "nat": "VARCHAR",
    "backend": "VARCHAR",
    "flow": "BIGINT",
}

COLUMNS: Mapping[str, Mapping[str, str]] = {
    "rows": {
        "n": "BIGINT",
        "ts": "TIMESTAMP",
        "type": "VARCHAR",
        "comm": "VARCHAR",
        "pid": "BIGINT",
        "tgid": "BIGINT",
        "ppid": "BIGINT",
        "uid": "BIGINT",
        "gid": "BIGINT",
        **_TUPLE,
        "old_state": "VARCHAR",
        "new_state": "VARCHAR",
        "measure": "BIGINT",
        "flags": "VARCHAR[]",
        "errno": "INTEGER",
        "error": "VARCHAR",
        "result": "VARCHAR",
        "synack": "BOOLEAN",
        "dns_rtt_us": "BIGINT",
        "dns_rtt_source": "VARCHAR",
        "net": "BIGINT",
        "ns_mnt": "BIGINT",
        "ns_pid": "BIGINT",
        "ns_user": "BIGINT",
        "seccomp_mode": "INTEGER",
        "caps_eff": "BIGINT",
        **_PODS,
        "owner_source": "VARCHAR",
        "peer_source": "VARCHAR",
        "sock": "BIGINT",
        **_CONNTRACK,
    },
    "flows": {
        "net": "BIGINT",
        "tgid": "BIGINT",
        "comm": "VARCHAR",
        "uid": "BIGINT",
        **_PODS,
        "proto": "VARCHAR",
        **_TUPLE,
        "tx_bytes": "BIGINT",
        "rx_bytes": "BIGINT",
        "tx_calls": "BIGINT",
        "rx_calls": "BIGINT",
        "first_ts": "TIMESTAMP",
        "last_ts": "TIMESTAMP",
        "opened": "BIGINT",
        "failed": "BIGINT",
        "retrans_segs": "BIGINT",
        **_CONNTRACK,
    },
    "sockets": {
        "moment": "VARCHAR",
        "state": "VARCHAR",
        **_TUPLE,
        "net": "BIGINT",
        "tgid": "BIGINT",
        "comm": "VARCHAR",
        "uid": "BIGINT",
        **_PODS,
        "owner_source": "VARCHAR",
        "sock": "BIGINT",
        "age_us": "BIGINT",
    },
    "counters": {
        "netns": "BIGINT",
        "file": "VARCHAR",
        "name": "VARCHAR",
        "before": "DOUBLE",
        "after": "DOUBLE",
        "delta": "DOUBLE",
    },
    "sysctls": {"name": "VARCHAR", "value": "VARCHAR"},
    "accounting": {
        "type": "VARCHAR",
        "seen": "BIGINT",
        "written": "BIGINT",
        "filtered": "BIGINT",
        "sampled": "BIGINT",
        "capped": "BIGINT",
        "lost_ring": "BIGINT",
        "lost_map": "BIGINT",
        "bytes": "BIGINT",
        "unseen": "BIGINT",
        "skipped": "BIGINT",
    },
    "capture": {
        "node": "VARCHAR",
        "started": "TIMESTAMP",
        "ended": "TIMESTAMP",
        "ended_by": "VARCHAR",
        "window_s": "DOUBLE",
        "sample": "BIGINT",
        "complete": "BOOLEAN",
        "dns_only": "BOOLEAN",
        "security": "BOOLEAN",
        "conntrack": "BOOLEAN",
        "ports": "INTEGER[]",
        "pods": "VARCHAR[]",
        "events": "VARCHAR[]",
        "rows": "BIGINT",
        "lost": "BIGINT",
        "capped": "BIGINT",
        "overflow": "BIGINT",
        "gaps": "VARCHAR[]",
        "skipped_calls": "BIGINT",
    },
    "hooks": {"hook": "VARCHAR", "chosen": "VARCHAR", "refused": "VARCHAR[]"},
    "findings": {
        "rank": "INTEGER",
        "id": "VARCHAR",
        "severity": "VARCHAR",
        "title": "VARCHAR",
        "tgid": "BIGINT",
        "comm": "VARCHAR",
        "namespace": "VARCHAR",
        "pod": "VARCHAR",
        "peer": "VARCHAR",
        "netns": "BIGINT",
        "counts": "MAP(VARCHAR, BIGINT)",
        "rows": "BIGINT[]",
        "points_to": "VARCHAR",
        "confidence": "VARCHAR",
        "refuted_by": "VARCHAR",
        "next": "VARCHAR",
    },
}
"""Table -> column -> DuckDB type, in column order."""


def create(table: str) -> str:
    """Returns the DDL of an empty table of the contract."""
    columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS[table].items())
    return f"CREATE TABLE {table} ({columns})"


def select(table: str, expressions: Mapping[str, str]) -> str:
    """Returns the select list of a table: the expression of each column, cast to its type.

    A column without an expression is selected by its own name.
    """
    return ", ".join(
        f"TRY_CAST({expressions.get(name, name)} AS {kind}) AS {name}"
        for name, kind in COLUMNS[table].items()
    )
