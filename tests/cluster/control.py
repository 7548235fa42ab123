# SPDX-License-Identifier: Apache-2.0
"""The control plane: etcd, API server, controllers, scheduler in a namespace of their own."""

import socket
import ssl
import sys
import urllib.request
from pathlib import Path

import yaml

from tests.bpf.workers import wait_until
from tests.cluster import binaries
from tests.cluster.daemons import Daemon
from tests.cluster.pki import Authority
from tests.cluster.spaces import CONTROL_ADDRESS, SERVICE_CIDR, Space

API_PORT = 6443
READY_S = 60.0
RELAY = Path(__file__).parent / "relay.py"
SERVICE_ADDRESS = "10.96.0.1"
AUDIT_MEGABYTES = 500

AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "nonResourceURLs": ["*"]},
        {
            "level": "None",
            "userGroups": ["system:nodes"],
            "resources": [{"group": "coordination.k8s.io", "resources": ["leases"]}],
        },
        {"level": "Metadata"},
    ],
}


class ControlPlane:
    """Processes and files of the control plane."""

    def __init__(self, space: Space, cgroup: str, lost_after_s: int) -> None:
        self.space = space
        self.folder = folder = space.folder
        self._lost_after_s = lost_after_s
        self.audit_log = folder / "audit.log"
        self.admin_kubeconfig = folder / "admin.kubeconfig"
        """For programs inside the cluster's namespaces."""
        self._cgroup = cgroup

    def prepare(self) -> Authority:
        """Certificates, kubeconfigs and the audit policy; the CA, for the nodes'."""
        ca = Authority(self.folder / "pki")
        ca.token_key()
        ca.issue(
            "apiserver",
            "kube-apiserver",
            addresses=(
                CONTROL_ADDRESS,
                SERVICE_ADDRESS,
                "127.0.0.1",
                "localhost",
                "kubernetes.default.svc",
                "kubernetes.default.svc.cluster.local",
            ),
        )
        ca.issue("kubelet-client", "kube-apiserver-kubelet-client", "system:masters")
        server = f"https://{CONTROL_ADDRESS}:{API_PORT}"
        ca.kubeconfig(self.admin_kubeconfig, server, ca.issue("admin", "admin", "system:masters"))
        for name in ("kube-controller-manager", "kube-scheduler"):
            pair = ca.issue(name, f"system:{name}")
            ca.kubeconfig(self.folder / f"{name}.kubeconfig", server, pair)
        (self.folder / "audit-policy.yaml").write_text(yaml.safe_dump(AUDIT_POLICY))
        return ca

    def daemon(self, name: str) -> Daemon:
        """etcd, kube-apiserver, kube-controller-manager or kube-scheduler, running or not."""
        arguments = {
            "etcd": self._etcd,
            "kube-apiserver": self._apiserver,
            "kube-controller-manager": self._controllers,
            "kube-scheduler": self._scheduler,
        }[name]()
        command = self.space.enter(binaries.PROGRAMS["kube"].home / name, *arguments)
        return Daemon(name, self.folder, self._cgroup, command)

    def start(self) -> None:
        for name in ("etcd", "kube-apiserver"):
            self.daemon(name).start()

    def start_controllers(self) -> None:
        """After the API server is ready: the controller manager waits ten seconds for it."""
        for name in ("kube-controller-manager", "kube-scheduler"):
            self.daemon(name).start()

    def wait(self, port: int) -> None:
        """Until the API server, seen through the relay's loopback port, says that it is ready."""
        context = ssl.create_default_context(cafile=self.folder / "pki/ca.crt")
        context.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python does from 3.13 on
        apiserver = self.daemon("kube-apiserver")

        def ready() -> bool:
            assert apiserver.alive, f"kube-apiserver ended: {apiserver.tail()}"
            try:
                url = f"https://127.0.0.1:{port}/readyz"
                with urllib.request.urlopen(url, context=context, timeout=2) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

        wait_until(ready, "the API server", READY_S)

    def relay(self, name: str, port: int) -> int:
        """A loopback port of the host that leads to `port` of the control plane; the number.

        The host gets no link and no route: the relay holds a socket of the host's network
        namespace and itself runs in the control plane's.
        """
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", 0))
            listener.listen(128)
            descriptor = listener.fileno()
            command = self.space.enter(
                sys.executable, RELAY, str(descriptor), CONTROL_ADDRESS, str(port)
            )
            Daemon(f"relay-{name}", self.folder, self._cgroup, command).start([descriptor])
            return int(listener.getsockname()[1])

    def _etcd(self) -> list[str]:
        return [
            f"--data-dir={self.folder}/etcd",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--log-level=warn",
            "--unsafe-no-fsync",  # a crash of the host ends the cluster anyway
        ]

    def _apiserver(self) -> list[str]:
        pki = self.folder / "pki"
        return [
            "--etcd-servers=http://127.0.0.1:2379",
            f"--secure-port={API_PORT}",
            f"--advertise-address={CONTROL_ADDRESS}",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key",
            f"--client-ca-file={pki}/ca.crt",
            f"--kubelet-certificate-authority={pki}/ca.crt",
            f"--kubelet-client-certificate={pki}/kubelet-client.crt",
            f"--kubelet-client-key={pki}/kubelet-client.key",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={pki}/service-accounts.key",
            f"--service-account-signing-key-file={pki}/service-accounts.key",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            f"--audit-policy-file={self.folder}/audit-policy.yaml",
            f"--audit-log-path={self.audit_log}",
            f"--audit-log-maxsize={AUDIT_MEGABYTES}",
            "--audit-log-maxbackup=1",
        ]

    def _controllers(self) -> list[str]:
        pki = self.folder / "pki"
        return [
            f"--kubeconfig={self.folder}/kube-controller-manager.kubeconfig",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
            "--use-service-account-credentials=true",
            f"--root-ca-file={pki}/ca.crt",
            f"--service-account-private-key-file={pki}/service-accounts.key",
            f"--cluster-signing-cert-file={pki}/ca.crt",
            f"--cluster-signing-key-file={pki}/ca.key",
            "--node-monitor-period=2s",
            f"--node-monitor-grace-period={self._lost_after_s}s",
            "--kube-api-qps=200",  # a thousand nodes of kwok
            "--kube-api-burst=400",
        ]

    def _scheduler(self) -> list[str]:
        return [
            f"--kubeconfig={self.folder}/kube-scheduler.kubeconfig",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
        ]
