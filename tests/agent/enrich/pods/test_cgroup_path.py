# SPDX-License-Identifier: Apache-2.0
"""Every form of path that a runtime and a kubelet make."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrace_agent.enrich.pods.cgroup_path import CgroupName, of_process, parse
from ktrace_agent.host.cgroups import LEVELS, NAME_LEN

ID = "7d" * 32
OTHER = "c0" * 32
UID = "0f61a1d3-3c5e-4b0a-9d2e-2f4b6a7c8d9e"
SLICE_UID = UID.replace("-", "_")
HASH = "9b4ef2a1c35d4f7e8a6b0c1d2e3f4a5b"

FORMS = {
    # systemd driver
    f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SLICE_UID}.slice/"
    f"cri-containerd-{ID}.scope": (ID, "containerd", UID, "burstable"),
    f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{SLICE_UID}.slice/"
    f"crio-{ID}.scope": (ID, "cri-o", UID, "besteffort"),
    f"/kubepods.slice/kubepods-pod{SLICE_UID}.slice/cri-containerd-{ID}.scope": (
        ID, "containerd", UID, "guaranteed"),
    f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SLICE_UID}.slice/"
    f"docker-{ID}.scope": (ID, "docker", UID, "burstable"),  # cri-dockerd
    f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{HASH}.slice/"
    f"crio-{ID}.scope": (ID, "cri-o", HASH, "burstable"),  # static pod
    f"kubepods-burstable-pod{SLICE_UID}.slice/cri-containerd-{ID}.scope": (
        ID, "containerd", UID, "burstable"),  # begins in the middle
    # cgroupfs driver: kubeadm of old, k3s, k0s, microk8s, Talos
    f"/kubepods/burstable/pod{UID}/{ID}": (ID, "-", UID, "burstable"),
    f"/kubepods/besteffort/pod{UID}/{ID}": (ID, "-", UID, "besteffort"),
    f"/kubepods/pod{UID}/{ID}": (ID, "-", UID, "guaranteed"),
    f"/kubepods/burstable/pod{HASH}/{ID}": (ID, "-", HASH, "burstable"),
    f"/kubepods/burstable/pod{UID}/crio-{ID}": (ID, "cri-o", UID, "burstable"),
    f"/burstable/pod{UID}/{ID}/init": (ID, "-", UID, "burstable"),
    f"/pod{UID}/{ID}/system.slice/nginx.service": (ID, "-", UID, "-"),
    # kind and k3d: the node is a container itself
    f"/docker/{OTHER}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/"
    f"kubelet-kubepods-besteffort-pod{SLICE_UID}.slice/cri-containerd-{ID}.scope": (
        ID, "containerd", UID, "besteffort"),
    f"/docker/{OTHER}/kubelet/kubepods/besteffort/pod{UID}/{ID}": (ID, "-", UID, "besteffort"),
    f"/system.slice/docker-{OTHER}.scope/kubelet.slice/kubelet-kubepods.slice/"
    f"kubelet-kubepods-pod{SLICE_UID}.slice/cri-containerd-{ID}.scope": (
        ID, "containerd", UID, "guaranteed"),
    f"/docker/{OTHER}/kubepods/burstable/pod{UID}/{ID}": (ID, "-", UID, "burstable"),
    # prefixes: private cgroup namespace, the service of the runtime, a root of its own
    f"/../../kubepods/burstable/pod{UID}/{ID}": (ID, "-", UID, "burstable"),
    f"/../../../kubepods-burstable-pod{SLICE_UID}.slice/cri-containerd-{ID}.scope": (
        ID, "containerd", UID, "burstable"),
    f"/../cri-containerd-{ID}.scope": (ID, "containerd", "-", "-"),
    f"/system.slice/containerd.service/kubepods-burstable-pod{SLICE_UID}.slice:cri-containerd:{ID}":
        (ID, "containerd", UID, "burstable"),
    f"/kubepods-pod{SLICE_UID}.slice:cri-containerd:{ID}": (ID, "containerd", UID, "guaranteed"),
    f"/system.slice:docker:{ID}": (ID, "docker", "-", "-"),
    f"/actions/kubepods/besteffort/pod{UID}/{ID}": (ID, "-", UID, "besteffort"),
    # a leaf below the container: systemd, crun, a docker inside the pod
    f"/kubepods.slice/kubepods-pod{SLICE_UID}.slice/crio-{ID}.scope/container": (
        ID, "cri-o", UID, "guaranteed"),
    f"/kubepods/pod{UID}/{ID}/system.slice/sshd.service": (ID, "-", UID, "guaranteed"),
    f"/kubepods/burstable/pod{UID}/{ID}/docker/{OTHER}": (ID, "-", UID, "burstable"),
    f"{ID}/system.slice/user.slice/session-1.scope": (ID, "-", "-", "-"),
    # the pod itself, and the monitor beside its container
    f"/kubepods/burstable/pod{UID}": ("-", "-", UID, "burstable"),
    f"/kubepods.slice/kubepods-pod{SLICE_UID}.slice/crio-conmon-{ID}.scope": (
        "-", "-", UID, "guaranteed"),
    # outside Kubernetes
    f"/docker/{ID}": (ID, "docker", "-", "-"),
    f"/system.slice/docker-{ID}.scope": (ID, "docker", "-", "-"),
    f"/docker/{OTHER}/docker/{ID}": (ID, "docker", "-", "-"),
    f"/machine.slice/libpod-{ID}.scope": (ID, "podman", "-", "-"),
    f"/machine.slice/libpod-{ID}.scope/container": (ID, "podman", "-", "-"),
    f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope": (
        ID, "podman", "-", "-"),
    f"/libpod_parent/libpod-{ID}": (ID, "podman", "-", "-"),
    f"/system.slice/nerdctl-{ID}.scope": (ID, "containerd", "-", "-"),
    f"/k8s.io/{ID}": (ID, "containerd", "-", "-"),
    f"/kubepods.slice/kubepods-pod{SLICE_UID}.slice/isulad-{ID}.scope": (
        ID, "-", UID, "guaranteed"),
    f"/kata_overhead/{ID}": (ID, "-", "-", "-"),
}  # fmt: skip

NOTHING = (
    "",
    "/",
    "/system.slice/containerd.service",
    "/system.slice/k3s.service",
    "/snap.microk8s.daemon-containerd.service",
    "/podruntime/kubelet",  # Talos
    "/system/apid",
    "/init.scope",
    "/user.slice/user-0.slice/session-3.scope",
    "/kubepods.slice/kubepods-burstable.slice",
    "/kubepods/besteffort",
    f"/machine.slice/libpod-conmon-{ID}.scope",
    f"/system.slice/docker-{ID}.mount",
    f"/{ID[:-1]}",
    f"/{ID}0",
    f"/docker/{ID.upper()}",
    f"/podsomething/{ID[:32]}",
    f"/kubepods/burstable/pod{UID[:-1]}",
)


@pytest.mark.parametrize("path", FORMS)
def test_form(path: str) -> None:
    name = parse(path)
    assert (name.container_id, name.runtime, name.pod_uid, name.qos) == FORMS[path]
    assert name.known


@pytest.mark.parametrize("path", FORMS)
def test_four_levels_of_it_say_the_same(path: str) -> None:
    """The kernel side keeps the leaf and three above; only qos may need one more."""
    cut, whole = parse("/" + "/".join(path.split("/")[-LEVELS:])), parse(path)
    assert cut.container_id == whole.container_id or path.endswith(OTHER)
    assert cut.pod_uid in (whole.pod_uid, "-")


@pytest.mark.parametrize("path", NOTHING)
def test_no_container_and_no_pod(path: str) -> None:
    assert not parse(path).known


def test_an_id_that_did_not_fit_is_a_prefix() -> None:
    level = f"kubepods-burstable-pod{SLICE_UID}.slice:cri-containerd:{ID}"[: NAME_LEN - 1]
    prefix = level.rpartition(":")[2]
    assert 12 <= len(prefix) < 64
    assert parse(f"/{level}") == CgroupName(
        id_prefix=prefix, runtime="containerd", pod_uid=UID, qos="burstable"
    )
    assert parse(f"/x.slice:cri-containerd:{ID[:20]}") == CgroupName()


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("0::/kubepods/a\n", "/kubepods/a"),
        ("12:pids:/a\n5:cpu,cpuacct:/b\n1:name=systemd:/c\n0::/\n", "/a"),
        ("12:pids:/\n5:memory:/b\n1:name=systemd:/c\n", "/b"),
        ("5:cpu,cpuacct:/b\n1:name=systemd:/c:d\n0::/e\n", "/c:d"),
        ("0::/\n", "/"),
        ("nonsense\n:\n::\n", ""),
        ("", ""),
    ],
)
def test_line_of_proc_pid_cgroup(text: str, path: str) -> None:
    assert of_process(text) == path


@given(st.text(max_size=400))
def test_any_text_has_an_answer(text: str) -> None:
    parse(text)
    of_process(text)


LEVEL = st.text(string.ascii_lowercase + string.digits + "-_.@\\", max_size=20)
PREFIX = st.sampled_from(["", "cri-containerd-", "crio-", "docker-", "libpod-"])
HEX = st.text("0123456789abcdef", min_size=64, max_size=64)


@given(
    above=st.lists(LEVEL, max_size=4),
    below=st.lists(LEVEL, max_size=4),
    uid=st.uuids().map(str),
    number=HEX,
    prefix=PREFIX,
    systemd=st.booleans(),
)
def test_a_planted_id_is_found(
    above: list[str], below: list[str], uid: str, number: str, prefix: str, systemd: bool
) -> None:
    if systemd:
        pod = [f"kubepods-burstable-pod{uid.replace('-', '_')}.slice"]
        leaf = f"{prefix or 'cri-containerd-'}{number}.scope"
    else:
        pod, leaf = ["kubepods", "burstable", f"pod{uid}"], number
    name = parse("/".join(["", *above, *pod, leaf, *below]))
    assert (name.pod_uid, name.container_id, name.qos) == (uid, number, "burstable")


@given(path=st.sampled_from(sorted(FORMS)), cut=st.integers(0, 400))
def test_a_cut_path_never_names_another_container(path: str, cut: int) -> None:
    whole = {FORMS[path][0], ID, OTHER, "-"}
    assert parse(path[:cut]).container_id in whole
    assert parse(path[:cut]).pod_uid in {UID, HASH, "-"}
