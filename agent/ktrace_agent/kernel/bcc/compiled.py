# SPDX-License-Identifier: Apache-2.0
"""Compiled programs as an Object: maps by libbpf, programs loaded and attached by descriptor."""

import ctypes
import fcntl
import os
from collections.abc import Mapping
from ctypes import c_char_p, c_size_t, c_uint32, c_void_p, sizeof
from pathlib import Path

from ktrace_agent.kernel.bcc.section import SIZE, with_maps
from ktrace_agent.kernel.bpf_object import Link, Object, PerfEventAttr, Program, perf_event_open
from ktrace_agent.kernel.libbpf import BpfError, library

_KPROBE = Path("/sys/bus/event_source/devices/kprobe")
_IOC_ENABLE, _IOC_SET_BPF = 0x2400, 0x40042408
_PROG_TYPES = {"kprobe": 2, "kretprobe": 2, "tracepoint": 5}
_LOG_BYTES = 1 << 20


class _LoadOptions(ctypes.Structure):
    """struct bpf_prog_load_opts of libbpf 1.0."""

    _fields_ = (
        ("sz", c_size_t),
        ("attempts", c_uint32),
        ("expected_attach_type", c_uint32),
        ("unused", c_uint32 * 7),
        ("fd_array", c_void_p),
        ("func_info", c_void_p),
        ("func_info_cnt", c_uint32),
        ("func_info_rec_size", c_uint32),
        ("line_info", c_void_p),
        ("line_info_cnt", c_uint32),
        ("line_info_rec_size", c_uint32),
        ("log_level", c_uint32),
        ("log_size", c_uint32),
        ("log_buf", c_void_p),
    )


class PerfLink(Link):
    """A program on a perf event, detached when the event is closed."""

    def __init__(self, event: int) -> None:
        self._event = event

    def close(self) -> None:
        event, self._event = self._event, -1
        if event >= 0:
            os.close(event)


class CompiledProgram(Program):
    """A program of the object file with other instructions."""

    def __init__(self, original: Program, code: bytes) -> None:
        self.name = original.name
        self.section = original.section
        self._code = code
        self._fd = -1
        self._wanted = False

    @property
    def fd(self) -> int:
        return self._fd

    def set_autoload(self, wanted: bool) -> None:
        self._wanted = wanted

    def load(self, descriptors: Mapping[int, int]) -> None:
        """Load it if it is wanted. Raises BpfError with the verifier's messages."""
        if not self._wanted:
            return
        code = with_maps(self._code, descriptors)
        self._fd = self._load(code, None)
        if self._fd < 0:
            self._fd = self._load_with_log(code)

    def _load(self, code: bytes, options: "ctypes._CArgObject | None") -> int:
        kind = _PROG_TYPES[self.section.partition("/")[0]]
        name = c_char_p(self.name[:15].encode())
        load = library().bpf_prog_load
        return int(load(kind, name, b"GPL", code, len(code) // SIZE, options))

    def _load_with_log(self, code: bytes) -> int:
        log = ctypes.create_string_buffer(_LOG_BYTES)
        options = _LoadOptions(log_level=1, log_size=_LOG_BYTES, log_buf=ctypes.addressof(log))
        options.sz = sizeof(options)
        result = self._load(code, ctypes.byref(options))
        if result < 0:
            raise BpfError(f"load {self.name}", -result, log.value.decode(errors="replace"))
        return result

    def attach(self) -> Link:
        """Attach to the kernel function that the section names, through the kprobe PMU."""
        kind, _, function = self.section.partition("/")
        name = ctypes.create_string_buffer(function.encode())
        attr = PerfEventAttr(type=int((_KPROBE / "type").read_text()), size=64, wakeup_events=1)
        attr.config1 = ctypes.addressof(name)
        if kind == "kretprobe":
            bit = (_KPROBE / "format/retprobe").read_text().strip().removeprefix("config:")
            attr.config = 1 << int(bit)
        return self._attach_event(attr)

    def attach_tracepoint(self, event_id: int) -> Link:
        return self._attach_event(PerfEventAttr.tracepoint(event_id))

    def _attach_event(self, attr: PerfEventAttr) -> Link:
        event = perf_event_open(attr, self.name)
        try:
            fcntl.ioctl(event, _IOC_SET_BPF, self._fd)
            fcntl.ioctl(event, _IOC_ENABLE, 0)
        except OSError as error:
            os.close(event)
            raise BpfError(f"attach {self.name}", error.errno or 0) from error
        return PerfLink(event)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Compiled(Object):
    """The maps of the basic object file, and the programs that bcc compiled for this kernel."""

    def __init__(self, path: Path, maps: tuple[str, ...], code: Mapping[str, bytes]) -> None:
        super().__init__(path, kernel_btf=path)  # its own types: nothing of it is relocated
        self._maps = maps
        originals = self.programs
        for program in originals.values():
            program.set_autoload(False)
        self._compiled = {name: CompiledProgram(originals[name], code[name]) for name in code}
        self.programs = dict(self._compiled)

    def load(self) -> None:
        """Create the maps, then load the wanted programs."""
        super().load()
        descriptors = {number: self.map(name).fd for number, name in enumerate(self._maps)}
        for program in self._compiled.values():
            program.load(descriptors)

    def close(self) -> None:
        for program in self._compiled.values():
            program.close()
        super().close()
