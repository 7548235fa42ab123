# SPDX-License-Identifier: Apache-2.0
"""The backend `core`: object files that libbpf relocates with the kernel's BTF (CO-RE)."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from ktrace_agent.kernel.bpf_object import Object
from ktrace_agent.kernel.built_files import object_path
from ktrace_agent.kernel.kernel_types import KernelTypes
from ktrace_agent.kernel.probes import object_name
from ktrace_agent.kernel.tracefs import Tracefs

IPV6 = Path("/proc/net/if_inet6")
KPROBE_EVENTS = Path("/sys/bus/event_source/devices/kprobe/type")


class KernelFeatures:
    """What the running kernel offers, for probes.choose()."""

    def __init__(self) -> None:
        self._types = KernelTypes()
        self._tracefs = Tracefs()

    def tracepoint_args(self, name: str) -> int | None:
        return self._types.tracepoint_args(name)

    def function_args(self, name: str) -> int | None:
        return self._types.function_args(name)

    def event_id(self, name: str) -> int | None:
        return self._tracefs.event_id(name)

    def has_ipv6(self) -> bool:
        return IPV6.exists() or self.function_args("inet6_sendmsg") is not None

    def has_kprobes(self) -> bool:
        return KPROBE_EVENTS.exists()

    def has_struct(self, name: str) -> bool:
        return self._types.has_struct(name)

    def close(self) -> None:
        self._types.close()
        self._tracefs.close()


class Core:
    """The object file for this kernel, and what the kernel's BTF says that it offers."""

    refused: ClassVar[Mapping[str, str]] = {}

    def __init__(self) -> None:
        self.features = KernelFeatures()
        try:
            self._path = object_path(object_name(self.features))
        except BaseException:
            self.features.close()
            raise

    def open(self) -> Object:
        return Object(self._path)
