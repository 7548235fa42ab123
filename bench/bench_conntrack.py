# SPDX-License-Identifier: Apache-2.0
"""Dumping a full conntrack table: `bench/bench_conntrack.py [--entries=100000]`.

A separate network namespace is filled by netlink, without traffic. Measured are one dump (read,
parse, keep), the memory of the entries, the lookups afterwards, and the same dump by pyroute2 and
by its Conntrack class if that is installed.
"""

import argparse
import ctypes
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "api"), str(ROOT / "agent"), str(ROOT)]

from ktrace_agent.enrich.conntrack.connection import Endpoint  # noqa: E402
from ktrace_agent.enrich.conntrack.watch import Watch  # noqa: E402
from tests.nat.fill import many, put  # noqa: E402

CLONE_NEWNET = 0x40000000
BUDGET = "budget at 100000 entries on one core: a dump <= 2 s, <= 100 MiB"
LOOKUPS = 50_000


def resident_mib() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def timed(what: str, work: Callable[[], Any], per: int) -> Any:
    """Returns the result of `work`; prints wall time, CPU time, and CPU time per item."""
    wall, cpu, memory = time.perf_counter(), time.process_time(), resident_mib()
    result = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    each, grown = cpu / per * 1e6, resident_mib() - memory
    print(f"{what:32} {wall:8.2f} s {cpu:8.2f} s CPU {each:8.2f} us each {grown:+7.1f} MiB")
    return result


def by_pyroute2(entries: int) -> None:
    """Dumps the same table with pyroute2."""
    try:
        nfct = timed("import of pyroute2", lambda: __import__("pyroute2"), 1)
    except ImportError:
        print("pyroute2 is not installed: no comparison")
        return
    with nfct.NFCTSocket() as netlink:
        ipv4 = timed("pyroute2, IPv4 only", lambda: sum(1 for _ in netlink.dump()), entries)
    print(f"{'':32} {ipv4} of {entries} entries")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--dumps", type=int, default=5)
    options = parser.parse_args()
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise SystemExit("needs root: unshare(CLONE_NEWNET) failed")
    inode = os.stat("/proc/thread-self/ns/net").st_ino
    timed("filling the table", lambda: put(many(options.entries)), options.entries)

    watch = Watch(
        lambda: {inode: os.getpid()},
        period_s=3600,
        max_entries=2 * options.entries,  # half is reserved for other namespaces
        max_seconds=60,
    )
    timed("first dump", watch.start, options.entries)
    for _ in range(options.dumps - 2):
        timed("next dump", watch.poll, options.entries)
    seen = timed("last dump", watch.stop, options.entries)
    if len(seen) != options.entries:
        raise SystemExit(f"{len(seen)} of {options.entries} entries were dumped")

    entries = list(seen.entries())[:: max(1, options.entries // LOOKUPS)]
    timed("index", lambda: seen.lookup(Endpoint(0, "tcp", *entries[0].original)), options.entries)

    def look_up() -> None:
        for entry in entries:
            src, dst = entry.reply
            seen.lookup(Endpoint(entry.netns, entry.proto, src, dst, 0, 2**62))

    timed("lookups", look_up, len(entries))
    by_pyroute2(options.entries)
    print(BUDGET)


if __name__ == "__main__":
    main()
