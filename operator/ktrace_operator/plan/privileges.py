# SPDX-License-Identifier: Apache-2.0
"""The security context of the agent's container: privileged, or with a few capabilities.

docs/security.md describes what each capability is for. The chart's policy `ktrace-agents` accepts
the configured context only, and deploy/daemonset.yaml contains the smaller one as a comment; tests
compare both with this module.
"""

from typing import Any

CAPABILITIES = ("BPF", "PERFMON", "SYS_ADMIN", "SYS_PTRACE", "NET_ADMIN", "SYS_RESOURCE")
"""All capabilities that a capture uses on any supported kernel."""

_ALWAYS = {"runAsUser": 0, "readOnlyRootFilesystem": True}


def security_context(*, privileged: bool) -> dict[str, Any]:
    """The securityContext of the agent's container.

    A runtime exempts privileged containers from seccomp, AppArmor and SELinux. Otherwise:
    seccomp's RuntimeDefault permits what the capabilities permit (bpf, perf_event_open, setns and,
    since containerd 1.5, fsmount). The default profile of AppArmor denies every mount, so tracefs
    could not be read. The default type of SELinux, container_t, denies bpf.
    """
    if privileged:
        return {"privileged": True, **_ALWAYS}
    return {
        "privileged": False,
        **_ALWAYS,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": list(CAPABILITIES)},
        "seccompProfile": {"type": "RuntimeDefault"},
        "appArmorProfile": {"type": "Unconfined"},
        "seLinuxOptions": {"type": "spc_t"},
    }
