# SPDX-License-Identifier: Apache-2.0
"""Encodes the records of a recording: their processes and addresses become small numbers."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ktrace_agent.host.inet import WILDCARDS
from ktrace_agent.kernel.recording import Recording
from ktrace_agent.tables.endpoints import ENDPOINT, Flows
from ktrace_agent.tables.records import (
    CHUNK,
    FLAG_SYNACK,
    FLOW,
    FLOW_KEY,
    OWNER_KEY,
    ROW,
    TYPE,
    UDP_TYPES,
    UNKNOWN_U64,
    Dictionary,
    chunks,
    owner_keys,
)
from ktrace_agent.tables.row_json import KIND_KEY
from ktrace_api.names import RowType

Array = npt.NDArray[Any]

_SAME = ("sock", "error", "local_port", "remote_port", "type", "family", "old_state",
         "new_state", "role", "owner_source", "peer_source", "result")  # fmt: skip


class Encoder:
    """The dictionaries that events, flows and socket inventories of one recording share."""

    def __init__(self) -> None:
        self.addresses = Dictionary(16)
        self.owners = Dictionary(OWNER_KEY.itemsize)
        self.kinds = Dictionary(KIND_KEY.itemsize)
        self.flags = {-1}
        """Distinct values of ROW's `flags`."""

    def spool(self, fd: int, total: int) -> Array:
        """Reads the first `total` records of a spool file from offset 0; returns a ROW for each."""
        rows, start = np.empty(total, ROW), 0
        for events in chunks(fd, CHUNK):
            part = self.rows(events[: total - start])
            rows[start : start + len(part)] = part
            self.flags.update(np.unique(part["flags"]).tolist())
            start += len(part)
        return rows[:start]

    def rows(self, events: Array) -> Array:
        """Returns a ROW for each EVENT."""
        rows = np.zeros(len(events), ROW)
        for name in _SAME:
            rows[name] = events[name]
        rows["ts"] = events["ts"]
        rows["net"] = events["ns_net"]
        rows["owner"] = self.owners.encode(owner_keys(events))
        rows["local"] = self.addresses.encode(events["local_addr"])
        rows["remote"] = self.addresses.encode(events["remote_addr"])
        udp = np.isin(events["type"], UDP_TYPES)
        retransmit = events["type"] == TYPE[RowType.TCP_RETRANSMIT]
        duration = events["duration"]
        rows["measure"] = np.select(
            [udp, retransmit, duration != UNKNOWN_U64],
            [events["bytes"], events["segs"], (duration // 1000).astype(np.int64)],
            -1,
        )
        rows["flags"] = np.where(udp, events["flags"].astype(np.int64), -1)
        rows["synack"] = retransmit & (events["flags"] & FLAG_SYNACK != 0)
        return rows

    def row_kinds(self, rows: Array) -> npt.NDArray[np.uint32]:
        """Returns the number of each row's KIND_KEY."""
        keys = np.zeros(len(rows), KIND_KEY)
        for name in (KIND_KEY.names or ())[:-1]:
            keys[name] = rows[name]
        return self.kinds.encode(keys)

    def flows(self, recording: Recording) -> Flows:
        """Returns the tuples of the flows, and when each was used."""
        keys = np.frombuffer(recording.flow_keys, FLOW_KEY)
        values = np.frombuffer(recording.flow_values, FLOW)
        endpoints = np.zeros(len(keys), ENDPOINT)
        for name in ("local_port", "remote_port", "proto"):
            endpoints[name] = keys[name]
        endpoints["net"] = keys["ns_net"]
        endpoints["local"] = self.addresses.encode(keys["local_addr"])
        endpoints["remote"] = self.addresses.encode(keys["remote_addr"])
        since, until = (values[name].astype(np.int64) for name in ("first_ts", "last_ts"))
        connections = values["opened"].astype(np.int64) + values["failed"]
        return Flows(endpoints, since, until, connections)

    def wildcards(self) -> list[int]:
        """Returns the numbers of the addresses 0.0.0.0 and ::."""
        return [self.addresses.number(address) for address in WILDCARDS]
