# SPDX-License-Identifier: Apache-2.0
"""A containerd of our own: root, state, socket, and namespaces for network, mounts and pids.

Its init dies with the test run and everything dies with its init: mounts, networks, shims and
containers. Only cgroups outlive it; they stand below one folder that the next run removes too.
"""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from ktrace_agent.enrich.pods import cri, kubelet
from ktrace_agent.enrich.pods.cri_wire import fields
from tests.bpf.workers import wait_until
from tests.containers.wire import labels, message

HERE = Path(__file__).parent
CGROUPS = Path("/sys/fs/cgroup")
CGROUP_ROOT = "ktrace-tests"
IMAGES = {"pause": "localhost/ktrace-test/pause:1", "visitor": "localhost/ktrace-test/visitor:1"}
NODE_NETWORK = 2
"""NamespaceMode NODE: a hostNetwork pod."""
POD_NETWORK = message((3, message((1, 0))))
"""A security context that sets nothing but NamespaceMode POD for the network."""
CALL_S = 60.0

CONFIG = """
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  disable_tcp_service = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"""
NETWORK = {
    "cniVersion": "0.4.0",
    "name": "ktrace-test",
    "plugins": [{"type": "ptp", "ipam": {"type": "host-local", "subnet": "10.231.0.0/16"}}],
}
INIT = """
mount -t tmpfs none /run && mount -t tmpfs none /var/lib && ip link set lo up &&
mkdir -p /run/netns && while :; do containerd --config "$1"/config.toml; done
"""
"""Its shell is the first process of the namespace; a containerd that is killed comes back."""


@dataclass
class Pod:
    """A pod as the test asked for it."""

    name: str
    namespace: str = "shop"
    host_network: bool = False
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    sandbox: str = ""

    def labels(self) -> dict[str, str]:
        return {
            "io.kubernetes.pod.name": self.name,
            "io.kubernetes.pod.namespace": self.namespace,
            "io.kubernetes.pod.uid": self.uid,
        }

    def config(self, host_root: Path) -> bytes:
        """PodSandboxConfig, as a kubelet with the cgroupfs driver fills it."""
        logs = host_root / kubelet.LOGS / f"{self.namespace}_{self.name}_{self.uid}"
        network = message((1, NODE_NETWORK if self.host_network else 0))
        linux = message(
            (1, f"/{CGROUP_ROOT}/kubepods/besteffort/pod{self.uid}"), (2, message((1, network)))
        )
        return message(
            (1, message((1, self.name), (2, self.uid), (3, self.namespace))),
            (2, "" if self.host_network else self.name[:63]),
            (3, str(logs)),
            *labels(6, self.labels()),
            (8, linux),
        )


