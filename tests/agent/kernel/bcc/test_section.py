# SPDX-License-Identifier: Apache-2.0
"""Cutting a section: programs are followed by what they call, and calls find their functions."""

import struct

import pytest

from ktrace_agent.kernel.bcc.section import MARK, SIZE, Malformed, Section, with_maps


def one(opcode: int, registers: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("<BBhi", opcode, registers, offset, immediate)


EXIT, CALL_HELPER = one(0x95), one(0x85, 0, 0, 5)
MOVE = one(0xB7, 1, 0, 7)


def call(distance: int) -> bytes:
    return one(0x85, 0x10, 0, distance)


def mark(number: int) -> bytes:
    return one(0xB7, 0, 0, MARK + number)


def section(*instructions: bytes, entry: int) -> Section:
    """A section whose instruction `entry` has the index 0, as bcc returns it."""
    return Section(lambda index: instructions[entry + index])


SHARED = (
    MOVE, EXIT,  # 0: a function that both programs call
    CALL_HELPER, call(-4), EXIT,  # 2: first
    one(0x15, 1, 1, 0), EXIT, call(-8), EXIT,  # 5: second, whose jump passes its first exit
    mark(0), call(-9), mark(1), MOVE, call(-9), EXIT,  # 9: kt_programs
)  # fmt: skip


def test_each_program_is_followed_by_what_it_calls():
    found = section(*SHARED, entry=9).programs(6, ("first", "second"))
    assert found == {
        "first": b"".join((CALL_HELPER, call(1), EXIT, MOVE, EXIT)),
        "second": b"".join((one(0x15, 1, 1, 0), EXIT, call(1), EXIT, MOVE, EXIT)),
    }


def test_calls_of_calls_are_included_once():
    code = (
        MOVE, EXIT,  # 0: inner
        call(-3), call(-4), EXIT,  # 2: outer
        call(-4), call(-7), EXIT,  # 5: program
        mark(0), call(-5), EXIT,
    )  # fmt: skip
    found = section(*code, entry=8).programs(3, ("program",))
    wanted = (call(2), call(4), EXIT, call(2), call(1), EXIT, MOVE, EXIT)
    assert found == {"program": b"".join(wanted)}


def test_the_second_half_of_a_load_is_no_instruction():
    load = one(0x18, 0x11, 0, 3), one(0x95)
    found = section(*load, MOVE, EXIT, mark(0), call(-6), EXIT, entry=4).programs(3, ("program",))
    assert found == {"program": b"".join((*load, MOVE, EXIT))}


@pytest.mark.parametrize("names", [("first",), ("first", "second", "third")])
def test_marks_and_names_must_match(names: tuple[str, ...]):
    with pytest.raises(Malformed, match="mark"):
        section(*SHARED, entry=9).programs(6, names)


def test_a_jump_out_of_a_function_is_refused():
    with pytest.raises(Malformed, match="leaves the function"):
        section(EXIT, one(0x05, 0, -2), mark(0), call(-3), EXIT, entry=2).programs(3, ("program",))


def test_maps_get_their_descriptors():
    def load(kind: int, number: int) -> bytes:
        return one(0x18, kind << 4 | 1, 0, number) + one(0, 0, 0, 99)

    program = load(1, 2) + load(2, 3) + load(0, 2) + one(0xB7, 1, 0, 2)
    wanted = load(1, 20) + load(2, 30) + load(0, 2) + one(0xB7, 1, 0, 2)
    assert with_maps(program, {2: 20, 3: 30}) == wanted
    assert len(program) % SIZE == 0
