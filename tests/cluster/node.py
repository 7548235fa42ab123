# SPDX-License-Identifier: Apache-2.0
"""A node: containerd, kubelet and kube-proxy in namespaces of its own, at their usual paths."""

import json
from pathlib import Path

import yaml

from tests.bpf.workers import wait_until
from tests.cluster import binaries, cgroups
from tests.cluster.control import API_PORT
from tests.cluster.daemons import Daemon
from tests.cluster.pki import Authority
from tests.cluster.spaces import CONTROL_ADDRESS, POD_CIDR, Place, Space, plug_in

PAUSE = "localhost/ktrace-test/pause:1"
SOCKET = "/run/containerd/containerd.sock"
DNS_ADDRESS = "10.96.0.10"
CONTAINERD_S = 30.0

CONTAINERD = """
version = 2
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.devmapper"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true  # root may lack the right to lower it
  disable_tcp_service = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"""


class Node:
    """Processes and files of one node; `folder` is below the cluster's state."""

    def __init__(self, space: Space, place: Place, others: list[Place], cgroup: str) -> None:
        self.name = space.name
        self.space = space
        self.place = place
        self._others = others
        self._folder = space.folder
        self._cgroup = cgroup

    def prepare(self, ca: Authority) -> None:
        """Certificates, and the configuration of the node's three daemons."""
        address = self.place.address
        ca.issue(f"{self.name}-serving", self.name, addresses=(self.name, address))
        server = f"https://{CONTROL_ADDRESS}:{API_PORT}"
        for name, user, group in (
            ("kubelet", f"system:node:{self.name}", "system:nodes"),
            ("kube-proxy", "system:kube-proxy", ""),
        ):
            pair = ca.issue(f"{self.name}-{name}", user, group)
            ca.kubeconfig(self._folder / f"{name}.kubeconfig", server, pair)
        (self._folder / "cni").mkdir()
        (self._folder / "cni/10-ktrace.conflist").write_text(json.dumps(self._network(), indent=1))
        text = CONTAINERD.format(pause=PAUSE, folder=self._folder)
        (self._folder / "containerd.toml").write_text(text)
        (self._folder / "resolv.conf").write_text(f"nameserver {CONTROL_ADDRESS}\n")
        (self._folder / "kubelet.yaml").write_text(yaml.safe_dump(self._kubelet(ca.folder)))
        (self._folder / "kube-proxy.yaml").write_text(yaml.safe_dump(self._proxy()))

    def daemon(self, name: str) -> Daemon:
        """containerd, kubelet or kube-proxy, running or not."""
        programs = binaries.PROGRAMS["kube"].home
        commands: dict[str, list[str | Path]] = {
            "containerd": ["containerd", "--config", self._folder / "containerd.toml"],
            "kubelet": [
                programs / "kubelet",
                f"--config={self._folder}/kubelet.yaml",
                f"--kubeconfig={self._folder}/kubelet.kubeconfig",
                f"--hostname-override={self.name}",
                f"--node-ip={self.place.address}",
            ],
            "kube-proxy": [
                programs / "kube-proxy",
                f"--config={self._folder}/kube-proxy.yaml",
                f"--hostname-override={self.name}",
            ],
        }
        command = self.space.enter(*commands[name])
        return Daemon(name, self._folder, self.space.cgroup, command)

    def wait_containerd(self) -> None:
        containerd = self.daemon("containerd")

        def serves() -> bool:
            assert containerd.alive, f"containerd of {self.name} ended: {containerd.tail()}"
            return self.socket.exists()

        wait_until(serves, f"containerd of {self.name}", CONTAINERD_S)

    @property
    def socket(self) -> Path:
        """containerd's socket as the host sees it."""
        return Path(f"/proc/{self.space.pid}/root{SOCKET}")

    def load_image(self, archive: Path) -> None:
        """Import an OCI or Docker archive; it keeps the name that the archive gives."""
        self.space.run("ctr", "-n", "k8s.io", "images", "import", archive)

    def processes(self, container: str) -> list[int]:
        """Ids of the processes of a container; `container` is its id."""
        root = cgroups.tracking()
        folders = (root / self._cgroup).rglob(container)
        return [pid for one in folders for pid in cgroups.members(str(one.relative_to(root)))]

    def stop_kubelet(self) -> None:
        """Kill the kubelet; its pods go on and nobody watches them."""
        self.daemon("kubelet").kill()

    def start_kubelet(self) -> None:
        self.daemon("kubelet").start()

    def pause_kubelet(self) -> None:
        """SIGSTOP: the kubelet hangs."""
        self.daemon("kubelet").pause()

    def resume_kubelet(self) -> None:
        self.daemon("kubelet").resume()

    def stop_containerd(self) -> None:
        """Kill containerd; its containers go on."""
        self.daemon("containerd").kill()

    def start_containerd(self) -> None:
        self.daemon("containerd").start()
        self.wait_containerd()

    def cut(self) -> None:
        """Pull the node's cable: it reaches neither the control plane nor other nodes."""
        self.space.ip("link set eth0 down")

    def mend(self) -> None:
        """Put the cable back."""
        plug_in(self.space, self.place, self._others)

    def _network(self) -> dict[str, object]:
        ipam = {"type": "host-local", "subnet": self.place.pods, "routes": [{"dst": "0.0.0.0/0"}]}
        return {
            "cniVersion": "0.4.0",
            "name": "ktrace-test",
            "plugins": [
                {"type": "ptp", "ipam": ipam},
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }

    def _kubelet(self, pki: Path) -> dict[str, object]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": f"{pki}/ca.crt"},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": f"{pki}/{self.name}-serving.crt",
            "tlsPrivateKeyFile": f"{pki}/{self.name}-serving.key",
            "containerRuntimeEndpoint": f"unix://{SOCKET}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self._cgroup}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "enforceNodeAllocatable": [],
            "clusterDNS": [DNS_ADDRESS],
            "clusterDomain": "cluster.local",
            "resolvConf": f"{self._folder}/resolv.conf",
            # A node that is gone is noticed by its lease.
            "nodeLeaseDurationSeconds": 10,
            "nodeStatusUpdateFrequency": "5s",
            # The disk is the host's: how full it is says nothing about the cluster.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {
                "memory.available": "50Mi",
                "nodefs.available": "0%",
                "nodefs.inodesFree": "0%",
                "imagefs.available": "0%",
                "imagefs.inodesFree": "0%",
            },
        }

    def _proxy(self) -> dict[str, object]:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clusterCIDR": POD_CIDR,
            "clientConnection": {"kubeconfig": f"{self._folder}/kube-proxy.kubeconfig"},
            # The size of the table is the host's; a namespace cannot set it.
            "conntrack": {
                "maxPerCore": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
        }
