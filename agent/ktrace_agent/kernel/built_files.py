# SPDX-License-Identifier: Apache-2.0
"""Where the files of agent/bpf are: in the wheel, or in the checkout."""

import os
from pathlib import Path

from ktrace_agent.errors import AgentError

_PACKAGE = Path(__file__).resolve().parents[1]


def object_path(name: str) -> Path:
    """Return a built file of agent/bpf: from KTRACE_BPF_DIR, the wheel, or the checkout."""
    folders = [_PACKAGE / "bpf", _PACKAGE.parent / "bpf" / "build"]
    if chosen := os.environ.get("KTRACE_BPF_DIR"):
        folders = [Path(chosen)]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise AgentError(f"{name} is not built: run `make build`, or set KTRACE_BPF_DIR to its folder")


def source_folder() -> Path:
    """Return the folder with the C sources of the programs. Raises AgentError if it is missing."""
    for folder in (_PACKAGE / "bpf" / "source", _PACKAGE.parent / "bpf"):
        if (folder / "ktrace.bpf.c").is_file():
            return folder
    raise AgentError("the sources of the eBPF programs are missing: install the wheel again")
