# SPDX-License-Identifier: Apache-2.0
"""What loader.c wrote: raw records, maps and figures of the verifier, and rows from them."""

import ipaddress
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

import numpy as np

from ktrace_agent.kernel import hook_counters
from ktrace_agent.kernel.recording import HookCounters, Overflow
from ktrace_agent.tables.records import EVENT, FLOW, FLOW_KEY, ROW_TYPES, STATES, Array
from ktrace_api.names import RowType
from tests.kernels.golden import UNKNOWN, Row

if TYPE_CHECKING:
    from ktrace_agent.kernel.bpf_object import Object


class _Map:
    """A map of the guest with the part of bpf_map.Map's interface that counters need."""

    def __init__(self, value_size: int, cpus: int, content: bytes, key_size: int) -> None:
        self._value_size, self._cpus, self._key_size = value_size, cpus, key_size
        self._stride = key_size + cpus * value_size
        self._entries = [
            content[at : at + self._stride] for at in range(0, len(content), self._stride or 1)
        ]

    def lookup_percpu(self, index: int) -> list[bytes]:
        values = self._entries[index][self._key_size :]
        size = self._value_size
        return [values[cpu * size : (cpu + 1) * size] for cpu in range(self._cpus)]

    def items(self) -> tuple[bytes, bytes]:
        keys = (entry[: self._key_size] for entry in self._entries)
        values = (entry[self._key_size :] for entry in self._entries)
        return b"".join(keys), b"".join(values)


class _Program:
    def __init__(self, misses: int) -> None:
        self._misses = misses

    def recursion_misses(self) -> int:
        return self._misses


class Recording:
    """The parsed output of `loader record`."""

    def __init__(self, output: bytes, programs: Iterable[str]) -> None:
        self.instructions: dict[str, int] = {}
        """Program -> instructions that the verifier processed."""
        self.iterators: dict[str, bytes] = {}
        self.events: Array = np.zeros(0, EVENT)
        self._attached = tuple(programs)
        self.programs: dict[str, _Program] = {}
        self._maps: dict[str, _Map] = {}
        while output:
            line, _, output = output.partition(b"\n")
            output = output[self._take(line.decode().split(), output) :]

    def _take(self, words: list[str], content: bytes) -> int:
        """Parse one line and the bytes that follow it. Returns their number."""
        match words:
            case ["program", name, instructions, misses]:
                self.instructions[name] = int(instructions)
                self.programs[name] = _Program(int(misses))
                return 0
            case ["iterator", name, length]:
                self.iterators[name] = content[: int(length)]
                return int(length)
            case ["map", name, *numbers]:
                key_size, value_size, cpus, count = map(int, numbers)
                size = count * (key_size + cpus * value_size)
                self._maps[name] = _Map(value_size, cpus, content[:size], key_size)
                return size
            case ["records", length]:
                self.events = np.frombuffer(content[: int(length)], EVENT)
                return int(length)
        raise ValueError(words)

    def map(self, name: str) -> _Map:
        return self._maps[name]

    def counters(self) -> dict[RowType, HookCounters]:
        """The accounting, computed as by the agent."""
        return hook_counters.read(cast("Object", self), self._attached)

    def overflow(self) -> Overflow:
        return hook_counters.overflow(cast("Object", self))

    def rows(self) -> Counter[Row]:
        """The records in the form of the golden workload's truth."""
        return Counter(_row(event) for event in self.events)

    def flows(self) -> list[tuple[Array, Array]]:
        keys, values = self.map("flows").items()
        return list(zip(np.frombuffer(keys, FLOW_KEY), np.frombuffer(values, FLOW), strict=True))


def address(raw: np.void) -> str:
    """An address of a record; `-` for an empty one."""
    found = ipaddress.IPv6Address(raw.tobytes())
    return str(found.ipv4_mapped or found) if int(found) else UNKNOWN


def _row(event: np.void) -> Row:
    kind, tgid = ROW_TYPES[event["type"]], str(event["tgid"])
    if kind is RowType.TCP_STATE:
        return kind, tgid, STATES[event["old_state"]], STATES[event["new_state"]]
    local, peer = (str(event[name] or UNKNOWN) for name in ("local_port", "remote_port"))
    if kind is RowType.CONNECT:
        error = int(event["error"])
        return kind, tgid, UNKNOWN if error else local, peer, str(error)
    return kind, tgid, local, peer, str(event["bytes"])
