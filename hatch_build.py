# SPDX-License-Identifier: Apache-2.0
"""Adds the BPF objects and their sources to a wheel; an editable install uses agent/bpf itself."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

OBJECTS = ("ktrace.bpf.o", "ktrace_basic.bpf.o", "libktrace_ring.so")
SOURCES = ("ktrace.bpf.c", "*.h", "body/*.h", "entry/*.h")


class BpfObjects(BuildHookInterface[Any]):
    """Refuses a wheel without its objects, which would fail only later on the node."""

    PLUGIN_NAME = "bpf-objects"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the objects as ktrace_agent/bpf/*. Raises FileNotFoundError if they are not built."""
        if version == "editable":
            return
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"
        for name in OBJECTS:
            path = Path(self.root, "agent/bpf/build", name)
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing: run `make bpf` first")
            build_data["force_include"][str(path)] = f"ktrace_agent/bpf/{name}"
        # The backend `bcc` compiles them on the node.
        for source in SOURCES:
            for path in Path(self.root, "agent/bpf").glob(source):
                place = path.relative_to(Path(self.root, "agent/bpf"))
                build_data["force_include"][str(path)] = f"ktrace_agent/bpf/source/{place}"
