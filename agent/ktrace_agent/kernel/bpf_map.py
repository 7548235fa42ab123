# SPDX-License-Identifier: Apache-2.0
"""Maps of a BPF object: sized and filled before load, read while the programs run."""

import ctypes
import errno
from ctypes import byref, c_size_t, c_uint32, sizeof
from typing import Any

from ktrace_agent.kernel.libbpf import BpfError, checked, failure, library, non_null

BPF_F_NO_PREALLOC = 1
_BATCH = 1024


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
        checked(
            "bpf_map__set_max_entries", library().bpf_map__set_max_entries(self._pointer, entries)
        )

    @property
    def flags(self) -> int:
        """BPF_F_* flags that the map is created with."""
        return int(library().bpf_map__map_flags(self._pointer))

    def preallocate(self) -> None:
        """Allocate all entries at load time instead of one by one. Call before load."""
        flags = self.flags & ~BPF_F_NO_PREALLOC
        checked("bpf_map__set_map_flags", library().bpf_map__set_map_flags(self._pointer, flags))

    def set_initial(self, value: ctypes.Structure) -> None:
        """Write a data section before load. Raises BpfError if its size differs from `value`."""
        size = c_size_t()
        memory = non_null(
            "bpf_map__initial_value", library().bpf_map__initial_value(self._pointer, byref(size))
        )
        if size.value != sizeof(value):
            raise BpfError(f"section of {size.value} bytes, {sizeof(value)} given", errno.EPROTO)
        ctypes.memmove(memory, byref(value), sizeof(value))

    def put(self, key: bytes, value: bytes) -> None:
        """Set one entry of a hash map. Raises BpfError if a size is wrong."""
        if (len(key), len(value)) != (self.key_size, self.value_size):
            raise BpfError(f"entry of {self.key_size} + {self.value_size} bytes", errno.EPROTO)
        checked("bpf_map_update_elem", library().bpf_map_update_elem(self.fd, key, value, 0))

    def lookup_percpu(self, index: int) -> list[bytes]:
        """Return the values of a per-CPU array at `index`, one for each possible CPU."""
        stride = (self.value_size + 7) & ~7
        cpus = int(library().libbpf_num_possible_cpus())
        buffer = ctypes.create_string_buffer(stride * cpus)
        checked(
            "bpf_map_lookup_elem",
            library().bpf_map_lookup_elem(self.fd, byref(c_uint32(index)), buffer),
        )
        return [buffer.raw[cpu * stride :][: self.value_size] for cpu in range(cpus)]

    def items(self) -> tuple[bytes, bytes]:
        """Return all keys and all values of a hash map as two parallel arrays."""
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
                raise failure("bpf_map_lookup_batch", code)
            more = code == 0
            keys += key_buffer.raw[: count.value * self.key_size]
            values += value_buffer.raw[: count.value * self.value_size]
            start = position
        return bytes(keys), bytes(values)
