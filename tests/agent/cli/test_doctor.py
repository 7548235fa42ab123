# SPDX-License-Identifier: Apache-2.0
import io
import json
from dataclasses import replace

import pytest
from rich.console import Console
from syrupy.assertion import SnapshotAssertion

from ktrace_agent.cli import doctor, main
from ktrace_agent.cli.doctor import Examination
from ktrace_agent.errors import AgentError
from ktrace_agent.kernel.preflight import Cgroup, Lack, Missing, Platform
from ktrace_agent.kernel.probes import Choice, Refusal
from ktrace_api.capture import CaptureConfig

GOOD = Platform(
    release="6.12.0",
    version="#1 SMP",
    machine="x86_64",
    euid=0,
    capabilities=frozenset({"CAP_BPF", "CAP_PERFMON"}),
    btf=True,
    backend="core",
    lockdown="none",
    unprivileged_bpf="disabled",
    cgroup=Cgroup("v1", ("memory", "pids")),
    tracefs="private",
    libbpf="1.5",
    missing=(),
)
NO_BPF = Missing(Lack.BPF_PERMISSION, "loading BPF programs needs root", "run with sudo")
NO_BTF = Missing(Lack.BTF, "this kernel has no BTF", "use a kernel with CONFIG_DEBUG_INFO_BTF")
NO_PROCESSES = Missing(Lack.OTHER_PROCESSES, "processes are hidden", "use the host PID namespace")
NO_TRACEFS = Missing(Lack.TRACEFS, "tracefs is not mounted", "mount it")
CHOICES = (
    Choice("tcp_state", ("tcp_state", "tcp_destroy"), (), "TCP rows", required=True),
    Choice(
        "tcp_retransmit",
        ("tcp_retransmit",),
        (Refusal("tcp_retransmit_err", "passes 2 arguments, 3 are needed"),),
        "retransmitted segments",
    ),
    Choice("connect", (), (Refusal("enter_connect", "tracefs shows no event"),), "errnos"),
)
NO_SENDS = (
    Choice("socket_send", (), (Refusal("sock_send", "no tracepoint"),), "UDP sends, bytes sent"),
    Choice("udp_send_address", (), (Refusal("enter_sendto", "useless without socket_send"),),
           "peers of sends on unconnected UDP sockets"),
)  # fmt: skip


def text(found: Examination) -> str:
    out = io.StringIO()
    Console(file=out, width=100, color_system=None, highlight=False).print(doctor.render(found))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def survey(_: CaptureConfig, backend: str) -> tuple[Choice, ...]:
    assert backend == "core"
    return CHOICES


LACKING = replace(
    GOOD, euid=65534, capabilities=frozenset({"CAP_SYS_PTRACE"}), btf=False, lockdown="-",
    unprivileged_bpf="-", tracefs="-", missing=(NO_BPF, NO_BTF, NO_TRACEFS, NO_PROCESSES),
)  # fmt: skip


def test_a_node_with_every_feature(snapshot: SnapshotAssertion):
    found = doctor.examine(lambda: GOOD, lambda *_: CHOICES[:2])
    assert text(found) == snapshot


def test_a_node_without_one_feature(snapshot: SnapshotAssertion):
    platform = replace(GOOD, tracefs="-", missing=(NO_TRACEFS,))
    assert text(doctor.examine(lambda: platform, survey)) == snapshot


def test_what_is_lost_is_named_once(snapshot: SnapshotAssertion):
    """A hook that only lacks another one is not served, but it is not a loss of its own."""
    shown = text(doctor.examine(lambda: GOOD, lambda *_: (*CHOICES[:2], *NO_SENDS)))
    assert shown[shown.index("what it records") :] == snapshot


def test_a_node_that_is_not_ready(snapshot: SnapshotAssertion):
    found = doctor.examine(lambda: LACKING, lambda *_: pytest.fail("nothing may be loaded"))
    assert text(found) == snapshot


@pytest.mark.parametrize(
    ("capabilities", "wanted"),
    [
        ({"CAP_SYS_ADMIN"}, "uid 0, CAP_SYS_ADMIN\n"),
        ({"CAP_BPF"}, "uid 0, CAP_BPF; missing CAP_PERFMON\n"),
        (set(), "uid 0; missing CAP_BPF, CAP_PERFMON\n"),
    ],
)
def test_missing_capabilities_are_named(capabilities: set[str], wanted: str):
    platform = replace(GOOD, capabilities=frozenset(capabilities))
    assert f"privileges        {wanted}" in text(doctor.examine(lambda: platform, survey))


def test_the_kernel_may_refuse_all():
    def refuse(*_: object) -> tuple[Choice, ...]:
        raise AgentError("the programs load one by one, not together")

    found = doctor.examine(lambda: GOOD, refuse)
    assert "Not ready: the programs load one by one" in text(found)


@pytest.mark.parametrize(("missing", "status"), [((), 0), ((NO_BPF,), 3)])
def test_the_command(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    missing: tuple[Missing, ...],
    status: int,
):
    found = doctor.examine(lambda: replace(GOOD, missing=missing), survey)
    monkeypatch.setattr(doctor, "examine", lambda: found)
    assert main.main(["doctor"]) == status
    assert "kernel" in capsys.readouterr().out
    assert main.main(["doctor", "--json"]) == status
    out, err = capsys.readouterr()
    shown = json.loads(out)
    assert err == ""
    assert shown["ready"] is (status == 0)
    assert shown["platform"]["cgroup"] == {"version": "v1", "v1_controllers": ["memory", "pids"]}
    assert [one["what"] for one in shown["platform"]["missing"]] == [one.what for one in missing]
    if status == 0:
        assert shown["hooks"][2]["absent"] == "errnos"
        assert shown["hooks"][0]["records"] == "TCP rows"
        assert shown["sizes"]["ring_bytes"] == 8 * 2**20
    else:
        assert shown["error"]["reason"] == "PermissionDenied"


@pytest.mark.world("bpf")
def test_this_node():
    assert doctor.examine().error is None
