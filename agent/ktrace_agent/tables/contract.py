# SPDX-License-Identifier: Apache-2.0
"""What SQL may ask of a capture: the same tables while it is sealed and in `ktrace query`.

NULL is a fact that is not known. Numbers are signed, times are UTC, sizes bytes.

rows        one line an event, n = 0, 1, ... in the order of time and of events.jsonl
            measure: state_us, bytes, duration_us or segs, as the type has it
            new_state: of a tcp_retransmit the state; errno: 0 where a call succeeded
            local, remote: `a:p`, IPv6 in brackets; *_ip without brackets; net: the socket's netns
            dns_rtt_us: from the query to this answer from port 53; dns_rtt_source: heuristic, or
            ambiguous where another query may be meant
            ct_state, ct_reply, nat: what connection tracking says of the tuple
            backend: whom a client really talks to where that is not `remote`
            flow: the conversation; both of its ends have the same, NULL where that is not certain
flows       traffic of a process by tuple, exact also when rows were sampled or capped
            opened: connections established or accepted; failed: connects that did not establish
            role: the socket's, also where another process than the one that opened it talks
sockets     TCP sockets that existed when the capture began (moment 'start') and ended ('end')
            age_us: how long the socket is in its state
counters    changed counters of the host (netns NULL) and of namespaces, of a bundle those that
            node.json has room for; unchanged ones are absent, but for what findings subtract
            file ctnetlink: what connection tracking said; peak: the highest count of all looks
sysctls     what the node is set to
accounting  where the events of a hook went: seen is the sum of the others but bytes and unseen
capture     one line: what was asked for and what became of it
hooks       which programs served which fact; refused: `program: reason`, chosen NULL: none
findings    what the analysis concluded, rank 1 is the worst; rows: the n of rows that show it
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
"""Table -> column -> type, in order."""


def create(table: str) -> str:
    """DDL of an empty table of the contract."""
    columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS[table].items())
    return f"CREATE TABLE {table} ({columns})"


def select(table: str, expressions: Mapping[str, str]) -> str:
    """The select list of a table of the contract: an expression for each column, cast to its type.

    A column without an expression has one of its own name.
    """
    return ", ".join(
        f"TRY_CAST({expressions.get(name, name)} AS {kind}) AS {name}"
        for name, kind in COLUMNS[table].items()
    )
