# SPDX-License-Identifier: Apache-2.0
"""The two ways to get programs for this kernel, behind one interface.

`core` relocates object files with the kernel's BTF. `bcc` compiles the same sources with the
kernel's headers; it needs no BTF, but memory, time and packages that the usual image lacks.
"""

from collections.abc import Mapping
from typing import Protocol

from ktrace_agent.kernel.bpf_object import Object
from ktrace_agent.kernel.targets import Features
from ktrace_api.names import BackendName


class ClosingFeatures(Features, Protocol):
    """What the running kernel offers, with the files that are open to find it out."""

    def close(self) -> None:
        """Release them. Idempotent."""


class Backend(Protocol):
    """A source of programs for this kernel."""

    @property
    def features(self) -> ClosingFeatures:
        """What the running kernel offers to these programs."""

    @property
    def refused(self) -> Mapping[str, str]:
        """Programs that this backend never has, with the reason."""

    def open(self) -> Object:
        """Return the programs and maps, not loaded yet."""


def open_backend(name: BackendName) -> Backend:
    """Prepare the programs; bcc compiles them now."""
    if name == "bcc":
        from ktrace_agent.kernel.bcc.backend import Bcc

        return Bcc()
    from ktrace_agent.kernel.core import Core

    return Core()
