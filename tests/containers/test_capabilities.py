# SPDX-License-Identifier: Apache-2.0
"""The security context of an agent that is not privileged, as a real runtime applies it."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ktrace_agent.kernel.preflight import parse_capabilities
from ktrace_operator.plan.privileges import security_context
from tests.bpf.workers import wait_until
from tests.containers.runtime import NODE_NETWORK, Pod, Runtime
from tests.containers.wire import message

pytestmark = [pytest.mark.world("containers"), pytest.mark.timeout(600)]

CAP_SYS_RESOURCE = 24
RUNTIME_DEFAULT = 0


def wire_of(context: dict[str, Any]) -> bytes:
    """LinuxContainerSecurityContext, as a kubelet fills it for a pod with hostNetwork and hostPID.

    SYS_RESOURCE is left out if this machine does not have it: runc cannot grant it then.
    """
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    own = parse_capabilities(Path("/proc/self/status").read_text())
    names = [
        name
        for name in context["capabilities"]["add"]
        if name != "SYS_RESOURCE" or own >> CAP_SYS_RESOURCE & 1
    ]
    return message(
        (1, message(*((1, name) for name in names), (2, "ALL"))),
        (3, message((1, NODE_NETWORK), (2, NODE_NETWORK))),
        (5, message((1, context["runAsUser"]))),
        (7, int(context["readOnlyRootFilesystem"])),
        (11, int(not context["allowPrivilegeEscalation"])),
        (15, message((1, RUNTIME_DEFAULT))),
    )


def test_a_container_with_the_smaller_context_records_everything(runtime: Runtime, ktrace: Path):
    """By the static file, since the image of these tests has no Python."""
    pod = runtime.run_pod(Pod("agent", "ktrace-agents", host_network=True))
    runtime.gate.joinpath("tmp").mkdir()
    runtime.run_container(
        pod, "agent", "/ktrace", "--duration=3s", "--out-dir=/gate/out", "--node=small",
        mounts={"/ktrace": ktrace, "/tmp": runtime.gate / "tmp"},
        security=wire_of(security_context(privileged=False)),
    )  # fmt: skip
    out = runtime.gate / "out"
    [bundle] = wait_until(lambda: list(out.glob("*.bundle.tgz")), "the bundle", 120)
    with tarfile.open(bundle) as archive:
        content = {
            name.partition("Z.")[2]: archive.extractfile(name).read()  # type: ignore[union-attr]
            for name in archive.getnames()
        }
    summary, node = (json.loads(content[f"{name}.json"]) for name in ("summary", "node"))
    assert summary["hooks_missing"] == []
    assert summary["complete"]
    assert {one["source"] for one in node["conntrack"]["netns"]} == {"ctnetlink"}
    runtime.remove_pod(pod)
