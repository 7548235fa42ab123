# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from syrupy.assertion import SnapshotAssertion

from ktrace_agent.errors import KtraceError, PermissionDenied, UnsupportedKernel
from ktrace_agent.kernel import lockdown, preflight, tracefs
from ktrace_agent.kernel.preflight import Cgroup, Lack
from ktrace_api.capture import BackendChoice

BPF, PERFMON, ADMIN, PTRACE = 1 << 39, 1 << 38, 1 << 21, 1 << 19
V1 = "33 31 0:30 / /sys/fs/cgroup/{0} rw,relatime - cgroup cgroup rw,{0}\n"
V2 = "41 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc of a privileged process."""
    (tmp_path / "self").mkdir()
    status(tmp_path, BPF | PERFMON | ADMIN | PTRACE)
    (tmp_path / "self/mountinfo").write_text(V2)
    return tmp_path


@pytest.fixture
def btf(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinux"
    path.write_bytes(b"\x9f\xeb\x01\x00")
    return path


def status(proc: Path, bits: int) -> None:
    (proc / "self/status").write_text(f"Name:\tx\nCapPrm:\t0\nCapEff:\t{bits:016x}\nCapBnd:\t0\n")


@pytest.mark.parametrize("bits", [BPF | PERFMON, ADMIN, ADMIN | BPF])
def test_the_capabilities_that_suffice(proc: Path, btf: Path, bits: int):
    status(proc, bits)
    assert preflight.inspect(proc=proc, btf=btf).lacks(Lack.BPF_PERMISSION) is None


@pytest.mark.parametrize(
    ("bits", "named"),
    [
        (0, "CAP_BPF and CAP_PERFMON"),
        (BPF, "CAP_PERFMON"),
        (PERFMON, "CAP_BPF"),
        (PTRACE, "CAP_BPF and CAP_PERFMON"),
    ],
)
def test_without_capabilities_permission_is_denied(proc: Path, btf: Path, bits: int, named: str):
    status(proc, bits)
    with pytest.raises(PermissionDenied) as denied:
        preflight.check(proc=proc, btf=btf)
    assert str(denied.value) == (
        f"root (or {named}) is required to load eBPF programs; try `sudo ktrace`, or run it in a"
        " privileged container"
    )


def test_without_a_status_file_no_right_is_assumed(proc: Path, btf: Path):
    (proc / "self/status").unlink()
    with pytest.raises(PermissionDenied):
        preflight.check(proc=proc, btf=btf)


def test_without_btf_the_kernel_is_not_supported(proc: Path, tmp_path: Path):
    with pytest.raises(UnsupportedKernel) as refused:
        preflight.check(proc=proc, btf=tmp_path / "none")
    assert "is missing" in str(refused.value)
    assert "CONFIG_DEBUG_INFO_BTF" in str(refused.value)
    assert "\n" not in str(refused.value)


NO_BTF, NO_BCC = "this kernel has no BTF", ("bcc is not installed", "install python3-bpfcc")


@pytest.mark.parametrize(
    ("wanted", "btf_why", "bcc", "backend"),
    [
        ("auto", "", NO_BCC, "core"),
        ("auto", "", None, "core"),
        ("auto", NO_BTF, None, "bcc"),
        ("core", "", None, "core"),
        ("bcc", "", None, "bcc"),
        ("bcc", NO_BTF, None, "bcc"),
    ],
)
def test_bcc_is_used_if_it_is_requested_or_without_btf(
    wanted: BackendChoice, btf_why: str, bcc: tuple[str, str] | None, backend: str
):
    assert preflight.choose_backend(wanted, btf_why, lambda: bcc) == (backend, None)


@pytest.mark.parametrize("wanted", ["auto", "core", "bcc"])
def test_what_is_missing_without_btf_and_bcc(wanted: BackendChoice, snapshot: SnapshotAssertion):
    backend, lack = preflight.choose_backend(wanted, NO_BTF, lambda: NO_BCC)
    assert backend is None
    assert lack
    assert f"{lack.what}: {lack.why}; {lack.next_step}" == snapshot


def test_a_file_that_is_not_btf(proc: Path, tmp_path: Path):
    (tmp_path / "vmlinux").write_bytes(b"\x7fELF")
    with pytest.raises(UnsupportedKernel, match="does not contain BTF"):
        preflight.check(proc=proc, btf=tmp_path / "vmlinux")


def test_permission_is_told_before_the_kernel(proc: Path, tmp_path: Path):
    status(proc, 0)
    with pytest.raises(PermissionDenied):
        preflight.check(proc=proc, btf=tmp_path / "none")


def test_confidential_lockdown_is_not_supported(proc: Path, btf: Path, tmp_path: Path):
    (tmp_path / "lockdown").write_text("none integrity [confidentiality]\n")
    with pytest.raises(UnsupportedKernel, match="lockdown"):
        preflight.check(proc=proc, btf=btf, lockdown=tmp_path / "lockdown")


def test_a_trial_load_finds_the_lockdown_that_is_not_reported(
    proc: Path, btf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lockdown, "_loads", lambda program: program == lockdown.NOTHING)
    with pytest.raises(UnsupportedKernel, match="kernel lockdown is `confidentiality`"):
        preflight.check(proc=proc, btf=btf, lockdown=tmp_path / "none")


@pytest.mark.parametrize(
    ("accepted", "why", "next_step"),
    [
        ({lockdown.NOTHING}, "under kernel lockdown `confidentiality`", "do not mount it"),
        (set(), "kernel lockdown is unknown", "run as root"),
    ],
)
def test_nobody_is_advised_to_mount_tracefs_under_confidentiality(
    proc: Path,
    btf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    accepted: set[bytes],
    why: str,
    next_step: str,
):
    monkeypatch.setattr(lockdown, "_loads", accepted.__contains__)
    monkeypatch.setattr(tracefs, "mount_point", lambda *_: None)
    found = preflight.inspect(proc=proc, btf=btf, lockdown=tmp_path / "none")
    lack = found.lacks(Lack.TRACEFS)
    assert lack
    assert why in lack.why
    assert next_step in lack.next_step
    assert found.tracefs == "-"


def test_an_old_libbpf_is_not_supported(proc: Path, btf: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preflight, "_libbpf", lambda: ("0.8", "libbpf 0.8 is too old"))
    with pytest.raises(UnsupportedKernel, match=r"libbpf 0\.8 is too old; install libbpf1"):
        preflight.check(proc=proc, btf=btf)


def test_every_blocking_lack_has_its_error(proc: Path, btf: Path):
    found = preflight.inspect(proc=proc, btf=btf)
    for what, error in preflight.BLOCKING.items():
        lacking = replace(found, missing=(preflight.Missing(what, "why", "next"),))
        with pytest.raises(error, match="why; next"):
            preflight.require(lacking)
        assert issubclass(error, KtraceError)
    harmless = set(Lack) - preflight.BLOCKING.keys()
    only = replace(found, missing=tuple(preflight.Missing(w, "w", "n") for w in harmless))
    assert preflight.require(only) is only


@pytest.mark.parametrize(
    ("mountinfo", "wanted"),
    [
        ("", Cgroup("-")),
        (V2, Cgroup("v2")),
        (V1.format("pids") + V1.format("memory"), Cgroup("v1", ("memory", "pids"))),
        (V1.format("cpu,cpuacct"), Cgroup("v1", ("cpu", "cpuacct"))),
        (V1.format("pids") + V2, Cgroup("hybrid", ("pids",))),
        (V1.format("xattr,name=systemd") + V2, Cgroup("v2")),
        (V1.format("name=systemd"), Cgroup("v1")),
        ("no separator here\n - cgroup\n - cgroup2", Cgroup("v2")),
    ],
)
def test_cgroup_versions(mountinfo: str, wanted: Cgroup):
    assert preflight.parse_cgroups(mountinfo) == wanted


@given(st.text())
def test_parsers_take_any_text(text: str):
    preflight.parse_cgroups(text)
    assert preflight.parse_capabilities(text) >= 0
    assert preflight.parse_capabilities(f"CapEff:\t00ff\n{text}") == 255


def test_this_machine_is_inspected_without_an_exception():
    found = preflight.inspect()
    assert found.release
    assert found.cgroup.version in ("v1", "v2", "hybrid", "-")


def test_capabilities_of_a_user_namespace_do_not_count(proc: Path, btf: Path):
    """unshare -U -r: uid 0 with all capabilities, and the kernel refuses BPF all the same."""
    (proc / "self/ns").mkdir()
    (proc / "self/ns/user").symlink_to("user:[4026532999]")
    lack = preflight.inspect(proc=proc, btf=btf).lacks(Lack.BPF_PERMISSION)
    assert lack
    assert "user namespace" in lack.why


def test_the_own_user_namespace_is_told():
    initial = Path("/proc/self/ns/user").readlink().name == f"user:[{0xEFFFFFFD}]"
    lack = preflight.inspect().lacks(Lack.BPF_PERMISSION)
    assert initial == (lack is None or "user namespace" not in lack.why)
