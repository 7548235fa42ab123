# SPDX-License-Identifier: Apache-2.0
"""Sealing synthetic spools: `bench/bench_seal.py [--folder DIR] [ROWS ...]`.

Each size runs in a separate process, so that the peak memory (VmHWM, with all
imports) is measured separately. Rows are about 630 bytes of JSON: TCP connections of some
hundred processes with all five row types, and one flow per connection. Every process
runs in a pod, and conntrack has 100,000 entries.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "api"), str(ROOT / "agent")]

BUDGET = {200_000: "<= 4 s, <= 256 MiB", 1_000_000: ">= 80000 rows/s, <= 400 MiB"}
ROWS_A_CONNECTION = 8
MAX_ENTRIES = 100_000
"""Of connection tracking."""
TYPES = (0, 0, 0, 0, 3, 1, 2, 4)  # of the rows of a connection
STATES = ((7, 2), (2, 1), (1, 4), (5, 7), (0, 0), (0, 0), (0, 0), (1, 1))


def events(count: int) -> Any:
    """EVENT records: connections of 8 rows, interleaved, in time order."""
    import numpy as np

    from ktrace_agent.tables.records import EVENT

    rng = np.random.default_rng(1)
    made = np.zeros(count, EVENT)
    number = np.arange(count)
    socket, step = number // ROWS_A_CONNECTION, number % ROWS_A_CONNECTION
    made["ts"] = 10**12 + socket * 10**5 + step * 10**7 + rng.integers(0, 10**5, count)
    made["sock"] = socket + 1
    made["type"] = np.array(TYPES)[step]
    made["old_state"], made["new_state"] = np.array(STATES)[step].T
    processes = facts(500)[rng.integers(0, 500, count // ROWS_A_CONNECTION + 1)][socket]
    for name in EVENT.names or ():
        if processes[name].any() if name != "comm" else True:
            made[name] = processes[name]
    addresses = np.zeros((2000, 16), np.uint8)
    addresses[:, 10:12] = 255
    addresses[:, 12:] = rng.integers(1, 255, (2000, 4))
    v4 = addresses.view("V16").reshape(-1)
    made["local_addr"], made["remote_addr"] = v4[socket % 40], v4[40 + socket * 7 % 1960]
    made["local_port"] = 1024 + socket % 64_000
    made["remote_port"] = np.array([443, 6443, 80, 53])[socket % 4]
    made["duration"] = rng.integers(10**5, 10**9, count)
    made["bytes"], made["segs"], made["family"] = rng.integers(40, 1400, count), 1, 4
    made["role"], made["owner_source"], made["peer_source"] = 1 + socket % 2, 1, 1
    connect = made["type"] == 3
    made["result"][connect] = 1 + (socket[connect] % 20 == 0)
    made["error"][made["result"] == 2] = 111
    return made[np.argsort(made["ts"] + rng.integers(0, 1000, count))]


def facts(count: int) -> Any:
    """Process fields of EVENT for that many processes."""
    import numpy as np

    from ktrace_agent.tables.records import EVENT

    rng = np.random.default_rng(2)
    made = np.zeros(count, EVENT)
    made["pid"] = made["tgid"] = 1000 + np.arange(count)
    made["ppid"], made["known"], made["seccomp_mode"] = 1, 7, 2
    made["uid"] = made["gid"] = rng.integers(0, 1000, count)
    for name in ("ns_net", "ns_mnt", "ns_pid", "ns_user"):
        made[name] = 4026531836 + rng.integers(0, 60, count)
    made["cgroup_id"], made["caps_eff"] = rng.integers(1, 9999, count), 0xA80425FB
    made["comm"] = [np.void(f"service-{n % 90}".encode().ljust(16, b"\0")) for n in range(count)]
    return made


def flows(made: Any) -> tuple[bytes, bytes]:
    """One flow for each connection."""
    import numpy as np

    from ktrace_agent.tables.records import FLOW, FLOW_KEY

    first = made[made["type"] == 3]
    keys, values = np.zeros(len(first), FLOW_KEY), np.zeros(len(first), FLOW)
    for target in (keys, values):
        for name in set(target.dtype.names or ()) & set(first.dtype.names or ()):
            target[name] = first[name]
    keys["proto"], values["tx_bytes"], values["opened"] = 6, first["bytes"], 1
    return keys.tobytes(), values.tobytes()


def connections(keys: bytes) -> Any:
    """A conntrack table of 100,000 entries: flows first, half of them DNAT."""
    import struct

    import numpy as np

    from ktrace_agent.enrich.conntrack.ctnetlink import SEEN_REPLY, pack_key, pack_tuple
    from ktrace_agent.enrich.conntrack.entries import Table
    from ktrace_agent.enrich.conntrack.lookup import Conntrack
    from ktrace_agent.tables.records import FLOW_KEY

    made = np.frombuffer(keys, FLOW_KEY)[:MAX_ENTRIES]
    tables: dict[int, Table] = {}
    for number, flow in enumerate(made):
        table = tables.setdefault(int(flow["ns_net"]), Table())
        table.capacity = MAX_ENTRIES
        local, remote = flow["local_addr"].tobytes()[12:], flow["remote_addr"].tobytes()[12:]
        ports = int(flow["local_port"]), int(flow["remote_port"])
        backend = struct.pack(">I", 0x0A000000 + number % 3) if number % 2 else remote
        original = pack_tuple(6, local, ports[0], remote, ports[1])
        reply = pack_tuple(6, backend, ports[1], local, ports[0])
        table.add(pack_key(0, number, original, reply), 3, SEEN_REPLY)
    for number in range(MAX_ENTRIES - len(made)):
        table = tables[4026531836 + number % 60]
        other, here = struct.pack(">I", 0x0B000000 + number), bytes((10, 0, 0, 1))
        ends = pack_tuple(6, other, 40000, here, 80), pack_tuple(6, here, 80, other, 40000)
        table.add(pack_key(0, number, *ends), 3, SEEN_REPLY)
    for table in tables.values():
        table.finish_dump(0, 2**62, complete=True)
    return Conntrack(host=0, tables=tables)


def seal_once(spool: Path, folder: Path) -> dict[str, float]:
    """Seal a prepared spool in this process."""
    from ktrace_agent.kernel.recording import Clock, HookCounters, Overflow, Recording
    from ktrace_agent.tables.load import Names
    from ktrace_agent.tables.records import FLOW_KEY
    from ktrace_api.capture import GIB, CaptureConfig
    from ktrace_api.names import RowType
    from ktrace_api.node import ClockOffsets, Kernel, NodeInfo
    from ktrace_api.row import PodIdentity

    started = datetime.now(UTC)
    config = CaptureConfig(node="node-1", max_bytes=16 * GIB)
    offset = time.time_ns() - 10**12
    recording = Recording(
        spool_fd=os.open(spool, os.O_RDWR),
        stock_start=b"",
        stock_end=b"",
        flow_keys=spool.with_suffix(".keys").read_bytes(),
        flow_values=spool.with_suffix(".values").read_bytes(),
        counters={row_type: HookCounters() for row_type in RowType},
        overflow=Overflow(),
        cgroups={},
        clock=Clock(offset, offset),
        started=started,
        ended=started + timedelta(seconds=60),
        ended_by="duration",
        spool_lost={},
    )
    node_info = NodeInfo(
        node="node-1",
        hostname="node-1",
        agent_version="0",
        kernel=Kernel(release="-", version="-", arch="-", btf=True),
        cgroup="v2",
        hooks=(),
        clock=ClockOffsets(offset_start_ns=offset, offset_end_ns=offset, step_ns=0),
        config=config,
        interfaces=(),
        host={},
        netns=(),
        cgroups={},
    )
    pods = {
        number: PodIdentity(pod_uid=f"{number:036}", namespace="shop", pod=f"cart-{number:010}",
                            container="app", container_id=f"{number:064x}")
        for number in range(1, 9999)
    }  # fmt: skip
    known = connections(recording.flow_keys)
    sizes = {"flows": len(recording.flow_keys) // FLOW_KEY.itemsize, "entries": len(known)}
    names = Names(pods, known)
    del pods, known
    begun, cpu = time.perf_counter(), time.process_time()
    from ktrace_agent.bundle.seal import seal
    from ktrace_agent.tables.captured import Captured

    sealed = seal(Captured(recording, config, node_info, names=names), folder)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    status = Path("/proc/self/status").read_text("utf-8")
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return {
        "seconds": seconds,
        "cpu": cpu,
        "peak_mib": int(peak) / 1024,
        "rows": sealed.summary.rows,
        **sizes,
        "jsonl_mib": sealed.paths[0].stat().st_size / 2**20,
        "tgz_mib": sealed.bytes / 2**20,
    }


def prepare(count: int, spool: Path) -> None:
    """Write the records of a capture of `count` rows to `spool` and files beside it."""
    made = events(count)
    made.tofile(spool)
    for name, content in zip(("keys", "values"), flows(made), strict=True):
        spool.with_suffix(f".{name}").write_bytes(content)


def child(*arguments: object) -> str:
    """Output of this file, run in a separate process."""
    run = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure(count: int, folder: Path | None, keep: Path | None) -> dict[str, float]:
    """Seal `count` rows in a separate process; the bundle is kept in `keep`, or removed."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        spool = Path(name, "spool")
        child(count, "--prepare", spool)
        os.sync()
        found: dict[str, float] = json.loads(
            child("--sealed", spool, "--folder", keep or Path(name, "out"))
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", type=int, default=[*BUDGET])
    parser.add_argument("--folder", type=Path, default=None, help="where to write (default: /tmp)")
    parser.add_argument("--keep", type=Path, help="leave the bundle in this folder")
    parser.add_argument("--json", action="store_true", help="print one JSON document per size")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--sealed", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prepare:
        prepare(arguments.rows[0], arguments.prepare)
        return
    if arguments.sealed:
        print(json.dumps(seal_once(arguments.sealed, arguments.folder)))
        return
    if not arguments.json:
        print(f"{'rows':>9} {'s':>6} {'CPU s':>6} {'rows/s':>8} {'peak MiB':>9} {'jsonl MiB':>10}"
              f" {'tgz MiB':>8}  budget")  # fmt: skip
    for count in arguments.rows:
        found = measure(count, arguments.folder, arguments.keep)
        if arguments.json:
            print(json.dumps(found))
            continue
        print(
            f"{count:>9} {found['seconds']:>6.2f} {found['cpu']:>6.2f}"
            f" {count / found['seconds']:>8.0f} {found['peak_mib']:>9.0f}"
            f" {found['jsonl_mib']:>10.0f} {found['tgz_mib']:>8.1f}  {BUDGET.get(count, '')}"
        )


if __name__ == "__main__":
    main()