class Runtime:
    """containerd, and what a kubelet would ask of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gate = folder / "gate"
        self.socket = folder / "containerd.sock"
        self.host_root = folder / "host"
        """Has the kubelet's folders."""
        for part in ("cni", "gate"):
            (folder / part).mkdir(parents=True)
        remove_cgroups()
        (folder / "config.toml").write_text(CONFIG.format(folder=folder, pause=IMAGES["pause"]))
        (folder / "cni/10-test.conflist").write_text(json.dumps(NETWORK))
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", "unshare", "--net", "--mount", "--pid", "--fork",
                 "--mount-proc", "--kill-child", "sh", "-c", INIT, "sh", str(folder)],
                stdout=log, stderr=log,
            )  # fmt: skip
        self._channel = grpc.insecure_channel(f"unix://{self.socket}")
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        def answers() -> bool:
            assert self.process.poll() is None, (self.folder / "log").read_text()
            answer = cri.query("test", self.socket, time.monotonic() + 2)
            return answer.state is cri.CriState.ANSWERED

        wait_until(answers, "containerd's answer")
        for name, image in IMAGES.items():
            archive = self.folder / f"{name}.tar"
            archive.write_bytes(make_image(name, image, self.folder))
            subprocess.run(
                ["ctr", "-a", str(self.socket), "-n", "k8s.io", "images", "import", str(archive)],
                check=True, capture_output=True,
            )  # fmt: skip

    def call(self, method: str, request: bytes) -> bytes:
        to_call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            f"/runtime.v1.RuntimeService/{method}"
        )
        return to_call(request, timeout=CALL_S)

    def run_pod(self, pod: Pod) -> Pod:
        pod.sandbox = _id(self.call("RunPodSandbox", message((1, pod.config(self.host_root)))))
        return pod

    def run_container(
        self,
        pod: Pod,
        name: str,
        *command: str,
        mounts: Mapping[str, Path] | None = None,
        security: bytes = POD_NETWORK,
    ) -> str:
        """Its id; /gate is a folder of the test. `mounts`: path in the container -> source.

        `security` is a LinuxContainerSecurityContext.
        """
        folder = self.host_root / kubelet.PODS / pod.uid / "containers" / name
        folder.mkdir(parents=True)
        termination_log = folder / "1f2e3d4c"
        termination_log.touch()
        config = message(
            (1, message((1, name))),
            (2, message((1, IMAGES["visitor"]))),
            *((3, word) for word in command),
            *(
                (7, message((1, path), (2, str(source))))
                for path, source in {"/gate": self.gate, **(mounts or {})}.items()
            ),
            (7, message((1, "/dev/termination-log"), (2, str(termination_log)))),
            *labels(9, {**pod.labels(), "io.kubernetes.container.name": name}),
            (11, f"{name}/0.log"),
            (15, message((2, security))),
        )
        request = message((1, pod.sandbox), (2, config), (3, pod.config(self.host_root)))
        number = _id(self.call("CreateContainer", request))
        self.call("StartContainer", message((1, number)))
        links = self.host_root / kubelet.LINKS
        links.mkdir(parents=True, exist_ok=True)
        target = f"/{kubelet.LOGS}/{pod.namespace}_{pod.name}_{pod.uid}/{name}/0.log"
        (links / f"{pod.name}_{pod.namespace}_{name}-{number}.log").symlink_to(target)
        return number

    def remove_pod(self, pod: Pod) -> None:
        """As the kubelet does: stop, then remove; the runtime forgets it."""
        self.call("StopPodSandbox", message((1, pod.sandbox)))
        self.call("RemovePodSandbox", message((1, pod.sandbox)))
        for link in (self.host_root / kubelet.LINKS).glob(f"{pod.name}_{pod.namespace}_*"):
            link.unlink()
        shutil.rmtree(self.host_root / kubelet.PODS / pod.uid, ignore_errors=True)
        for logs in (self.host_root / kubelet.LOGS).glob(f"*_{pod.uid}"):
            shutil.rmtree(logs)

    def open_gate(self) -> None:
        (self.gate / "go").touch()

    @property
    def containerd(self) -> int:
        """Its process id."""
        return next(
            pid
            for pid in _children(*_children(self.process.pid))
            if Path(f"/proc/{pid}/comm").read_text() == "containerd\n"
        )

    def close(self) -> None:
        self._channel.close()
        for init in _children(self.process.pid):
            os.kill(init, signal.SIGKILL)
        self.process.wait(CALL_S)
        wait_until(remove_cgroups, "the end of all containers")
        shutil.rmtree(self.folder)


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _id(answer: bytes) -> str:
    ((number, value),) = fields(answer)
    assert number == 1
    assert isinstance(value, bytes)
    return value.decode()


def remove_cgroups() -> bool:
    """Remove what is left of containers; whether nothing is."""
    roots = [CGROUPS / CGROUP_ROOT, *CGROUPS.glob(f"*/{CGROUP_ROOT}")]
    for root in roots:
        for folder, _, _ in os.walk(root, topdown=False):
            with suppress(OSError):
                os.rmdir(folder)
    return not any(root.exists() for root in roots)


def make_image(name: str, reference: str, folder: Path, sources: Path = HERE) -> bytes:
    """An OCI archive of one static program, /NAME, made from NAME.c in `sources`."""
    program = folder / name
    source = sources / f"{name}.c"
    subprocess.run(
        ["cc", "-std=gnu11", "-O2", "-Wall", "-Werror", "-static", "-s", "-o", program, source],
        check=True,
    )
    layer = _tar({name: (program.read_bytes(), 0o755)})
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": [f"/{name}"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_sha256(layer)}"]},
        }
    ).encode()
    kind = "application/vnd.oci.image"
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "config": _blob(f"{kind}.config.v1+json", config),
            "layers": [_blob(f"{kind}.layer.v1.tar", layer)],
        }
    ).encode()
    named = {"io.containerd.image.name": reference}
    index = {
        "schemaVersion": 2,
        "manifests": [{**_blob(f"{kind}.manifest.v1+json", manifest), "annotations": named}],
    }
    blobs = {f"blobs/sha256/{_sha256(blob)}": (blob, 0o644) for blob in (layer, config, manifest)}
    return _tar(
        {
            "oci-layout": (b'{"imageLayoutVersion": "1.0.0"}', 0o644),
            "index.json": (json.dumps(index).encode(), 0o644),
            **blobs,
        }
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _blob(kind: str, data: bytes) -> dict[str, str | int]:
    return {"mediaType": kind, "digest": f"sha256:{_sha256(data)}", "size": len(data)}


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, (data, mode) in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), mode
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()
