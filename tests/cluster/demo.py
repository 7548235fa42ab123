# SPDX-License-Identifier: Apache-2.0
"""`make demo`: a real Kubernetes with a DNS service that is dead, and ktrace that says so.

python -m tests.cluster.demo [--duration 15s] [--keep] [--out FOLDER]

Starts two nodes on this machine, installs the chart, plants the incident, applies
examples/dns.yaml, waits, shows the snapshot and its findings, and fetches the bundles. All of it
ends with the program, also by Ctrl-C, unless --keep leaves the cluster up.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from tests.bpf.workers import wait_until
from tests.cluster import binaries, images, installed
from tests.cluster.cluster import Cluster
from tests.cluster.incidents import DeadDns
from tests.cluster.s3 import BUCKET
from tests.cluster.snapshots import Object, Snapshots, entries_of

INSTANCE = "demo"
EXAMPLE = images.ROOT / "examples/dns.yaml"
END_S = 300.0
PAUSE_S = 1.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--duration", default="15s", help="how long to record (default: 15s)")
    parser.add_argument("--keep", action="store_true", help="leave the cluster and all in it up")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="where bundles go")
    chosen = parser.parse_args()
    for name in binaries.PROGRAMS:
        binaries.program(name, say)
    cluster = Cluster(INSTANCE, say=say)
    cluster.down()
    try:
        found = play(cluster, chosen.duration, chosen.out)
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    finally:
        if not chosen.keep:
            cluster.down()
    if chosen.keep:
        say(f"still up: export KUBECONFIG={cluster.kubeconfig} PATH={cluster.bin}:$PATH")
        say(f"to end it: .venv/bin/python -m tests.cluster --instance {INSTANCE} down")
    return 0 if found else 1


def play(cluster: Cluster, duration: str, out: Path) -> bool:
    """From nothing to findings; whether the planted incident was found."""
    began = time.monotonic()
    cluster.up()
    installed.load_images(cluster, say)
    say("helm install ktrace charts/ktrace")
    with tempfile.TemporaryDirectory() as folder:
        snapshots = installed.install(cluster, Path(folder), installed.values())
    say("planting the incident: the cluster's DNS takes questions and never answers")
    with DeadDns(cluster, f"localhost/ktrace-operator:{installed.TAG}"):
        say(f"kubectl apply -f examples/{EXAMPLE.name}   (duration: {duration})")
        [question] = yaml.safe_load_all(EXAMPLE.read_text())
        question["spec"]["duration"] = duration
        cluster.apply(question)
        name = str(question["metadata"]["name"])
        status = watch(snapshots, name)
    say(f"finished, {time.monotonic() - began:.0f} s after the start from nothing")
    show(snapshots, name, status)
    bundles = fetch(cluster, status, out)
    show_bundles(status, bundles)
    return any(one["id"] == "DNS_NO_REPLY" for one in status["findings"])


def watch(snapshots: Snapshots, name: str) -> Object:
    """Say what changes until the snapshot is Finished; its status."""
    said = ""

    def ended() -> Object | None:
        nonlocal said
        status = snapshots.status(name)
        counts = status.get("nodes", {})
        done = sum(counts.get(kind, 0) for kind in ("succeeded", "failed", "skipped"))
        line = (
            f"{status.get('phase', 'Pending')}: {done} of {counts.get('total', 0)} nodes done, "
            f"{counts.get('running', 0)} recording"
        )
        if line != said:
            said = line
            say(f"tracesnapshot/{name} {line}")
        return status if "completionTime" in status else None

    return dict(wait_until(ended, f"the end of {name}", END_S, PAUSE_S))


def show(snapshots: Snapshots, name: str, status: Object) -> None:
    """The snapshot as kubectl shows it, and what was found."""
    print(f"\n$ kubectl -n {snapshots.namespace} get tsnap {name} -o wide")
    print(snapshots.kubectl("get", "tsnap", name, "-o", "wide").rstrip())
    verdicts = ", ".join(f"{cause} on {nodes}" for cause, nodes in status["verdicts"].items())
    print(f"\nVerdict: {verdicts} nodes. Findings, worst first:")
    for one in status["findings"]:
        print(f"  {one['severity']:8} {one['id']}: {one['title']}")
        print(f"           {one['subject']}, on {one['nodes']} nodes")


def fetch(cluster: Cluster, status: Object, out: Path) -> list[Path]:
    """Every node's bundle from S3, compared with what the status says of it."""
    paths = []
    for entry in entries_of(status).values():
        if "path" not in entry:
            continue
        key = status["path"].removeprefix(f"s3://{BUCKET}/") + entry["path"]
        content = cluster.s3().get(BUCKET, key)
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        path = out / Path(entry["path"]).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        paths.append(path)
    return paths


def show_bundles(status: Object, bundles: Sequence[Path]) -> None:
    """Where they are, and what the first of them says."""
    print(f"\nBundles in {status['path']}, fetched and compared with the status:")
    for path in bundles:
        print(f"  {path}")
    if bundles:
        command = [str(Path(sys.executable).parent / "ktrace"), "show", str(bundles[-1])]
        print(f"\n$ ktrace show {bundles[-1]}", flush=True)
        subprocess.run(command, check=True)


def say(line: str) -> None:
    """A line of progress."""
    print(f"demo: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
