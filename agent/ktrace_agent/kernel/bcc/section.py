# SPDX-License-Identifier: Apache-2.0
"""Cuts the section that bcc compiled into programs that can be loaded one by one.

The section contains all programs and the functions that they call. The calls between them are
relative. A program is the function itself, followed by every function that it calls; libbpf
arranges the functions of an object file in the same way (bpf_object__reloc_code).
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

MARK = 0x4B540000
"""KT_MARK of agent/bpf/bcc.bpf.h."""
_INSTRUCTION = struct.Struct("<BBhi")
SIZE = _INSTRUCTION.size

# include/uapi/linux/bpf.h: the class of an instruction, and the instructions themselves.
_CLASS, _JMP, _JMP32 = 0x07, 0x05, 0x06
_MOV_IMMEDIATE, _LOAD_64, _JUMP, _CALL, _EXIT = 0xB7, 0x18, 0x05, 0x85, 0x95
_PSEUDO_CALL = _PSEUDO_MAP_FD = 1
_PSEUDO_MAP_VALUE = 2


class Malformed(Exception):
    """The section is not as agent/bpf/bcc.bpf.h lays it out."""


@dataclass(frozen=True)
class _Instruction:
    opcode: int
    registers: int
    offset: int
    immediate: int

    @property
    def source(self) -> int:
        return self.registers >> 4

    @property
    def calls(self) -> bool:
        """Whether it calls a function of the section."""
        return self.opcode == _CALL and self.source == _PSEUDO_CALL

    def pack(self) -> bytes:
        return _INSTRUCTION.pack(self.opcode, self.registers, self.offset, self.immediate)


class Section:
    """Instructions by index. `read` returns one of them; the index may be negative."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read

    def _at(self, index: int) -> _Instruction:
        return _Instruction(*_INSTRUCTION.unpack(self._read(index)))

    def programs(self, size: int, names: Sequence[str]) -> dict[str, bytes]:
        """Return the programs that the first `size` instructions mark. Raises Malformed."""
        starts: dict[str, int] = {}
        marked: int | None = None
        for index in range(size):
            one = self._at(index)
            if one.opcode == _MOV_IMMEDIATE and one.immediate & ~0xFFFF == MARK:
                marked = one.immediate & 0xFFFF
            elif one.calls and marked is not None:
                if marked >= len(names):
                    raise Malformed(f"mark {marked} belongs to no program")
                starts[names[marked]] = index + 1 + one.immediate
                marked = None
        if lacking := set(names) - starts.keys():
            raise Malformed(f"no mark for {', '.join(sorted(lacking))}")
        return {name: self._link(start) for name, start in starts.items()}

    def _link(self, start: int) -> bytes:
        """Return the function at `start` and all functions that it calls, as one program."""
        functions = {start: self._function(start)}
        pending = [start]
        while pending:
            begin = pending.pop()
            for position, one in enumerate(functions[begin]):
                target = begin + position + 1 + one.immediate
                if one.calls and target not in functions:
                    functions[target] = self._function(target)
                    pending.append(target)
        places, length = {}, 0
        for begin, body in functions.items():
            places[begin] = length
            length += len(body)
        return b"".join(_moved(begin, body, places) for begin, body in functions.items())

    def _function(self, start: int) -> list[_Instruction]:
        """Return the instructions of the function at `start`: as far as its jumps reach."""
        reached: set[int] = set()
        pending = [start]
        while pending:
            index = pending.pop()
            if index in reached:
                continue
            if index < start:
                raise Malformed(f"a jump at {index} leaves the function at {start}")
            reached.add(index)
            pending += self._next(index, reached)
        return [self._at(index) for index in range(start, max(reached) + 1)]

    def _next(self, index: int, reached: set[int]) -> list[int]:
        """Return the instructions that may follow; the second half of a load is `reached`, too."""
        one = self._at(index)
        if one.opcode == _LOAD_64:
            reached.add(index + 1)
            return [index + 2]
        if one.opcode == _EXIT:
            return []
        target = index + 1 + one.offset
        if one.opcode == _JUMP:
            return [target]
        if one.opcode & _CLASS in (_JMP, _JMP32) and one.opcode != _CALL:
            return [target, index + 1]
        return [index + 1]


def _moved(begin: int, body: list[_Instruction], places: Mapping[int, int]) -> bytes:
    """Return the function with its calls aimed at the new places."""
    code = bytearray()
    for position, one in enumerate(body):
        if one.calls:
            target = places[begin + position + 1 + one.immediate]
            here = places[begin] + position
            code += replace(one, immediate=target - here - 1).pack()
        else:
            code += one.pack()
    return bytes(code)


def with_maps(program: bytes, descriptors: Mapping[int, int]) -> bytes:
    """Return the program with the numbers of its maps replaced by their descriptors."""
    code = bytearray(program)
    index = 0
    while index < len(code):
        opcode, registers, offset, immediate = _INSTRUCTION.unpack_from(code, index)
        if opcode == _LOAD_64:
            if registers >> 4 in (_PSEUDO_MAP_FD, _PSEUDO_MAP_VALUE):
                _INSTRUCTION.pack_into(
                    code, index, opcode, registers, offset, descriptors[immediate]
                )
            index += SIZE
        index += SIZE
    return bytes(code)
