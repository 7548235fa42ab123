# SPDX-License-Identifier: Apache-2.0
"""Many nodes played by kwok, one operator of this checkout, and what it cost: by the audit log.

Each played agent ends well with a valid result of its own node and snapshot.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ktrace_api.names import LABEL_SNAPSHOT, LABEL_SNAPSHOT_UID
from ktrace_api.snapshot import MAX_NODES
from tests.bpf.workers import wait_until
from tests.cluster import images
from tests.cluster.cluster import Cluster
from tests.cluster.kwok import Kwok, Life
from tests.cluster.operators import Operator
from tests.cluster.snapshots import Object, Snapshots, snapshot

CRD = images.ROOT / "crds/TraceSnapshot.yaml"
NAMESPACE = "crowd"
CLIENT = "python"
"""In the user agent of the operator; kubectl and kwok have other names, reads are not counted."""
WRITES = ("create", "patch", "update", "delete")
NODE = "{{ $root.spec.nodeName }}"
UID = f'{{{{ index $root.metadata.labels "{LABEL_SNAPSHOT_UID}" }}}}'
MESSAGE = json.dumps(
    {
        "version": 1,
        "snapshot_uid": "UID",
        "node": "NODE",
        "reason": "Completed",
        "delivered": {
            "path": "node=NODE/ktrace.NODE.20261125T101213Z.bundle.tgz",
            "bytes": 1_048_573,
            "sha256": "5a" * 32,
        },
        "events": 199_999,
        "complete": True,
        "ended_by": "duration",
        "verdict": "dns",
        "findings": [
            {
                "id": "DNS_NO_REPLY",
                "severity": "critical",
                "title": "curl got no answer from 10.96.0.10:53 to 31 of 31 queries",
                "count": 1,
                "subject": "shop/checkout (curl 4711) -> 10.96.0.10:53",
            }
        ],
    },
    separators=(",", ":"),
)
AGENT = MESSAGE.replace("UID", UID).replace("NODE", NODE)


@dataclass(frozen=True)
class Cost:
    """What the operator wrote in one namespace, from the first request on."""

    pods: Counter[str]
    """Name of each agent's pod -> how often it was created."""
    writes: Counter[tuple[str, str]]
    """Verb and resource, `pods` or `tracesnapshots/status` -> requests that succeeded."""
    creating_s: float
    """From the first creation of a pod to the last."""

    @property
    def total(self) -> int:
        return self.writes.total()


class Crowd:
    """The operator at work for snapshots of many nodes."""

    def __init__(self, cluster: Cluster, operator: Operator, kwok: Kwok) -> None:
        self.operator, self._kwok = operator, kwok
        self.snapshots = Snapshots(cluster, NAMESPACE)
        self.cluster = cluster

    def trace(self, name: str, nodes: list[str], **spec: Any) -> None:
        """A snapshot of these nodes."""
        self.trace_all({name: nodes}, **spec)

    def trace_all(self, wanted: Mapping[str, list[str]], **spec: Any) -> None:
        """Snapshots of these nodes, by name."""
        made = [snapshot(name, nodes, **spec) for name, nodes in wanted.items()]
        for one in made:
            one["spec"]["nodes"]["max"] = MAX_NODES
        listed = {"apiVersion": "v1", "kind": "List", "items": made}
        self.snapshots.kubectl("create", "-f", "-", stdin=json.dumps(listed))

    def ended(self) -> int:
        """How many snapshots have ended."""
        return sum("completionTime" in one.get("status", {}) for one in self.snapshots.all())

    def cost(self) -> Cost:
        """By the audit log; call it when all is over."""
        pods, writes, times = Counter[str](), Counter[tuple[str, str]](), list[datetime]()
        for event in self.cluster.audit():
            about = event.get("objectRef", {})
            mine = (
                about.get("namespace") == NAMESPACE and CLIENT in event.get("userAgent", "").lower()
            )
            if not mine or event["verb"] not in WRITES or event["responseStatus"]["code"] >= 300:
                continue
            part = about.get("subresource")
            writes[event["verb"], about["resource"] + (f"/{part}" if part else "")] += 1
            if (event["verb"], about["resource"]) == ("create", "pods"):
                pods[about["name"]] += 1
                times.append(datetime.fromisoformat(event["requestReceivedTimestamp"]))
        span = (max(times) - min(times)).total_seconds() if times else 0.0
        return Cost(pods, writes, span)

    def wait(self, count: int, seconds: float) -> list[Object]:
        """Until so many snapshots have ended and no pod is left; the snapshots."""

        def ended() -> list[Object] | None:
            found = self.snapshots.all()
            done = [one for one in found if "completionTime" in one.get("status", {})]
            return found if len(done) == count else None

        try:
            found = wait_until(ended, f"the end of {count} snapshots", seconds, 1.0)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self._unfinished()}") from error
        self.snapshots.wait_gone(seconds)
        return list(found)

    def _unfinished(self) -> str:
        """What the snapshots without an end say, and how their pods are."""
        left = {
            one["metadata"]["name"]: one.get("status", {}).get("nodes")
            for one in self.snapshots.all()
            if "completionTime" not in one.get("status", {})
        }
        pods = self.snapshots.pods()
        phases = Counter(
            f"{one['metadata']['labels'][LABEL_SNAPSHOT]} {one['status'].get('phase')}"
            for one in pods
        )
        return f"left: {left}; pods: {dict(phases)}"

    @contextmanager
    def without_api_server(self) -> Iterator[None]:
        """It is killed, and behind the block started again.

        So is kwok, which then looks at all pods anew: the operator's way back is what counts.
        """
        with self.cluster.without_api_server():
            yield
        self._kwok.restart()

    def late(self) -> float:
        """Looks at the event loop that found it more than 0.2 s late."""
        lag = "tracesnapshot_event_loop_lag_seconds"
        whole = self.operator.metric(f"{lag}_count")
        return whole - self.operator.metric(f'{lag}_bucket{{le="0.2"}}')

    def peak_mib(self) -> float:
        """Memory that the operator's process had at most."""
        status = Path(f"/proc/{self.operator.pid}/status").read_text()
        match = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert match
        return int(match[1]) / 1024


@contextmanager
def gathered(cluster: Cluster, folder: Path, nodes: int, run_s: float) -> Iterator[Crowd]:
    """So many played nodes, whose agents run for `run_s` seconds, and an operator."""
    cluster.kubectl("apply", "--server-side", "--filename", CRD)
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", "--filename", CRD)
    account = {"name": "ktrace-agent", "namespace": NAMESPACE}
    cluster.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account},
    )
    kwok = Kwok(cluster)
    kwok.start(nodes, Life(message=AGENT, start_s=0.5, run_s=run_s))
    operator = Operator(cluster, folder, [NAMESPACE], limits={"startSeconds": 300})
    operator.start()
    try:
        operator.wait_ready()
        yield Crowd(cluster, operator, kwok)
    finally:
        operator.stop()


def size_of(snapshot: Object) -> int:
    """Bytes of the object as JSON, managed fields and all."""
    return len(json.dumps(snapshot, separators=(",", ":")))
