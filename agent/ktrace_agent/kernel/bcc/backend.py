# SPDX-License-Identifier: Apache-2.0
"""The backend `bcc`: programs compiled with the kernel's headers, attached by kprobes.

The hooks are chosen as for the other backend (probes.py). What a function takes is not looked up:
the headers declare it, so the compiled programs fit.
"""

import re
from pathlib import Path

from ktrace_agent.kernel.bcc import compiler
from ktrace_agent.kernel.bcc.compiled import Compiled
from ktrace_agent.kernel.bpf_object import Object
from ktrace_agent.kernel.built_files import object_path, source_folder
from ktrace_agent.kernel.core import IPV6, KPROBE_EVENTS
from ktrace_agent.kernel.hooks import TARGETS
from ktrace_agent.kernel.probes import OBJECTS
from ktrace_agent.kernel.targets import Kprobe
from ktrace_agent.kernel.tracefs import Tracefs

KALLSYMS = Path("/proc/kallsyms")
_ARGS: dict[str, int] = {}
for _target in TARGETS.values():
    if isinstance(_target, Kprobe):
        _ARGS.setdefault(_target.name, _target.args[0])


class HeaderFeatures:
    """What a kernel without BTF offers, for probes.choose()."""

    def __init__(self, kallsyms: Path = KALLSYMS) -> None:
        self._tracefs = Tracefs()
        text = re.findall(r"^\S+ [tT] (\w+)$", kallsyms.read_text(), re.MULTILINE)
        self._functions = _ARGS.keys() & text

    def tracepoint_args(self, name: str) -> int | None:  # noqa: ARG002  # only BTF has them
        return None

    def function_args(self, name: str) -> int | None:
        return _ARGS[name] if name in self._functions else None

    def event_id(self, name: str) -> int | None:
        return self._tracefs.event_id(name)

    def has_ipv6(self) -> bool:
        return IPV6.exists() or self.function_args("udpv6_sendmsg") is not None

    def has_kprobes(self) -> bool:
        return KPROBE_EVENTS.exists()

    def has_struct(self, name: str) -> bool:  # noqa: ARG002
        """Return False: without BTF, a growing map is preallocated."""
        return False

    def close(self) -> None:
        self._tracefs.close()


class Bcc:
    """The compiled programs, with the maps of the basic object file."""

    def __init__(self) -> None:
        self._path = object_path(OBJECTS[1])
        described = Object(self._path)
        try:
            self._maps = tuple(described.map_names())
        finally:
            described.close()
        self._code = compiler.compile_programs(source_folder(), self._maps)
        self.refused = {
            name: "bcc has no such program: it needs BTF"
            for name in TARGETS
            if name not in compiler.PROGRAMS
        }
        self.features = HeaderFeatures()

    def open(self) -> Object:
        return Compiled(self._path, self._maps, self._code)
