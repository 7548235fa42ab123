# SPDX-License-Identifier: Apache-2.0
"""The world itself: what later tests take for granted."""

import json
import re
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from tests.bpf.workers import wait_until
from tests.cluster import manifests
from tests.cluster.cluster import Cluster
from tests.cluster.s3 import BUCKET, S3, Identity

pytestmark = [pytest.mark.world("cluster"), pytest.mark.timeout(600)]

POD_S = 60.0
LOST_S = 60.0
CREATED = 13


def phase(cluster: Cluster, namespace: str, name: str) -> str:
    return str(cluster.get("pod", name, "-n", namespace)["status"]["phase"])


def message(cluster: Cluster, namespace: str, name: str) -> str:
    """The termination message of a pod that has succeeded by then."""
    wait_until(lambda: phase(cluster, namespace, name) == "Succeeded", f"the end of {name}", POD_S)
    status = cluster.get("pod", name, "-n", namespace)["status"]["containerStatuses"][0]
    return str(status["state"]["terminated"]["message"])


def test_two_nodes_are_ready_and_apart(cluster: Cluster) -> None:
    assert cluster.ready_nodes() == ["node-a", "node-b"]
    a, b = (cluster.node(name).space for name in ("node-a", "node-b"))
    assert (a.run("uname", "-n"), b.run("uname", "-n")) == ("node-a\n", "node-b\n")
    for namespace in ("net", "mnt", "uts"):
        inodes = {
            Path(f"/proc/{pid}/ns/{namespace}").stat().st_ino for pid in (a.pid, b.pid, "self")
        }
        assert len(inodes) == 3, namespace


def test_service_vip_is_translated_across_nodes(
    cluster: Cluster, probe: str, namespace: str
) -> None:
    server = manifests.pod("web", "node-b", probe, ["perl", "/server.pl"], labels={"app": "web"})
    cluster.apply(*(inside(namespace, one) for one in (server, manifests.service("web", 80, 8080))))
    cluster.kubectl("wait", "-n", namespace, "pod/web", "--for=condition=Ready", "--timeout=60s")
    vip = cluster.get("service", "web", "-n", namespace)["spec"]["clusterIP"]
    backend = cluster.get("pod", "web", "-n", namespace)["status"]["podIP"]
    ask = f"until exec 3<>/dev/tcp/{vip}/80; do :; done; cat <&3 >/dev/termination-log"
    cluster.apply(inside(namespace, manifests.pod("ask", "node-a", probe, ["bash", "-c", ask])))
    assert message(cluster, namespace, "ask") == "web\n"
    client = cluster.get("pod", "ask", "-n", namespace)["status"]["podIP"]
    assert client.startswith("10.244.1.")
    assert backend.startswith("10.244.2.")
    flows = cluster.node("node-a").space.run("conntrack", "-L", "-p", "tcp")
    original, reply = f"src={client} dst={vip} .*dport=80", f"src={backend} dst={client} sport=8080"
    assert re.search(f"{original} {reply}", flows), flows


def test_privileged_host_pod_reports_by_its_termination_message(
    cluster: Cluster, probe: str, namespace: str
) -> None:
    ask = (
        "{ uname -n; cat /proc/1/comm; readlink /proc/self/ns/net; "
        "ls /etc/apt/apt.conf.d/99host; wc -c </etc/pip.conf; } >/dev/termination-log"
    )
    pod = manifests.pod("agent", "node-b", probe, ["sh", "-c", ask], host=True)
    cluster.apply(inside(namespace, pod))
    name, first, netns, *rest = message(cluster, namespace, "agent").splitlines()
    assert name == "node-b"
    assert first == Path("/proc/1/comm").read_text().strip()
    pid = cluster.node("node-b").space.pid
    assert netns == str(Path(f"/proc/{pid}/ns/net").readlink())
    assert rest[-1] == "0", "what was lent to the build is in the image"


