# SPDX-License-Identifier: Apache-2.0
"""The golden workload's truth (traffic.c), and the rows of a bundle in the same form."""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

TCP_PORT, CLOSED_PORT = "7801", "7809"
UNKNOWN = "-"

Row = tuple[str, ...]
"""Type of the row, process id, and what tells such rows apart: ports, bytes, errno, states."""

# What one connection and one refused connection attempt go through, on each side.
_CLIENT = ("CLOSE", "SYN_SENT", "ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2", "CLOSE")
_SERVER = ("LISTEN", "SYN_RECV", "ESTABLISHED", "CLOSE_WAIT", "LAST_ACK", "CLOSE")
_REFUSED = ("CLOSE", "SYN_SENT", "CLOSE")
_LISTENER = ("CLOSE", "LISTEN", "CLOSE")


def truth(text: str) -> Counter[Row]:
    """The rows that a complete capture of the workload has, from the workload's output."""
    lines = [line.split() for line in text.splitlines()]
    client, server = (
        next(line[2] for line in lines if line[:2] == ["process", role])
        for role in ("client", "server")
    )
    rows: Counter[Row] = Counter(_states(server, _LISTENER))
    for kind, tgid, *rest in lines:
        if kind in ("udp_send", "udp_recv"):
            rows[kind, tgid, *rest] += 1
        elif kind == "connect":
            local, peer, errno = rest
            rows[kind, tgid, local if errno == "0" else UNKNOWN, peer, errno] += 1
            if errno == "0":
                rows.update((*_states(client, _CLIENT), *_states(server, _SERVER)))
            else:
                rows.update(_states(client, _REFUSED))
    return rows


def _states(tgid: str, states: tuple[str, ...]) -> Iterator[Row]:
    for old, new in pairwise(states):
        yield "tcp_state", tgid, old, new


class Bundle:
    """A bundle.tgz: its rows in the form of the truth, its summary and node.json."""

    def __init__(self, content: bytes) -> None:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            files = {
                member.name.partition("Z.")[2]: file.read()
                for member in archive
                if (file := archive.extractfile(member)) is not None
            }
        lines = files["events.jsonl"].splitlines()
        self.rows: Counter[Row] = Counter(row_of(json.loads(line)) for line in lines)
        self.summary: dict[str, Any] = json.loads(files["summary.json"])
        self.node: dict[str, Any] = json.loads(files["node.json"])

    @property
    def lost(self) -> int:
        """Events that the bundle itself counts as lost."""
        counts = self.summary["accounting"].values()
        return sum(
            count["lost_ring"] + count["lost_map"] + count["skipped"] for count in counts if count
        )

    @property
    def findings(self) -> set[str]:
        return {finding["id"] for finding in self.summary["findings"]}


def row_of(row: dict[str, Any]) -> Row:
    """A row of events.jsonl in the form of the truth."""
    kind, tgid = row["type"], str(row["tgid"])
    if kind == "tcp_state":
        return kind, tgid, row["old_state"], row["new_state"]
    local, _, peer = row["tuple"].partition(" -> ")
    ports = local.rpartition(":")[2], peer.rpartition(":")[2]
    if kind == "connect":
        local_port = ports[0] if row["errno"] == 0 else UNKNOWN
        return kind, tgid, local_port, ports[1], str(row["errno"])
    return kind, tgid, *ports, str(row["bytes"])
