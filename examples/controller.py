#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Plays the controller that investigates by itself: it asks a question, waits, reads, decides.

    pip install kubernetes
    examples/controller.py examples/dns.yaml

It creates the TraceSnapshot of the file under a name of its own (so that the same question can be
asked again), waits until it is finished, reads the findings from its status, and prints for each
what to do next. Nothing here imports ktrace: the custom resource is the whole interface. Its
service account needs the role ktrace-edit in the agents' namespace and nothing else.

exit status: 0 nothing found, 1 findings, 2 no answer (refused, no node delivered, too late),
3 the API server says no
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
NOTHING_FOUND, FOUND, NO_ANSWER, REFUSED = 0, 1, 2, 3
NEXT = {
    "DNS_NO_REPLY": "look at the resolver: are its pods ready, has its Service endpoints?",
    "DNS_SLOW": "compare with the resolver's own upstream; look for CPU limits of the resolver",
    "TCP_SYN_UNANSWERED": "something drops: a NetworkPolicy, a security group, or a dead backend",
    "TCP_CONNECT_REFUSED": "the host answers, nobody listens: is the process up, the port right?",
    "TCP_CONNECT_TIMEOUT": "trace the node of the peer too: does the SYN arrive there?",
    "TCP_CONNECT_UNREACHABLE": "compare the routes of this node with those of one that works",
    "TCP_CONNECT_SLOW": "a lost first SYN costs 1 s: look at accept queues and losses on the way",
    "CONNECT_DENIED": "seccomp, a cgroup program or an LSM says no before any packet leaves",
    "CLOSE_WAIT_GROWING": "the named process does not close its sockets: restart it, then mend it",
    "LISTEN_OVERFLOW": "the named process accepts too slowly: raise its backlog or its replicas",
    "CONNTRACK_UNREPLIED": "a backend of the Service is silent: take it out of the endpoints",
    "CONNTRACK_FULL": "new connections are dropped on this node: raise nf_conntrack_max",
    "EPHEMERAL_PORTS_EXHAUSTED": "reuse connections, or widen ip_local_port_range on this node",
    "CAPTURE_INCOMPLETE": "rows are missing: ask again with fewer ports or a larger maxEvents",
}


def ask(api: client.CustomObjectsApi, path: str, namespace: str | None) -> tuple[str, str]:
    """Create the snapshot that a file describes; its namespace and the name that it got."""
    documents = yaml.safe_load_all(Path(path).read_text())
    [question] = [one for one in documents if one["kind"] == "TraceSnapshot"]
    metadata = question["metadata"]
    prefix = metadata.pop("name", None)
    if prefix is not None:
        metadata["generateName"] = f"{prefix}-"
    metadata["namespace"] = namespace or metadata.get("namespace", "ktrace-agents")
    made: Any = api.create_namespaced_custom_object(
        GROUP, VERSION, metadata["namespace"], PLURAL, question
    )
    return metadata["namespace"], made["metadata"]["name"]


def versions(
    api: client.CustomObjectsApi, namespace: str, name: str, deadline: float
) -> Iterator[dict[str, Any]]:
    """The snapshot as it is and each time it changes; a watch that ends is begun again."""
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
            if error.status != 410:  # too old a version: begin with a new list
                raise


def wait(
    api: client.CustomObjectsApi, namespace: str, name: str, seconds: float
) -> dict[str, Any] | None:
    """The snapshot at its end; None where it did not come to one in time."""
    told = None
    for snapshot in versions(api, namespace, name, time.monotonic() + seconds):
        status = snapshot.get("status", {})
        nodes = status.get("nodes", {})
        done, total = nodes.get("succeeded", 0), nodes.get("total", 0)
        line = f"{status.get('phase', 'Pending')}: {done} of {total} nodes"
        if line != told:
            print(f"{name}: {line}", file=sys.stderr)
            told = line
        if condition(snapshot, "Finished")["status"] == "True":
            return snapshot
    return None


def condition(snapshot: dict[str, Any], kind: str) -> dict[str, Any]:
    """A condition that speaks of the spec as it is now; Unknown where there is none."""
    for one in snapshot.get("status", {}).get("conditions", []):
        if one["type"] == kind and one["observedGeneration"] == snapshot["metadata"]["generation"]:
            return dict(one)
    return {"status": "Unknown", "reason": "-", "message": ""}


def act(snapshot: dict[str, Any]) -> int:
    """Print what was found and what follows from it; the exit status."""
    status = snapshot["status"]
    succeeded = condition(snapshot, "Succeeded")
    if not status.get("nodes", {}).get("succeeded"):
        print(f"no answer: {succeeded['reason']}: {succeeded['message']}")
        return NO_ANSWER
    if succeeded["status"] != "True":  # partial: what other nodes saw is true all the same
        print(f"not from everywhere: {succeeded['message']}")
    serious = [one for one in status.get("findings", []) if one["severity"] != "info"]
    for finding in serious:
        step = NEXT.get(finding["id"], f"read docs/findings/{finding['id']}.md")
        print(f"{finding['severity']} {finding['id']} on {finding['nodes']} node(s)")
        print(f"  what:  {finding['title']}")
        print(f"  whom:  {finding['subject']}")
        print(f"  next:  {step}")
    print(f"bundles: {status['path']}")
    return FOUND if serious else NOTHING_FOUND


def main() -> int:
    """Run one investigation; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("question", help="a file with a TraceSnapshot")
    parser.add_argument("--namespace", help="where it is made (default: what the file says)")
    parser.add_argument("--timeout", type=float, default=900, help="seconds (default: 900)")
    given = parser.parse_args()
    try:
        config.load_incluster_config()
    except config.ConfigException:
        config.load_kube_config()
    api = client.CustomObjectsApi()
    try:
        namespace, name = ask(api, given.question, given.namespace)
        snapshot = wait(api, namespace, name, given.timeout)
    except client.ApiException as error:
        print(f"the API server says no: {error.status} {error.reason}: {error.body}")
        return REFUSED
    if snapshot is None:
        print(f"no answer: {namespace}/{name} came to no end within {given.timeout:.0f} s")
        return NO_ANSWER
    return act(snapshot)


if __name__ == "__main__":
    sys.exit(main())