def test_volume_is_shared_by_the_nodes(cluster: Cluster, probe: str, namespace: str) -> None:
    folder = cluster.shared_volume("smoke", namespace)
    for node in ("node-a", "node-b"):
        command = ["sh", "-c", f"echo {node} >/shared/{node}; echo >/dev/termination-log"]
        pod = manifests.pod(node, node, probe, command, claim="smoke")
        cluster.apply(inside(namespace, pod))
    for node in ("node-a", "node-b"):
        message(cluster, namespace, node)
    assert sorted(path.name for path in folder.iterdir()) == ["node-a", "node-b"]


def test_s3_knows_its_callers(cluster: Cluster) -> None:
    agent, reader = cluster.s3("agent"), cluster.s3("reader")
    agent.put(BUCKET, "a/b", b"17")
    assert reader.get(BUCKET, "a/b") == b"17"
    assert cluster.s3().keys(BUCKET, "a/") == ["a/b"]
    with pytest.raises(ClientError, match="AccessDenied"):
        reader.put(BUCKET, "a/c", b"")
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        S3(agent.endpoint, Identity("nobody", "x")).put(BUCKET, "a/c", b"")
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        S3(agent.endpoint, Identity(agent.identity.access_key, "x")).put(BUCKET, "a/c", b"")
    with pytest.raises(ClientError, match="AccessDenied"):
        agent.create_bucket("others")


def test_audit_log_counts_writes(cluster: Cluster, namespace: str) -> None:
    for number in range(CREATED):
        cluster.kubectl("create", "configmap", f"one-{number}", "-n", namespace)
    created = [
        event
        for event in cluster.audit()
        if event["verb"] == "create"
        and event["objectRef"].get("resource") == "configmaps"
        and event["objectRef"].get("namespace") == namespace
        and event["user"]["username"] == "admin"
    ]
    assert len(created) == CREATED


def test_admission_is_as_in_a_real_cluster(cluster: Cluster, probe: str, namespace: str) -> None:
    enforce = "pod-security.kubernetes.io/enforce=restricted"
    cluster.kubectl("label", "namespace", namespace, enforce)
    pod = manifests.pod("agent", "node-a", probe, ["true"], host=True)
    with pytest.raises(AssertionError, match="violates PodSecurity"):
        cluster.apply(inside(namespace, pod))
    kinds = cluster.kubectl("api-resources", "-o", "name")
    assert "validatingadmissionpolicies.admissionregistration.k8s.io" in kinds.split()


def test_lost_kubelet_is_noticed_and_comes_back(cluster: Cluster) -> None:
    node = cluster.node("node-b")
    node.stop_kubelet()
    try:
        wait_until(lambda: cluster.ready_nodes() == ["node-a"], "the loss of node-b", LOST_S)
    finally:
        node.start_kubelet()
    wait_until(lambda: len(cluster.ready_nodes()) == 2, "node-b to come back", LOST_S)


def test_chart_is_installed_and_uninstalled(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    chart = tmp_path / "chart"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("apiVersion: v2\nname: one\nversion: 0.1.0\n")
    (chart / "templates/one.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one}\ndata: {said: {{ .Values.said }}}\n"
    )
    values = tmp_path / "values.yaml"
    values.write_text("said: hello\n")
    cluster.helm_install("one", chart, values, namespace)
    assert cluster.get("configmap", "one", "-n", namespace)["data"] == {"said": "hello"}
    cluster.helm_uninstall("one", namespace)
    assert "one" not in cluster.kubectl("get", "configmaps", "-n", namespace, "-o", "name").split()


def inside(namespace: str, one: dict[str, object]) -> dict[str, object]:
    """The same object in a namespace."""
    copy: dict[str, object] = json.loads(json.dumps(one))
    metadata = copy["metadata"]
    assert isinstance(metadata, dict)
    metadata["namespace"] = namespace
    return copy
