# SPDX-License-Identifier: Apache-2.0
"""The sources that are polled while a capture runs: containers and connection tracking."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ktrace_agent.enrich.conntrack import watch as conntrack
from ktrace_agent.enrich.pods import watch as pods
from ktrace_agent.enrich.pods.identify import Identities, identify
from ktrace_agent.host.netns import PROC, find_netns
from ktrace_api.capture import CaptureConfig

if TYPE_CHECKING:
    from ktrace_agent.enrich.conntrack.lookup import Conntrack

SEARCH_SECONDS = 1.0
"""Maximum time to search /proc for network namespaces."""


class Watches:
    """Polls containers and connection tracking between enter and exit."""

    def __init__(self, config: CaptureConfig, host_root: Path) -> None:
        self._config, self._host_root = config, host_root
        self._pods = pods.Watch(mode=config.cri, sockets=config.cri_sockets, host_root=host_root)
        self._conntrack = conntrack.Watch(_netns_pids) if config.conntrack else None
        self._stopped = False
        self.tracked: Conntrack | None = None
        """The conntrack entries; set by stop()."""

    def __enter__(self) -> Self:
        self._pods.start()
        if self._conntrack:
            self._conntrack.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Polls one last time. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        self._pods.stop()
        if self._conntrack:
            self.tracked = self._conntrack.stop()

    def identify(self, cgroups: Mapping[int, str]) -> Identities:
        """Finds the pod and container of each cgroup of a recording."""
        return identify(
            cgroups,
            mode=self._config.cri,
            sockets=self._config.cri_sockets,
            host_root=self._host_root,
            metadata=self._pods.metadata,
        )


def _netns_pids() -> dict[int, int]:
    """Returns the inode of each network namespace and a process in it."""
    deadline = time.monotonic() + SEARCH_SECONDS
    found = find_netns(PROC, lambda: time.monotonic() > deadline)
    return {inode: int(pids[0]) for inode, pids in found.items()}
