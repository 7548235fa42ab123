# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - every part of a statement is a constant
"""How a recording is stored in DuckDB: narrow events, texts in small tables, views that join them.

events        one line per row of the bundle; its texts are numbers of the tables below
kinds         fields that many events share: type, states, role, sources, result, errno
owners        facts of a process
addresses     text of an address
message_flags names of the MSG_ flags of a call
pods          names of a cgroup
connections   conntrack entry of an endpoint
flow_stats    struct kt_flow with its key
inventory     both socket inventories
round_trips   times of DNS answers by n
lines         view: n and the JSON text of the row

The views rows, flows and sockets have the columns of contract.py.
"""

from ktrace_agent.tables.contract import COLUMNS, create, select

_STORED = """
CREATE TABLE events (n UINTEGER, ts TIMESTAMP, sock UBIGINT, measure BIGINT, flags BIGINT,
    kind UINTEGER, owner UINTEGER, local UINTEGER, local_port USMALLINT, remote UINTEGER,
    remote_port USMALLINT, net UINTEGER, connection UINTEGER, flow UBIGINT);
CREATE TABLE kinds (kind UINTEGER, type VARCHAR, family VARCHAR, role VARCHAR,
    old_state VARCHAR, new_state VARCHAR, errno INTEGER, error VARCHAR, result VARCHAR,
    synack BOOLEAN, owner_source VARCHAR, peer_source VARCHAR, has_peer BOOLEAN,
    head VARCHAR, middle VARCHAR, rest VARCHAR, tail VARCHAR);
CREATE TABLE owners (owner UINTEGER, comm VARCHAR, pid UINTEGER, tgid UINTEGER, ppid UINTEGER,
    uid UINTEGER, gid UINTEGER, ns_mnt UINTEGER, ns_pid UINTEGER, ns_user UINTEGER,
    seccomp_mode UTINYINT, caps_eff UBIGINT, cgroup_id UBIGINT, head VARCHAR, tail VARCHAR);
CREATE TABLE addresses (address UINTEGER, text VARCHAR);
CREATE TABLE message_flags (flags BIGINT, names VARCHAR[], json VARCHAR);
CREATE TABLE pods (cgroup_id UBIGINT, pod_uid VARCHAR, namespace VARCHAR, pod VARCHAR,
    container VARCHAR, container_id VARCHAR);
CREATE TABLE connections (connection UINTEGER, state VARCHAR, reply VARCHAR, nat VARCHAR,
    backend VARCHAR, is_originator BOOLEAN);
CREATE TABLE round_trips (n UINTEGER, rtt_us BIGINT, source VARCHAR);
CREATE TABLE flow_stats (local UINTEGER, local_port USMALLINT, remote UINTEGER,
    remote_port USMALLINT, net UINTEGER, tgid UINTEGER, proto VARCHAR, family VARCHAR,
    role VARCHAR, comm VARCHAR, uid UINTEGER, cgroup_id UBIGINT, tx_bytes UBIGINT,
    rx_bytes UBIGINT, tx_calls UBIGINT, rx_calls UBIGINT, opened UINTEGER, failed UINTEGER,
    retrans_segs UINTEGER, first_ts TIMESTAMP, last_ts TIMESTAMP, connection UINTEGER,
    flow UBIGINT);
CREATE TABLE inventory (moment VARCHAR, state VARCHAR, family VARCHAR, role VARCHAR,
    owner_source VARCHAR, local UINTEGER, local_port USMALLINT, remote UINTEGER,
    remote_port USMALLINT, owner UINTEGER, net UINTEGER, sock UBIGINT, age_us BIGINT);
"""

_PEER = "CASE WHEN {} THEN {} END"
_POD = {name: f"p.{name}" for name in ("pod_uid", "namespace", "pod", "container", "container_id")}
_CONNECTION = {
    "ct_state": "c.state",
    "ct_reply": "c.reply",
    "nat": "c.nat",
    "backend": "c.backend",
}
# The role in UDP follows from who sent the first datagram. In TCP the kernel reports it.
_ROLE = """coalesce(f.role, CASE WHEN f.proto <> 'udp' THEN NULL WHEN c.is_originator THEN 'client'
    WHEN NOT c.is_originator THEN 'server' END)"""


