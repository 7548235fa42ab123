# SPDX-License-Identifier: Apache-2.0
"""A kernel side that only says that it was asked, for captures without one."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from ktrace_agent.enrich.pods.identify import Identities, Sources
from ktrace_agent.kernel.hooks import HOOKS
from ktrace_agent.kernel.probes import Choice
from ktrace_agent.kernel.recording import HookCounters, Overflow
from ktrace_api.names import RowType


class Collector:
    """Programs that write nothing."""

    ring_fd = -1

    def __init__(self, *_: Any, **__: Any) -> None:
        self.choices = tuple(
            Choice(hook.name, hook.candidates[0].programs, missing=hook.missing) for hook in HOOKS
        )
        self.attach = self.detach = self.close = lambda: None

    def iterate(self, _: str) -> bytes:
        return b""

    def counters(self, **_: Any) -> dict[RowType, HookCounters]:
        return {row: HookCounters() for row in RowType}

    def flows(self) -> tuple[bytes, bytes]:
        return b"", b""

    def overflow(self) -> Overflow:
        return Overflow()

    def cgroups(self) -> dict[int, str]:
        return {}


class Spool:
    """A spool that holds `events` when the programs are detached."""

    events = b""
    records = 0
    lost: ClassVar[dict[RowType, int]] = {}

    def __init__(self, _: int, folder: Path) -> None:
        self.fd = os.open(folder / "spool", os.O_RDWR | os.O_CREAT)
        self.start = lambda: None

    def finish(self) -> None:
        os.write(self.fd, self.events)

    def close(self) -> None:
        os.close(self.fd)


class Watches:
    """Nobody is known by name, connection tracking was not asked."""

    tracked = None

    def __init__(self, *_: Any) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        pass

    def identify(self, _: Mapping[int, str]) -> Identities:
        return Identities({}, (), Sources())
