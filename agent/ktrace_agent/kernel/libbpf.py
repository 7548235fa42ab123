# SPDX-License-Identifier: Apache-2.0
"""libbpf >= 1.0 by ctypes: the library with typed signatures, and its errors.

bpf_object.py, bpf_map.py, iterators.py and kernel_types.py wrap what the collector needs, under
libbpf's own names. A failed call returns NULL or a negative errno and sets errno. Each failure
raises BpfError with the call, the errno and the verifier's last messages, if there are any.
"""

import ctypes
import errno
import os
from ctypes import (
    CFUNCTYPE,
    POINTER,
    c_bool,
    c_char_p,
    c_int,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
    cast,
)
from functools import cache
from typing import Any

from ktrace_agent.host.libc import libc


class BpfError(OSError):
    """A call into libbpf or the kernel that failed; `log` is libbpf's own output."""

    def __init__(self, call: str, code: int, log: str = "") -> None:
        super().__init__(code, f"{call}: {os.strerror(code)}")
        self.log = log


class BtfType(ctypes.Structure):
    """struct btf_type."""

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
    "bpf_program__section_name": (c_char_p, (c_void_p,)),
    "bpf_program__name": (c_char_p, (c_void_p,)),
    "bpf_program__set_autoload": (c_int, (c_void_p, c_bool)),
    "bpf_program__fd": (c_int, (c_void_p,)),
    "bpf_program__attach": (c_void_p, (c_void_p,)),
    "bpf_program__attach_perf_event": (c_void_p, (c_void_p, c_int)),
    "bpf_program__attach_iter": (c_void_p, (c_void_p, c_void_p)),
    "bpf_link__fd": (c_int, (c_void_p,)),
    "bpf_link__destroy": (c_int, (c_void_p,)),
    "bpf_iter_create": (c_int, (c_int,)),
    "bpf_object__next_map": (c_void_p, (c_void_p, c_void_p)),
    "bpf_map__name": (c_char_p, (c_void_p,)),
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
    "btf__type_by_id": (POINTER(BtfType), (c_void_p, c_uint32)),
}

_PRINT = CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
_log: list[str] = []
_keep: list[Any] = []


@cache
def library() -> ctypes.CDLL:
    """Load libbpf.so.1 with typed signatures; its messages are kept, not printed to stderr.

    Raises OSError if the library is missing or lacks a symbol.
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
    """Keep libbpf's messages: they alone explain why a program was refused."""
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


def clear_log() -> None:
    """Forget libbpf's earlier messages, so that the next error carries only its own."""
    _log.clear()


def failure(call: str, code: int = 0) -> BpfError:
    """The error of a failed `call`: `code` or errno, and libbpf's messages up to now."""
    log = "".join(_log)
    _log.clear()
    return BpfError(call, abs(code) or ctypes.get_errno() or errno.EINVAL, log)


def checked(call: str, result: int) -> int:
    """Return `result`; raise BpfError if it is negative."""
    if result < 0:
        raise failure(call, result)
    return result


def non_null(call: str, result: int | None) -> int:
    """Return the pointer `result`; raise BpfError if it is NULL."""
    if not result:
        raise failure(call)
    return result
