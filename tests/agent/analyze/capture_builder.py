# SPDX-License-Identifier: Apache-2.0
"""Small captures as tables of ktrace_agent/tables/contract.py, written by hand."""

from datetime import datetime, timedelta
from typing import Any, Self

import duckdb

from ktrace_agent.analyze.findings import analyze
from ktrace_agent.host.procfs import REFERENCES
from ktrace_agent.tables import contract
from ktrace_api.finding import Finding, FindingId, Findings, Severity
from ktrace_api.thresholds import Thresholds

STARTED = datetime(2026, 1, 24, 21, 57, 54)  # noqa: DTZ001  # the tables are in UTC
NET = 4026531840
CLIENT, SERVER = "10.0.0.1", "10.0.0.2"


def at(seconds: float) -> datetime:
    return STARTED + timedelta(seconds=seconds)


def ends(local: str, local_port: int, remote: str | None, remote_port: int | None) -> Any:
    def shown(address: str, port: int | None) -> str:
        return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

    return {
        "local": shown(local, local_port),
        "local_ip": local,
        "local_port": local_port,
        "remote": None if remote is None else shown(remote, remote_port),
        "remote_ip": remote,
        "remote_port": remote_port,
        "family": "ipv6" if ":" in local else "ipv4",
    }


PROCESS = {"comm": "shop", "tgid": 100, "net": NET}


