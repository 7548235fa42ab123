# SPDX-License-Identifier: Apache-2.0
"""Compiles agent/bpf with bcc and the headers of the running kernel.

bcc is used as a compiler only: libbpf creates the maps, the programs are loaded and attached by
objects of this package. Compiling takes several seconds and 240 MB of memory, which bcc keeps, so
it runs in a process of its own (`python -m ktrace_agent.kernel.bcc.compiler`).
"""

import ctypes
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ktrace_agent.errors import AgentError
from ktrace_agent.kernel.bcc.section import SIZE, Malformed, Section

MODULES = Path("/lib/modules")
HEADERS_TAR = Path("/sys/kernel/kheaders.tar.xz")
COMPILE_S = 600
"""Maximum time to compile; 10 to 20 s on one CPU."""
_ENTRY = b"kt_programs"

PROGRAMS = (
    "enter_connect",
    "exit_connect",
    "exit_accept",
    "exit_accept4",
    "udp_send_begin",
    "udp_send_end",
    "udpv6_send_begin",
    "udpv6_send_end",
    "tcp_send_begin",
    "tcp_send_end",
    "udp_recv_begin",
    "udp_recv_end",
    "udpv6_recv_begin",
    "udpv6_recv_end",
    "tcp_recv_begin",
    "tcp_recv_end",
    "tcp_set_state",
    "listen_begin",
    "listen_end",
    "child_born",
    "error_probed",
    "sock_destroyed",
)
"""The programs of agent/bpf/entry that need no BTF."""


def problem(modules: Path = MODULES, headers: Path = HEADERS_TAR) -> tuple[str, str] | None:
    """Return what is missing to compile here and what to do; None if nothing is."""
    if find_spec("bcc") is None:
        return (
            "the Python package bcc is not installed",
            "install python3-bpfcc, or use the agent image with bcc",
        )
    release = platform.release()
    if not (modules / release / "build").is_dir() and not headers.exists():
        return (
            f"the headers of kernel {release} are not installed",
            f"install linux-headers-{release}, or mount the host's {modules} and /usr/src",
        )
    return None


def compile_programs(sources: Path, maps: Sequence[str]) -> dict[str, bytes]:
    """Return the instructions of PROGRAMS. Map `maps[n]` has the descriptor n in them.

    Raises AgentError with the compiler's first error.
    """
    command = [sys.executable, "-m", __name__, str(sources), *maps]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=COMPILE_S
        )
    except subprocess.TimeoutExpired as error:
        raise AgentError(f"bcc did not compile the programs within {COMPILE_S} s") from error
    if done.returncode != 0:
        raise AgentError(f"bcc cannot compile the programs: {_first_error(done.stderr)}")
    found = json.loads(done.stdout.splitlines()[-1])  # bcc may print warnings before it
    return {name: bytes.fromhex(code) for name, code in found.items()}


def _first_error(output: bytes) -> str:
    lines = output.decode(errors="replace").splitlines()
    errors = [line for line in lines if "error:" in line] or lines[-1:]
    return errors[0].strip()[:300] if errors else "no reason given"


def _source() -> str:
    calls = "\n".join(f"\tKT_PROGRAM({n}, {name});" for n, name in enumerate(PROGRAMS))
    return f'#include "ktrace.bpf.c"\nint kt_programs(void *ctx)\n{{\n{calls}\n\treturn 0;\n}}\n'


def _compile(sources: str, maps: Sequence[str]) -> dict[str, bytes]:
    from bcc import BPF, lib  # type: ignore[import-not-found]  # a package of the distribution

    flags = ["-I", sources, "-DKT_BASIC", "-DKT_BCC"]
    flags += [f"-DKT_FD_{name.rpartition('.')[2]}={number}" for number, name in enumerate(maps)]
    module = BPF(text=_source(), cflags=flags).module
    start = lib.bpf_function_start(module, _ENTRY)
    size = lib.bpf_function_size(module, _ENTRY)
    section = Section(lambda index: ctypes.string_at(start + index * SIZE, SIZE))
    return section.programs(size // SIZE, PROGRAMS)


def main() -> None:
    """Print the programs as one JSON object: name -> instructions in hexadecimal digits."""
    try:
        programs = _compile(sys.argv[1], sys.argv[2:])
    except Malformed as error:
        sys.exit(f"error: this version of bcc is not supported: {error}")
    print(json.dumps({name: code.hex() for name, code in programs.items()}))


if __name__ == "__main__":
    main()
