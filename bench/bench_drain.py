# SPDX-License-Identifier: Apache-2.0
"""Drain rate of the ring buffer: a kernel program fills it, then it is drained into the spool.

    sudo .venv/bin/python bench/bench_drain.py [--records=1000000] [--runs=5] [--folder=.]

The result is the ratio of drain to fill in the same run. Above 1, the agent keeps up with one CPU
that only writes records.
"""

import argparse
import ctypes
import os
import statistics
import subprocess
import tempfile
import time
from ctypes import byref, c_int, c_uint32, c_uint64, c_void_p
from pathlib import Path

from ktrace_agent.kernel.bpf_object import Object
from ktrace_agent.kernel.libbpf import library
from ktrace_agent.kernel.spool import Spool

HERE = Path(__file__).resolve().parent
BPF = HERE.parent / "agent" / "bpf"


class _Fill(ctypes.Structure):
    _fields_ = (("wanted", c_uint64), ("done", c_uint64))


class _TestRun(ctypes.Structure):
    """struct bpf_test_run_opts up to ctx_size_in."""

    _fields_ = (
        ("sz", c_uint64),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("rest", c_uint64 * 4),
    )


def build(folder: Path) -> Path:
    """Compile fill.bpf.c with the collector's own flags."""
    target = folder / "fill.bpf.o"
    clang = os.environ.get("CLANG") or next(name for name in ("clang", "clang-14") if _which(name))
    flags = ["-g", "-O2", "-target", "bpf", "-mcpu=v3", f"-I{BPF}"]
    subprocess.run([clang, *flags, "-c", HERE / "fill.bpf.c", "-o", target], check=True)
    return target


def _which(name: str) -> bool:
    return any((Path(p) / name).exists() for p in os.environ["PATH"].split(":"))


def fill(bpf: Object, records: int) -> int:
    """Write `records` to the ring; returns how many fit."""
    run = library().bpf_prog_test_run_opts
    run.restype, run.argtypes = c_int, (c_int, c_void_p)
    job = _Fill(records, 0)
    options = _TestRun(
        sz=ctypes.sizeof(_TestRun),
        ctx_in=ctypes.addressof(job),
        ctx_size_in=ctypes.sizeof(job),
    )
    if code := run(bpf.programs["fill"].fd, byref(options)):
        raise OSError(-code, f"bpf_prog_test_run: {os.strerror(-code)}")
    return job.done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bpf = Object(build(Path(folder)))
    bpf.load()
    rates = []
    print(f"{'fill M/s':>10} {'drain M/s':>10} {'ratio':>7}")
    for _ in range(options.runs):
        spool = Spool(bpf.map("ring").fd, options.folder)
        begun = time.perf_counter()
        count = fill(bpf, options.records)
        filled = time.perf_counter()
        spool.drain()
        drained = time.perf_counter()
        if spool.records != count or count != options.records:
            raise SystemExit(f"{options.records} wanted, {count} put, {spool.records} drained")
        spool.close()
        rates.append((count / (filled - begun) / 1e6, count / (drained - filled) / 1e6))
        print(f"{rates[-1][0]:10.2f} {rates[-1][1]:10.2f} {rates[-1][1] / rates[-1][0]:7.2f}")
    print(f"median drain: {statistics.median(rate for _, rate in rates):.2f} M records/s")
    bpf.close()


if __name__ == "__main__":
    main()
