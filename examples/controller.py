#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Example of a controller that investigates on its own: create a snapshot, wait, read, decide.

    pip install kubernetes
    examples/controller.py examples/dns.yaml

Creates the TraceSnapshot of a file under a generated name (so that the file can be used again),
waits until it is finished, reads the findings from its status, and prints the next step for each.
It does not import ktrace: the custom resource is the only interface. Its service account needs only
the role ktrace-edit in the agents' namespace, and ktrace-trace-nodes for snapshots of whole nodes.

exit status: 0 no findings, 1 findings, 2 no result (refused, no bundle delivered, timeout),
3 request rejected by the API server
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config, watch

GROUP, VERSION, PLURAL = "ktrace.io", "v1alpha1", "tracesnapshots"
NOTHING_FOUND, FOUND, NO_RESULT, REJECTED = 0, 1, 2, 3
NEXT = {
    "DNS_NO_REPLY": "check the resolver: are its pods ready, does its Service have endpoints?",
    "DNS_SLOW": "check the resolver's upstream and its CPU limits",
    "TCP_SYN_UNANSWERED": "check NetworkPolicies, security groups and the backend for drops",
    "TCP_CONNECT_REFUSED": "the host responds but no process listens: check process and port",
    "TCP_CONNECT_TIMEOUT": "trace the node of the peer too: does the SYN arrive there?",
    "TCP_CONNECT_UNREACHABLE": "compare the routes of this node with those of a working node",
    "TCP_CONNECT_SLOW": "a lost first SYN costs 1 s: check accept queues and packet loss",
    "CONNECT_DENIED": "the kernel blocked connect(): check seccomp, cgroup programs and LSMs",
    "CLOSE_WAIT_GROWING": "the process leaks sockets: restart the process, then fix the leak",
    "LISTEN_OVERFLOW": "the process accepts too slowly: raise its backlog or its replicas",
    "CONNTRACK_UNREPLIED": "a backend of the Service does not reply: remove its endpoint",
    "CONNTRACK_FULL": "new connections are dropped on this node: raise nf_conntrack_max",
    "EPHEMERAL_PORTS_EXHAUSTED": "reuse connections, or widen ip_local_port_range on this node",
    "CAPTURE_INCOMPLETE": "events are missing: trace again with fewer ports or a larger maxEvents",
}


def create(api: client.CustomObjectsApi, path: str, namespace: str | None) -> tuple[str, str]:
    """Create the snapshot of a file. Return its namespace and its generated name."""
    documents = yaml.safe_load_all(Path(path).read_text())
    [body] = [one for one in documents if one["kind"] == "TraceSnapshot"]
    metadata = body["metadata"]
    prefix = metadata.pop("name", None)
    if prefix is not None:
        metadata["generateName"] = f"{prefix}-"
    metadata["namespace"] = namespace or metadata.get("namespace", "ktrace-agents")
    made: Any = api.create_namespaced_custom_object(
        GROUP, VERSION, metadata["namespace"], PLURAL, body
    )
    return metadata["namespace"], made["metadata"]["name"]


def versions(
    api: client.CustomObjectsApi, namespace: str, name: str, deadline: float
) -> Iterator[dict[str, Any]]:
    """Yield the snapshot and each change of it. Restart watches that end, until the deadline."""
    while (left := int(deadline - time.monotonic())) > 0:
        try:
            for event in watch.Watch().stream(
                api.list_namespaced_custom_object,
                GROUP,
                VERSION,
                namespace,
                PLURAL,
                field_selector=f"metadata.name={name}",
                timeout_seconds=min(left, 60),
            ):
                if event["type"] == "DELETED":
                    return
                yield event["object"]
        except client.ApiException as error:
            if error.status != 410:  # the version is too old: start again with a new list
                raise


def wait(
    api: client.CustomObjectsApi, namespace: str, name: str, seconds: float
) -> dict[str, Any] | None:
    """Return the finished snapshot, or None if it does not finish in time."""
    printed = None
    for snapshot in versions(api, namespace, name, time.monotonic() + seconds):
        status = snapshot.get("status", {})
        nodes = status.get("nodes", {})
        done, total = nodes.get("succeeded", 0), nodes.get("total", 0)
        line = f"{status.get('phase', 'Pending')}: {done} of {total} nodes"
        if line != printed:
            print(f"{name}: {line}", file=sys.stderr)
            printed = line
        if condition(snapshot, "Finished")["status"] == "True":
            return snapshot
    return None


def condition(snapshot: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return a condition that reflects the current spec; Unknown if there is none."""
    for one in snapshot.get("status", {}).get("conditions", []):
        if one["type"] == kind and one["observedGeneration"] == snapshot["metadata"]["generation"]:
            return dict(one)
    return {"status": "Unknown", "reason": "-", "message": ""}


def act(snapshot: dict[str, Any]) -> int:
    """Print each finding with its next step. Return the exit status."""
    status = snapshot["status"]
    succeeded = condition(snapshot, "Succeeded")
    if not status.get("nodes", {}).get("succeeded"):
        print(f"no result: {succeeded['reason']}: {succeeded['message']}")
        return NO_RESULT
    if succeeded["status"] != "True":  # partial: the results of the other nodes are valid
        print(f"partial result: {succeeded['message']}")
    serious = [one for one in status.get("findings", []) if one["severity"] != "info"]
    for finding in serious:
        step = NEXT.get(finding["id"], f"read docs/findings/{finding['id']}.md")
        print(f"{finding['severity']} {finding['id']} on {finding['nodes']} node(s)")
        print(f"  what:      {finding['title']}")
        print(f"  affected:  {finding['subject']}")
        print(f"  next:      {step}")
    print(f"bundles: {status['path']}")
    return FOUND if serious else NOTHING_FOUND


def main() -> int:
    """Run one investigation. Return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", help="a YAML file with a TraceSnapshot")
    parser.add_argument("--namespace", help="namespace (default: that of the file)")
    parser.add_argument("--timeout", type=float, default=900, help="seconds (default: 900)")
    given = parser.parse_args()
    try:
        config.load_incluster_config()
    except config.ConfigException:
        config.load_kube_config()
    api = client.CustomObjectsApi()
    try:
        namespace, name = create(api, given.file, given.namespace)
        snapshot = wait(api, namespace, name, given.timeout)
    except client.ApiException as error:
        print(f"rejected by the API server: {error.status} {error.reason}: {error.body}")
        return REJECTED
    if snapshot is None:
        print(f"no result: {namespace}/{name} did not finish within {given.timeout:.0f} s")
        return NO_RESULT
    return act(snapshot)


if __name__ == "__main__":
    sys.exit(main())
