# SPDX-License-Identifier: Apache-2.0
"""A BPF object file and its programs: opened, configured, loaded, attached, closed."""

import ctypes
import os
import platform
from collections.abc import Iterator
from ctypes import byref, c_long, c_uint32, c_uint64, sizeof
from pathlib import Path

from ktrace_agent.host.libc import libc
from ktrace_agent.kernel.bpf_map import Map
from ktrace_agent.kernel.libbpf import checked, clear_log, failure, library, non_null

_PERF_TYPE_TRACEPOINT = 2
_PERF_FLAG_FD_CLOEXEC = 8
_NR_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_NR_BPF = {"x86_64": 321, "aarch64": 280}
_BPF_OBJ_GET_INFO_BY_FD = 15


class PerfEventAttr(ctypes.Structure):
    """The first 64 bytes of struct perf_event_attr (PERF_ATTR_SIZE_VER0)."""

    _fields_ = (
        ("type", c_uint32),
        ("size", c_uint32),
        ("config", c_uint64),
        ("sample_period", c_uint64),
        ("sample_type", c_uint64),
        ("read_format", c_uint64),
        ("flags", c_uint64),
        ("wakeup_events", c_uint32),
        ("bp_type", c_uint32),
        ("config1", c_uint64),
    )

    @classmethod
    def tracepoint(cls, event_id: int) -> "PerfEventAttr":
        """Return the event of a classic tracepoint."""
        return cls(
            type=_PERF_TYPE_TRACEPOINT, size=64, config=event_id, sample_period=1, wakeup_events=1
        )


def perf_event_open(attr: PerfEventAttr, name: str) -> int:
    """Return a descriptor of the event on CPU 0; programs run on all CPUs. Raises BpfError."""
    fd = libc().syscall(
        c_long(_NR_PERF_EVENT_OPEN[platform.machine()]),
        byref(attr),
        c_long(-1),
        c_long(0),
        c_long(-1),
        c_long(_PERF_FLAG_FD_CLOEXEC),
    )
    if fd < 0:
        raise failure(f"perf_event_open for {name}")
    return int(fd)


class Link:
    """An attached program, detached by close() or by the kernel when the process ends."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    @property
    def fd(self) -> int:
        return int(library().bpf_link__fd(self._pointer))

    def close(self) -> None:
        # Cleared first: an interrupt may arrive while the kernel detaches the program, and the
        # cleanup that follows must not free the link a second time.
        pointer, self._pointer = self._pointer, 0
        if pointer:
            library().bpf_link__destroy(pointer)


class Program:
    """A program of a BPF object."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer
        self.name = library().bpf_program__name(pointer).decode()
        self.section = library().bpf_program__section_name(pointer).decode()

    @property
    def fd(self) -> int:
        return int(library().bpf_program__fd(self._pointer))

    def set_autoload(self, wanted: bool) -> None:
        library().bpf_program__set_autoload(self._pointer, wanted)

    def attach(self) -> Link:
        """Attach by section name (tp_btf and similar)."""
        return Link(non_null(f"attach {self.name}", library().bpf_program__attach(self._pointer)))

    def attach_tracepoint(self, event_id: int) -> Link:
        """Attach to a classic tracepoint by the id in its tracefs folder.

        libbpf's own attach needs tracefs at a fixed path, and many nodes do not mount it there.
        """
        fd = perf_event_open(PerfEventAttr.tracepoint(event_id), self.name)
        link = library().bpf_program__attach_perf_event(self._pointer, fd)
        if not link:
            os.close(fd)
        return Link(non_null(f"attach {self.name}", link))

    def attach_iter(self, over: Map | None = None) -> Link:
        """Attach as an iterator over all objects of its kind, or over the elements of one map."""
        info = (c_uint32 * 4)(over.fd if over else 0)  # union bpf_iter_link_info
        options = (c_uint64 * 3)(24, ctypes.addressof(info), 4 if over else 0)
        return Link(
            non_null(
                f"attach {self.name}",
                library().bpf_program__attach_iter(self._pointer, byref(options) if over else None),
            )
        )

    def recursion_misses(self) -> int:
        """Return how often the kernel skipped the program: it was already running on that CPU.

        Reads bpf_prog_info.recursion_misses, v5.12 (9ed9e9ba2337). 0 if the kernel lacks it.
        """
        info = (c_uint64 * 29)()
        attr = (c_uint64 * 2)(
            self.fd | sizeof(info) << 32,
            ctypes.addressof(info),
        )
        code = libc().syscall(
            c_long(_NR_BPF[platform.machine()]),
            c_long(_BPF_OBJ_GET_INFO_BY_FD),
            byref(attr),
            c_long(sizeof(attr)),
        )
        return int(info[26]) if code == 0 else 0


class Object:
    """One BPF object file. Order of use: open, configure maps and programs, load(), attach."""

    def __init__(self, path: Path, kernel_btf: Path | None = None) -> None:
        """Open the file. `kernel_btf` replaces the BTF of the running kernel."""
        lib = library()
        clear_log()
        name = kernel_btf and ctypes.create_string_buffer(os.fsencode(kernel_btf))
        # struct bpf_object_open_opts up to btf_custom_path
        options = (c_uint64 * 7)(56, 0, 0, 0, 0, 0, ctypes.addressof(name) if name else 0)
        self._pointer = non_null(
            f"open {path.name}", lib.bpf_object__open_file(os.fsencode(path), byref(options))
        )
        self.programs: dict[str, Program] = {one.name: one for one in self._programs()}

    def _programs(self) -> Iterator[Program]:
        pointer: int | None = None
        while pointer := library().bpf_object__next_program(self._pointer, pointer):
            yield Program(pointer)

    def map_names(self) -> Iterator[str]:
        """Return the names that map() accepts."""
        pointer: int | None = None
        while pointer := library().bpf_object__next_map(self._pointer, pointer):
            # libbpf puts the name of the object before that of .bss, .data and .rodata.
            name, dot, section = library().bpf_map__name(pointer).decode().partition(".")
            yield dot + section if dot else name

    def map(self, name: str) -> Map:
        pointer = library().bpf_object__find_map_by_name(self._pointer, name.encode())
        return Map(non_null(f"map {name}", pointer))

    def load(self) -> None:
        clear_log()
        checked("load", library().bpf_object__load(self._pointer))

    def close(self) -> None:
        pointer, self._pointer = self._pointer, 0
        if pointer:
            library().bpf_object__close(pointer)
