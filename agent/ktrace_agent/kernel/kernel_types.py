# SPDX-License-Identifier: Apache-2.0
"""The running kernel's BTF: which tracepoints, functions and structures exist."""

from ktrace_agent.kernel.libbpf import library, non_null

BTF_KIND_STRUCT = 4
BTF_KIND_TYPEDEF = 8
BTF_KIND_FUNC = 12


class KernelTypes:
    """The running kernel's BTF, as far as the choice of programs depends on it."""

    def __init__(self) -> None:
        self._btf = non_null("kernel BTF", library().btf__load_vmlinux_btf())

    def tracepoint_args(self, name: str) -> int | None:
        """Return the number of arguments of raw tracepoint `name`, or None if it does not exist."""
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

    def function_args(self, name: str) -> int | None:
        """Return the number of arguments of function `name`, or None if it does not exist."""
        lib = library()
        index = lib.btf__find_by_name_kind(self._btf, name.encode(), BTF_KIND_FUNC)
        if index < 0:
            return None
        prototype = lib.btf__type_by_id(self._btf, index).contents.type
        return int(lib.btf__type_by_id(self._btf, prototype).contents.info & 0xFFFF)

    def has_struct(self, name: str) -> bool:
        lib = library()
        return int(lib.btf__find_by_name_kind(self._btf, name.encode(), BTF_KIND_STRUCT)) >= 0

    def close(self) -> None:
        btf, self._btf = self._btf, 0
        if btf:
            library().btf__free(btf)
