# SPDX-License-Identifier: Apache-2.0
"""A thin face over libbpf >= 1.0 by ctypes: open, configure, load, attach, iterate, close.

Only what the collector needs, under libbpf's own names. libbpf 1.x returns NULL or a negative
errno and sets errno; each failure here is a BpfError with the call, the errno and, where the
verifier spoke, its last words.
"""

import ctypes
import errno
import os
import platform
from collections.abc import Iterator
from ctypes import (
    CFUNCTYPE,
    POINTER,
    byref,
    c_bool,
    c_char_p,
    c_int,
    c_long,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
    cast,
    sizeof,
)
from functools import cache
from io import RawIOBase
from pathlib import Path
from typing import Any

from ktrace_agent.host.libc import libc

BTF_KIND_STRUCT = 4
BTF_KIND_TYPEDEF = 8

_PERF_TYPE_TRACEPOINT = 2
_PERF_FLAG_FD_CLOEXEC = 8
_NR_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_NR_BPF = {"x86_64": 321, "aarch64": 280}
_BPF_OBJ_GET_INFO_BY_FD = 15
_BATCH = 1024
BPF_F_NO_PREALLOC = 1
ITERATOR_READ = 1 << 14
"""Bytes to ask an iterator for at a time, half of the kernel's buffer of eight pages.

bpf_seq_read runs the program for the next object while it has less than was asked for. What does
not fit the buffer any more it takes back, and runs the program for that object again later: a
program that counts what it writes would count it twice.
"""


class BpfError(OSError):
    """A call into libbpf or the kernel that failed; `log` is libbpf's own output."""

    def __init__(self, call: str, code: int, log: str = "") -> None:
        super().__init__(code, f"{call}: {os.strerror(code)}")
        self.log = log


class _PerfEventAttr(ctypes.Structure):
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


class _BtfType(ctypes.Structure):
    _fields_ = (("name_off", c_uint32), ("info", c_uint32), ("type", c_uint32))


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "libbpf_set_print": (c_void_p, (c_void_p,)),
    "libbpf_version_string": (c_char_p, ()),
    "libbpf_num_possible_cpus": (c_int, ()),
    "bpf_object__open_file": (c_void_p, (c_char_p, c_void_p)),
    "bpf_object__load": (c_int, (c_void_p,)),
    "bpf_object__close": (None, (c_void_p,)),
    "bpf_object__next_program": (c_void_p, (c_void_p, c_void_p)),
    "bpf_object__find_map_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_prog_load": (c_int, (c_uint32, c_char_p, c_char_p, c_char_p, c_size_t, c_void_p)),
    "bpf_program__name": (c_char_p, (c_void_p,)),
    "bpf_program__set_autoload": (c_int, (c_void_p, c_bool)),
    "bpf_program__fd": (c_int, (c_void_p,)),
    "bpf_program__attach": (c_void_p, (c_void_p,)),
    "bpf_program__attach_perf_event": (c_void_p, (c_void_p, c_int)),
    "bpf_program__attach_iter": (c_void_p, (c_void_p, c_void_p)),
    "bpf_link__fd": (c_int, (c_void_p,)),
    "bpf_link__destroy": (c_int, (c_void_p,)),
    "bpf_iter_create": (c_int, (c_int,)),
    "bpf_map__fd": (c_int, (c_void_p,)),
    "bpf_map__key_size": (c_uint32, (c_void_p,)),
    "bpf_map__value_size": (c_uint32, (c_void_p,)),
    "bpf_map__set_max_entries": (c_int, (c_void_p, c_uint32)),
    "bpf_map__map_flags": (c_uint32, (c_void_p,)),
    "bpf_map__set_map_flags": (c_int, (c_void_p, c_uint32)),
    "bpf_map__initial_value": (c_void_p, (c_void_p, POINTER(c_size_t))),
    "bpf_map_lookup_elem": (c_int, (c_int, c_void_p, c_void_p)),
    "bpf_map_update_elem": (c_int, (c_int, c_void_p, c_void_p, c_uint64)),
    "bpf_map_lookup_batch": (
        c_int,
        (c_int, c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_uint32), c_void_p),
    ),
    "btf__load_vmlinux_btf": (c_void_p, ()),
    "btf__free": (None, (c_void_p,)),
    "btf__find_by_name_kind": (c_int, (c_void_p, c_char_p, c_uint32)),
    "btf__type_by_id": (POINTER(_BtfType), (c_void_p, c_uint32)),
}

_PRINT = CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
_log: list[str] = []
_keep: list[Any] = []


@cache
def library() -> ctypes.CDLL:
    """libbpf.so.1 with typed signatures; its messages go to a list of ours, not to stderr.

    Raises OSError where the library is missing or lacks a symbol.
    """
    lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    for name, (restype, argtypes) in _SIGNATURES.items():
        try:
            function = getattr(lib, name)
        except AttributeError as missing:
            raise OSError(errno.ENOSYS, f"libbpf lacks {name}: version 1.0 is needed") from missing
        function.restype, function.argtypes = restype, argtypes
    _install_log(lib)
    return lib


