# SPDX-License-Identifier: Apache-2.0
"""The result of a plan: what to create, release, delete and write, and when to plan again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ktrace_api.status import SnapshotStatus
from ktrace_operator.objects import AgentPod

RESYNC = timedelta(seconds=30)
"""Period of reconciliations of an unfinished snapshot without any event."""
RETRY = timedelta(seconds=5)
"""Period while a snapshot waits for a Secret, a claim, a busy node or a quota."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Actions and the status. Pods are changed whether or not the status is written now."""

    status: SnapshotStatus
    create: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """Nodes and Pod objects."""
    release: tuple[AgentPod, ...] = ()
    """Pods whose finalizer is removed."""
    delete: tuple[AgentPod, ...] = ()
    """Pods to delete with their grace period: SIGTERM first."""
    delete_snapshot: bool = False
    wake: datetime | None = None
    """Time of the next plan if no event comes before; None: no time."""
    needs_fresh: bool = False
    """The pods came from a cache, and these actions need a read from etcd."""


def abandon(pods: Sequence[AgentPod]) -> Plan:
    """Deletes pods whose snapshot is gone (SIGTERM first). Their results are not awaited.

    Without the finalizer, a pod that is being deleted stays until the kubelet has ended it.
    """
    return Plan(
        status=SnapshotStatus(),
        delete=tuple(pod for pod in pods if pod.deleting is None),
        release=tuple(pod for pod in pods if pod.held),
    )
