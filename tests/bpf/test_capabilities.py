# SPDX-License-Identifier: Apache-2.0
"""The capabilities of an agent that is not privileged: enough together, and each has its purpose.

docs/security.md describes what is lost without each of them. SYS_RESOURCE has a purpose on kernels
before 5.11 only: tests/kernels/test_capabilities.py.
"""

import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ktrace_agent.kernel.preflight import CAPABILITIES as NUMBERS
from ktrace_operator.plan.privileges import CAPABILITIES
from tests.bpf.captures import Capture
from tests.bpf.conftest import Begin
from tests.bpf.namespaces import Namespace
from tests.bpf.test_golden import ROWS, TRAFFIC
from tests.bpf.workers import Line, Worker
from tests.kernels.golden import Row, row_of, truth

pytestmark = pytest.mark.world("bpf")

PORT = 28_411
OTHER_USER = 1234
SYSTEM_CALLS = ["udp_send_address", "udp_recv_address", "connect", "accept"]
"""Hooks whose programs need the tracepoints of system calls, and therefore tracefs."""


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("traffic") / "traffic"
    subprocess.run(["cc", "-std=gnu11", "-O2", TRAFFIC, "-o", program], check=True)
    return program


@pytest.fixture(scope="module")
def listener(alone: Namespace) -> Iterator[Worker]:
    """A process of another user that listens in the namespace of the workload."""

    def listen(line: Line) -> None:
        with socket.create_server(("127.0.0.1", PORT)):
            line.say("listening")
            line.hear()

    worker = alone.start(listen, uid=OTHER_USER)
    worker.hear()
    yield worker
    worker.kill()


def only(*names: str) -> tuple[str, ...]:
    """A prefix that runs a command as root with these capabilities, as a container does.

    SYS_RESOURCE is left out: not every machine that runs these tests has it.
    """
    kept = ",".join(f"+{name.lower()}" for name in names if name != "SYS_RESOURCE")
    return "setpriv", f"--bounding-set=-all,{kept}"


def recorded(
    capture: Begin, namespace: Namespace, traffic: Path, *names: str
) -> tuple[Capture, Counter[Row], Counter[Row]]:
    """A capture of the golden workload: itself, the rows found, and the true ones."""
    with capture(prefix=only(*names)) as one:
        wanted = truth(namespace.run(str(traffic)))
    assert wanted.total() == ROWS
    rows = (row for row in one.rows if row["ns"]["net"] == namespace.inode)
    return one, Counter(row_of(row) for row in rows), wanted


def facts(one: Capture, namespace: Namespace, listener: Worker) -> dict[str, Any]:
    """Everything that a capability is for."""
    conntrack = {each["netns"]: each["source"] for each in one.node["conntrack"]["netns"]}
    [host] = [source for number, source in conntrack.items() if number != namespace.inode]
    return {
        "not_traced": one.summary["hooks_missing"],
        "conntrack": conntrack.get(namespace.inode),
        "conntrack_of_the_host": host,
        "sockets_of_another_user": listener.tgid in one.stock("start"),
    }


COMPLETE = {
    "not_traced": [],
    "conntrack": "ctnetlink",
    "conntrack_of_the_host": "ctnetlink",
    "sockets_of_another_user": True,
}


def test_the_set_suffices(
    capture: Begin, alone: Namespace, traffic: Path, listener: Worker
) -> None:
    one, found, wanted = recorded(capture, alone, traffic, *CAPABILITIES)
    assert found == wanted
    assert one.summary["complete"]
    assert facts(one, alone, listener) == COMPLETE


WITHOUT: dict[str, dict[str, Any]] = {
    "NET_ADMIN": {"conntrack": "nf_conntrack", "conntrack_of_the_host": "nf_conntrack"},
    "SYS_PTRACE": {"conntrack": None, "sockets_of_another_user": False},
    "SYS_ADMIN": {
        "not_traced": SYSTEM_CALLS,
        "conntrack": "nf_conntrack",
        "sockets_of_another_user": False,
    },
    # SYS_ADMIN includes both.
    "BPF": {},
    "PERFMON": {},
}
"""Capability -> facts that differ from COMPLETE without it."""


@pytest.mark.parametrize("name", WITHOUT)
def test_each_capability_has_its_purpose(
    capture: Begin, alone: Namespace, traffic: Path, listener: Worker, name: str
) -> None:
    kept = [one for one in CAPABILITIES if one != name]
    one, found, wanted = recorded(capture, alone, traffic, *kept)
    assert facts(one, alone, listener) == COMPLETE | WITHOUT[name]
    assert (found == wanted) == one.summary["complete"] == (name != "SYS_ADMIN")


def test_without_sys_admin_both_others_are_needed(capture: Begin, tmp_path: Path) -> None:
    for name in ("BPF", "PERFMON"):
        kept = [one for one in CAPABILITIES if one not in ("SYS_ADMIN", name)]
        one = Capture(tmp_path / name, prefix=only(*kept)).start()
        assert one.wait() == 3
        assert f"CAP_{name}" in one.stderr + one.stdout


def test_every_capability_is_covered() -> None:
    """SYS_RESOURCE is in tests/kernels. `doctor` shows the others."""
    assert {*WITHOUT, "SYS_RESOURCE"} == set(CAPABILITIES)
    assert {f"CAP_{name}" for name in WITHOUT} == set(NUMBERS)