def _install_log(lib: ctypes.CDLL) -> None:
    """Keep libbpf's messages: the reasons for what it refuses are only there."""
    vsnprintf = libc().vsnprintf
    vsnprintf.argtypes = (c_void_p, c_size_t, c_char_p, c_void_p)

    def keep(level: int, text: bytes, args: int) -> int:
        if level > 1:
            return 0
        buffer = ctypes.create_string_buffer(1 << 20)
        vsnprintf(buffer, len(buffer), text, args)
        _log.append(buffer.value.decode(errors="replace"))
        return 0

    callback = _PRINT(keep)
    _keep.append(callback)  # libbpf holds only the address
    lib.libbpf_set_print(cast(callback, c_void_p))


def _error(call: str, code: int = 0) -> BpfError:
    log = "".join(_log)
    _log.clear()
    return BpfError(call, abs(code) or ctypes.get_errno() or errno.EINVAL, log)


def _check(call: str, result: int) -> int:
    if result < 0:
        raise _error(call, result)
    return result


def _pointer(call: str, result: int | None) -> int:
    if not result:
        raise _error(call)
    return result


class Link:
    """An attached program; detached by close(), or by the kernel when the process ends."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    @property
    def fd(self) -> int:
        return int(library().bpf_link__fd(self._pointer))

    def close(self) -> None:
        # Let go first: an interrupt may come while the kernel detaches it, and whoever cleans up
        # after that must not free it again.
        pointer, self._pointer = self._pointer, 0
        if pointer:
            library().bpf_link__destroy(pointer)


class Map:
    """A map of a loaded object."""

    def __init__(self, pointer: int) -> None:
        lib = library()
        self._pointer = pointer
        self.key_size = int(lib.bpf_map__key_size(pointer))
        self.value_size = int(lib.bpf_map__value_size(pointer))

    @property
    def fd(self) -> int:
        return int(library().bpf_map__fd(self._pointer))

    def set_max_entries(self, entries: int) -> None:
        _check(
            "bpf_map__set_max_entries", library().bpf_map__set_max_entries(self._pointer, entries)
        )

    @property
    def flags(self) -> int:
        """BPF_F_* it is made with."""
        return int(library().bpf_map__map_flags(self._pointer))

    def preallocate(self) -> None:
        """Before load: take memory for all entries at once, not for each as it comes."""
        flags = self.flags & ~BPF_F_NO_PREALLOC
        _check("bpf_map__set_map_flags", library().bpf_map__set_map_flags(self._pointer, flags))

    def set_initial(self, value: ctypes.Structure) -> None:
        """Write a data section before load; its size must be the structure's."""
        size = c_size_t()
        memory = _pointer(
            "bpf_map__initial_value", library().bpf_map__initial_value(self._pointer, byref(size))
        )
        if size.value != sizeof(value):
            raise BpfError(f"section of {size.value} bytes, {sizeof(value)} given", errno.EPROTO)
        ctypes.memmove(memory, byref(value), sizeof(value))

    def put(self, key: bytes, value: bytes) -> None:
        """Set an entry of a hash map."""
        if (len(key), len(value)) != (self.key_size, self.value_size):
            raise BpfError(f"entry of {self.key_size} + {self.value_size} bytes", errno.EPROTO)
        _check("bpf_map_update_elem", library().bpf_map_update_elem(self.fd, key, value, 0))

    def lookup_percpu(self, index: int) -> list[bytes]:
        """The value of a per-CPU array at `index`, one for each possible CPU."""
        stride = (self.value_size + 7) & ~7
        cpus = int(library().libbpf_num_possible_cpus())
        buffer = ctypes.create_string_buffer(stride * cpus)
        _check(
            "bpf_map_lookup_elem",
            library().bpf_map_lookup_elem(self.fd, byref(c_uint32(index)), buffer),
        )
        return [buffer.raw[cpu * stride :][: self.value_size] for cpu in range(cpus)]

    def items(self) -> tuple[bytes, bytes]:
        """All keys and all values of a hash map, as two parallel arrays."""
        keys, values = bytearray(), bytearray()
        key_buffer = ctypes.create_string_buffer(self.key_size * _BATCH)
        value_buffer = ctypes.create_string_buffer(self.value_size * _BATCH)
        position = ctypes.create_string_buffer(max(self.key_size, 8))
        start: Any = None
        lib, fd, more = library(), self.fd, True
        while more:
            count = c_uint32(_BATCH)
            code = lib.bpf_map_lookup_batch(
                fd, start, position, key_buffer, value_buffer, byref(count), None
            )
            if code == -errno.ENOSPC:  # a bucket larger than the buffer
                key_buffer = ctypes.create_string_buffer(len(key_buffer) * 2)
                value_buffer = ctypes.create_string_buffer(len(value_buffer) * 2)
                continue
            if code < 0 and code != -errno.ENOENT:
                raise _error("bpf_map_lookup_batch", code)
            more = code == 0
            keys += key_buffer.raw[: count.value * self.key_size]
            values += value_buffer.raw[: count.value * self.value_size]
            start = position
        return bytes(keys), bytes(values)