class Captured:
    """A capture of 60 s; rows get their numbers in the order of their times."""

    def __init__(self, *, compared: bool = True, **changes: Any) -> None:
        """`compared`: the counters of its namespaces could be read at both moments."""
        self.con, self._compared = duckdb.connect(config={"threads": 1}), compared
        for table in contract.COLUMNS:
            self.con.execute(contract.create(table))
        self._rows: list[tuple[float, dict[str, Any]]] = []
        usual = {
            "node": "etcd-1",
            "started": STARTED,
            "ended": at(60),
            "ended_by": "duration",
            "window_s": 60.0,
            "sample": 1,
            "complete": True,
            "ports": [],
            "lost": 0,
            "capped": 0,
            "overflow": 0,
        }
        self.insert("capture", {**usual, **changes})

    def insert(self, table: str, line: dict[str, Any]) -> None:
        names, marks = ", ".join(line), ", ".join("?" * len(line))
        self.con.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", [*line.values()])

    def row(self, second: float, kind: str, **facts: Any) -> Self:
        self._rows.append((second, {"type": kind, **PROCESS, **facts}))
        return self

    def connect(
        self, second: float, result: str = "established", error: str = "-", us: int | None = 400,
        to: str = SERVER, port: int = 443, local_port: int = 40000, **facts: Any,
    ) -> Self:  # fmt: skip
        local = "fd00::1" if ":" in to else CLIENT
        where = ends(local, local_port, to, port)
        return self.row(
            second, "connect", role="client", result=result, error=error, measure=us,
            **{**where, **facts},
        )  # fmt: skip

    def query(
        self, second: float, rtt: float | None = 0.005, *, sock: int = 1, to: str = SERVER,
        local: str = CLIENT, local_port: int = 50000, **facts: Any,
    ) -> Self:  # fmt: skip
        """A DNS query and its answer after `rtt` seconds, unless that is None."""
        where = ends(local, local_port, to, 53)
        usual = {"sock": sock, "measure": 60, "errno": 0, "error": "-", "flags": [], **where}
        self.row(second, "udp_send", **{**usual, **facts})
        if rtt is not None:
            self.row(second + rtt, "udp_recv", **{**usual, **facts})
        return self

    def retransmit(
        self, second: float, *, sock: int = 1, segs: int = 1, state: str = "ESTABLISHED",
        to: str = SERVER, port: int = 443, role: str = "client", **facts: Any,
    ) -> Self:  # fmt: skip
        where = ends(CLIENT, 40000, to, port)
        return self.row(
            second, "tcp_retransmit", sock=sock, measure=segs, new_state=state, role=role,
            **{"synack": False, **where, **facts},
        )  # fmt: skip

    def flow(
        self, proto: str = "tcp", *, to: str = SERVER, port: int = 443, local_port: int = 40000,
        **facts: Any,
    ) -> Self:  # fmt: skip
        where = ends(CLIENT, local_port, to, port)
        usual = {"role": "client", "first_ts": at(0), "last_ts": at(1), "tx_bytes": 0,
                 "rx_bytes": 0, "tx_calls": 0, "rx_calls": 0, "opened": 0, "failed": 0,
                 "retrans_segs": 0}  # fmt: skip
        self.insert("flows", {**PROCESS, "proto": proto, **where, **usual, **facts})
        return self

    def socket(self, moment: str, state: str, age_s: float = 10.0, **facts: Any) -> Self:
        where = ends(CLIENT, 8080, "10.0.0.9", 50000)
        usual = {"role": "server", "age_us": round(age_s * 1e6)}
        self.insert("sockets", {**PROCESS, "moment": moment, "state": state, **where, **usual,
                                **facts})  # fmt: skip
        return self

    def counter(
        self, file: str, name: str, delta: float, *, netns: int | None = NET, before: float = 0
    ) -> Self:
        self.insert("counters", {"netns": netns, "file": file, "name": name, "before": before,
                                 "after": before + delta, "delta": delta})  # fmt: skip
        return self

    def lose_one(self) -> Self:
        """Lose one event of 100,000, so that the flows are used."""
        self.insert("accounting", {"type": "udp_recv", "seen": 100_000, "lost_ring": 1,
                                   "lost_map": 0})  # fmt: skip
        return self

    def analyze(self, thresholds: Thresholds | None = None) -> Findings:
        order = sorted(range(len(self._rows)), key=lambda index: self._rows[index][0])
        rows = [
            {"n": n, "ts": at(second), **facts}
            for n, (second, facts) in enumerate(self._rows[index] for index in order)
        ]
        names = list({name: None for row in rows for name in row})
        for start in range(0, len(rows), 100):
            part = rows[start : start + 100]
            line = f"({', '.join('?' * len(names))})"
            self.con.execute(
                f"INSERT INTO rows ({', '.join(names)}) VALUES {', '.join([line] * len(part))}",
                [row.get(name) for row in part for name in names],
            )
        self._rows.clear()
        if self._compared:
            self._stand_still()
        return analyze(self.con, thresholds or Thresholds())

    def _stand_still(self) -> None:
        """Reference counters are reported in every namespace, even if they did not change."""
        references = [(file, name) for file, names in REFERENCES.items() for name in names]
        marks = ", ".join(["(?, ?)"] * len(references))
        self.con.execute(
            "INSERT INTO counters BY NAME SELECT net AS netns, file, name, 0 AS before, 0 AS after,"
            " 0 AS delta FROM (SELECT net FROM rows WHERE net IS NOT NULL"
            " UNION SELECT netns FROM counters WHERE netns IS NOT NULL)"
            f" CROSS JOIN (VALUES {marks}) AS reference (file, name) WHERE NOT EXISTS"
            " (SELECT 1 FROM counters AS c WHERE c.netns = net AND c.file = reference.file"
            " AND c.name = reference.name)",
            [value for pair in references for value in pair],
        )

    def finding(self, name: str) -> Finding:
        """The only finding of an id."""
        (found,) = [one for one in self.analyze().findings if one.id == name]
        return found

    def serious(self) -> set[FindingId]:
        return serious(self.analyze())


def serious(found: Findings) -> set[FindingId]:
    """Ids above info."""
    return {one.id for one in found.findings if one.severity != Severity.INFO}


def made_of(
    count: int, result: str, error: str = "-", start: float = 1.0, **facts: Any
) -> Captured:
    """So many connects, ten a second."""
    return more(Captured(), count, result, error, start, **facts)


def more(
    made: Captured, count: int, result: str, error: str = "-", start: float = 1.0, **facts: Any
) -> Captured:
    for number in range(count):
        made.connect(start + number / 10, result, error, **{"local_port": 40000 + number, **facts})
    return made