def _tuple(line: str, has_peer: str) -> dict[str, str]:
    """Returns expressions for the addresses of alias `line`, joined with addresses l and r."""
    return {
        "local": f"concat(l.text, ':', {line}.local_port)",
        "local_ip": "trim(l.text, '[]')",
        "local_port": f"{line}.local_port",
        "remote": _PEER.format(has_peer, f"concat(r.text, ':', {line}.remote_port)"),
        "remote_ip": _PEER.format(has_peer, "trim(r.text, '[]')"),
        "remote_port": _PEER.format(has_peer, f"{line}.remote_port"),
    }


_FROM_EVENTS = """
  FROM events e JOIN kinds k USING (kind) JOIN owners o USING (owner)
  JOIN addresses l ON e.local = l.address JOIN addresses r ON e.remote = r.address
  JOIN message_flags f USING (flags) JOIN connections c USING (connection)
  LEFT JOIN round_trips d ON e.n = d.n
"""
_ROWS = select(
    "rows",
    {
        **_tuple("e", "k.has_peer"),
        "n": "e.n",
        "measure": "nullif(e.measure, -1)",
        "dns_rtt_us": "d.rtt_us",
        "dns_rtt_source": "d.source",
        "flags": "f.names",
        "net": "nullif(e.net, 0)",
        "cgroup_id": "o.cgroup_id",
        "sock": "nullif(e.sock, 0)",
        "flow": "nullif(e.flow, 0)",
        **_POD,
        **_CONNECTION,
    },
)
_FLOWS = select("flows", {**_tuple("f", "f.remote_port > 0"), **_POD, **_CONNECTION,
                          "cgroup_id": "f.cgroup_id", "role": _ROLE,
                          "flow": "nullif(f.flow, 0)"})  # fmt: skip
_SOCKETS = select("sockets", {**_tuple("s", "s.remote_port > 0"), **_POD,
                              "cgroup_id": "o.cgroup_id"})  # fmt: skip

_VIEWS = f"""
CREATE VIEW rows AS SELECT {_ROWS} {_FROM_EVENTS} LEFT JOIN pods p ON o.cgroup_id = p.cgroup_id;

CREATE VIEW flows AS SELECT {_FLOWS} FROM flow_stats f
  JOIN addresses l ON f.local = l.address JOIN addresses r ON f.remote = r.address
  JOIN connections c USING (connection) LEFT JOIN pods p ON f.cgroup_id = p.cgroup_id;

CREATE VIEW sockets AS SELECT {_SOCKETS} FROM inventory s JOIN owners o USING (owner)
  JOIN addresses l ON s.local = l.address JOIN addresses r ON s.remote = r.address
  LEFT JOIN pods p ON o.cgroup_id = p.cgroup_id;

CREATE VIEW lines AS SELECT e.n, concat('{{"ts":"', strftime(ts, '%Y-%m-%dT%H:%M:%S.%g'), k.head,
    o.head, ',"tuple":"', l.text, ':', e.local_port, ' -> ',
    CASE WHEN k.has_peer THEN concat(r.text, ':', e.remote_port) ELSE '-' END,
    k.middle, CASE WHEN e.measure < 0 THEN '"-"' ELSE e.measure::VARCHAR END, f.json, k.rest,
    CASE k.type WHEN 'udp_recv' THEN concat(',"dns_rtt_us":', coalesce(d.rtt_us::VARCHAR, '"-"'),
      ',"dns_rtt_source":"', coalesce(d.source, '-'), '"') ELSE '' END,
    ',"ns":{{"net":', CASE WHEN e.net = 0 THEN '"-"' ELSE e.net::VARCHAR END, o.tail,
    ',"conntrack":{{"state":"', coalesce(c.state, '-'), '","reply":"', coalesce(c.reply, '-'),
    '","nat":"', coalesce(c.nat, '-'), '","backend":"', coalesce(c.backend, '-'), '"}}',
    k.tail, CASE WHEN e.sock = 0 THEN '-' ELSE '0x' || lower(hex(e.sock)) END, '","flow":"',
    CASE WHEN e.flow = 0 THEN '-' ELSE '0x' || lower(hex(e.flow)) END, '"}}') AS line
  {_FROM_EVENTS};
"""

_FACT_TABLES = [create(name) for name in COLUMNS if name not in ("rows", "flows", "sockets")]

SCHEMA = ";\n".join((_STORED + _VIEWS, *_FACT_TABLES))