class Program:
    """A program of an object."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer
        self.name = library().bpf_program__name(pointer).decode()

    @property
    def fd(self) -> int:
        return int(library().bpf_program__fd(self._pointer))

    def set_autoload(self, wanted: bool) -> None:
        library().bpf_program__set_autoload(self._pointer, wanted)

    def attach(self) -> Link:
        """By its section name: tp_btf and the like."""
        return Link(_pointer(f"attach {self.name}", library().bpf_program__attach(self._pointer)))

    def attach_tracepoint(self, event_id: int) -> Link:
        """To a classic tracepoint by the id of its tracefs folder.

        libbpf's own attach wants tracefs at a fixed path, which many nodes do not mount.
        """
        attr = _PerfEventAttr(
            type=_PERF_TYPE_TRACEPOINT, size=64, config=event_id, sample_period=1, wakeup_events=1
        )
        number = _NR_PERF_EVENT_OPEN[platform.machine()]
        fd = libc().syscall(
            c_long(number),
            byref(attr),
            c_long(-1),
            c_long(0),
            c_long(-1),
            c_long(_PERF_FLAG_FD_CLOEXEC),
        )
        if fd < 0:
            raise _error(f"perf_event_open for {self.name}")
        link = library().bpf_program__attach_perf_event(self._pointer, fd)
        if not link:
            os.close(fd)
        return Link(_pointer(f"attach {self.name}", link))

    def attach_iter(self, over: Map | None = None) -> Link:
        """As an iterator: over all of its kind, or over the elements of one map."""
        info = (c_uint32 * 4)(over.fd if over else 0)  # union bpf_iter_link_info
        options = (c_uint64 * 3)(24, ctypes.addressof(info), 4 if over else 0)
        return Link(
            _pointer(
                f"attach {self.name}",
                library().bpf_program__attach_iter(self._pointer, byref(options) if over else None),
            )
        )

    def recursion_misses(self) -> int:
        """How often the kernel skipped the program since it was already running on that CPU.

        struct bpf_prog_info.recursion_misses, v5.12 (9ed9e9ba2337); 0 where it is not told.
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
    """One BPF object file: open() -> configure its maps and programs -> load() -> attach them."""

    def __init__(self, path: Path) -> None:
        lib = library()
        _log.clear()
        self._pointer = _pointer(
            f"open {path.name}", lib.bpf_object__open_file(os.fsencode(path), None)
        )
        self.programs = {program.name: program for program in self._programs()}

    def _programs(self) -> Iterator[Program]:
        pointer: int | None = None
        while pointer := library().bpf_object__next_program(self._pointer, pointer):
            yield Program(pointer)

    def map(self, name: str) -> Map:
        pointer = library().bpf_object__find_map_by_name(self._pointer, name.encode())
        return Map(_pointer(f"map {name}", pointer))

    def load(self) -> None:
        _log.clear()
        _check("load", library().bpf_object__load(self._pointer))

    def close(self) -> None:
        pointer, self._pointer = self._pointer, 0
        if pointer:
            library().bpf_object__close(pointer)


def read_iterator(link: Link) -> bytes:
    """Run an attached iterator once, in the caller's network namespace; what it wrote."""
    fd = _check("bpf_iter_create", library().bpf_iter_create(link.fd))
    with os.fdopen(fd, "rb", buffering=0) as stream:
        return read_all(stream)


def read_all(stream: RawIOBase) -> bytes:
    """What an iterator writes until its end, which is b"".

    None stands for EAGAIN: a million objects went by and nothing was written (bpf_seq_read,
    e679654a704e, v5.9). The next read goes on where this one ended.
    """
    parts = []
    while (part := stream.read(ITERATOR_READ)) != b"":
        parts.append(part or b"")
    return b"".join(parts)


class KernelTypes:
    """The running kernel's BTF, for the questions that the choice of programs asks."""

    def __init__(self) -> None:
        self._btf = _pointer("kernel BTF", library().btf__load_vmlinux_btf())

    def tracepoint_args(self, name: str) -> int | None:
        """How many arguments raw tracepoint `name` passes; None where it does not exist."""
        lib = library()
        index = lib.btf__find_by_name_kind(
            self._btf, f"btf_trace_{name}".encode(), BTF_KIND_TYPEDEF
        )
        if index < 0:
            return None
        for _ in range(2):  # typedef -> pointer -> prototype
            index = lib.btf__type_by_id(self._btf, index).contents.type
        prototype = lib.btf__type_by_id(self._btf, index).contents
        return int(prototype.info & 0xFFFF) - 1  # the first is void *__data

    def has_struct(self, name: str) -> bool:
        lib = library()
        return int(lib.btf__find_by_name_kind(self._btf, name.encode(), BTF_KIND_STRUCT)) >= 0

    def close(self) -> None:
        btf, self._btf = self._btf, 0
        if btf:
            library().btf__free(btf)
